"""Flow-matching head: a transformer over the noisy action chunk that cross-attends to the action tokens.

Rectified flow (Lipman et al., 2023; Liu et al., 2023), used for actions by pi0 (Black et al., 2024):
``x_t = (1 - t) noise + t action``, the network predicts ``action - noise``, sampling integrates t from 0 to 1.
Training draws t from Beta(1.5, 1), which favours the clean end, t = 1. pi0 favours the noisy end (its code counts time
from the action to the noise): that is ``head.time_beta`` [1.0, 1.5] here.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float32

from wmjax.core.errors import UserError
from wmjax.core.settings import Depth, Range
from wmjax.models.heads.base import (
    GripperConfig,
    GripperHead,
    HeadConfig,
    HeadLoss,
    HeadSizes,
    InpaintingHead,
    Known,
    add_gripper,
    arm_and_gripper,
    draw_noise,
    masked_mean,
)
from wmjax.models.nn.transformer import Attention, KeyValue, Mlp, embedding_table, layer_norm, linear

TIME_FEATURES = 64
"""Width of the sinusoidal embedding of the flow time."""

GUIDANCE_LIMIT = 5.0
"""Largest weight of the guidance when a chunk is completed: the paper's β."""

NOISE, TIME = 0, 1
"""Names folded into the loss's key."""


@dataclasses.dataclass(frozen=True)
class FlowConfig(GripperConfig):
    """``draws`` of noise and time per sample and ``time_beta``, the Beta distribution of the flow time, in training.

    One of the two parameters of the distribution must be 1. ``steps``, ``solver`` and ``noise_scale``, the scale of
    the initial noise, concern sampling.
    """

    kind: str = "flow"
    draws: Depth = 4
    time_beta: tuple[Annotated[float, Range(0.01, 100)], ...] = (1.5, 1.0)
    steps: Depth = 10
    solver: Literal["euler", "heun"] = "euler"
    noise_scale: Annotated[float, Range(0, 100)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.time_beta) != 2 or 1.0 not in self.time_beta:
            raise UserError(
                f"head.time_beta is {self.time_beta}; use two positive numbers of which one is 1.0, as in [1.5, 1.0]"
            )

    @property
    def stochastic(self) -> bool:
        """True, because sampling starts from noise."""
        return True


def sample_time(key: jax.Array, shape: tuple[int, ...], beta: tuple[float, ...]) -> Float32[Array, "*shape"]:
    """Beta(a, b) by inverting its distribution function, ``1 - (1 - u^(1/a))^(1/b)``: exact if a or b is 1."""
    uniform = jax.random.uniform(key, shape)
    return 1.0 - (1.0 - uniform ** (1.0 / beta[0])) ** (1.0 / beta[1])


def time_features(time: Float32[Array, "*shape"]) -> Float32[Array, "*shape 64"]:
    """Sines and cosines of the flow time in [0, 1], periods from 4 down to 4e-3."""
    rates = 2.0 * jnp.pi / 4.0 * jnp.logspace(0.0, 3.0, TIME_FEATURES // 2)
    angles = time[..., None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


Velocity = Callable[[Float32[Array, "*shape"], Float32[Array, ""]], Float32[Array, "*shape"]]
"""From noisy values and the flow time to the direction in which they flow."""


def integrate(
    velocity: Velocity,
    start: Float32[Array, "*shape"],
    steps: int,
    solver: Literal["euler", "heun"],
) -> Float32[Array, "*shape"]:
    """Integrates dx/dt = velocity(x, t) from t = 0 to 1; step i starts at t = i / steps."""
    size = 1.0 / steps

    def step(i: Array, x: Array) -> Array:
        time = i.astype(jnp.float32) * size
        slope = velocity(x, time)
        if solver == "heun":
            slope = 0.5 * (slope + velocity(x + size * slope, time + size))
        return x + size * slope

    return jax.lax.fori_loop(0, steps, step, start)


def guided(
    velocity: Velocity, known: Float32[Array, "*shape"], weight: Float32[Array | np.ndarray, "chunk 1"]
) -> Velocity:
    """The velocity that also leads to known actions: real-time chunking.

    Black, Galliker and Levine 2025, "Real-Time Execution of Action Chunking Flow Policies" (arXiv 2506.07339),
    equations 2 to 4, whose flow time is ours: 0 is noise. With the clean chunk that the flow expects at time t,
    ``f(x) = x + (1 - t) v(x, t)``, the direction is::

        v + min(β, (1 - t) / (t r²)) (known - f(x))ᵀ diag(weight) ∂f/∂x,   r² = (1 - t)² / (t² + (1 - t)²)

    where the product with the Jacobian is one reverse pass through the network.

    Args:
        velocity: of the flow; rows of a batch must not depend on each other.
        known: normalised actions, [..., chunk, action]; what they hold where the weight is 0 does not matter.
        weight: of each step of the chunk, from 0 to 1.

    """

    def direction(x: Array, time: Array) -> Array:
        def expect(x: Array) -> tuple[Array, Array]:
            slope = velocity(x, time)
            return x + (1.0 - time) * slope, slope

        clean, pull_back, slope = jax.vjp(expect, x, has_aux=True)
        (pull,) = pull_back(weight * (known - clean))
        left = jnp.maximum(1.0 - time, 0.0)  # the time of the last step may be rounded to above 1
        scale = (jnp.square(time) + jnp.square(left)) / (time * left)  # infinite at 0 and 1
        return slope + jnp.minimum(scale, GUIDANCE_LIMIT) * pull

    return direction


class FlowLayer(nnx.Module):
    """Self-attention over the chunk, cross-attention to the tokens, MLP; norms modulated by the flow time."""

    def __init__(self, sizes: HeadSizes, hidden_dim: int, *, rngs: nnx.Rngs):
        width, heads, dtype = sizes.width, sizes.heads, jnp.float32
        self.norm = layer_norm(width, affine=False, rngs=rngs)
        self.modulation = linear(width, 6 * width, std=0.0, dtype=dtype, rngs=rngs)
        self.self_attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.cross_attention = Attention(width, heads, source=hidden_dim, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, int(width * sizes.mlp_ratio), width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float32[Array, "batch draws chunk width"],
        time: Float32[Array, "batch draws width"],
        keys_values: KeyValue,
    ) -> Float32[Array, "batch draws chunk width"]:
        """One layer; the draws of a sample share the keys and values of its tokens."""
        batch, draws, chunk, width = x.shape
        scale = jnp.split(self.modulation(time)[:, :, None], 6, axis=-1)
        normed = (self.norm(x) * (1.0 + scale[0]) + scale[1]).reshape(batch * draws, chunk, width)
        own = self.self_attention(normed, self.self_attention.keys_values(normed))
        x = x + own.reshape(x.shape)
        normed = (self.norm(x) * (1.0 + scale[2]) + scale[3]).reshape(batch, draws * chunk, width)
        x = x + self.cross_attention(normed, keys_values).reshape(x.shape)
        return x + self.mlp(self.norm(x) * (1.0 + scale[4]) + scale[5])


class FlowHead(InpaintingHead):
    """Flow matching on the chunk; the grippers are part of the chunk or have their own binary head."""

    Config: ClassVar[type[HeadConfig]] = FlowConfig

    def __init__(
        self,
        config: FlowConfig,
        sizes: HeadSizes,
        *,
        hidden_dim: int,
        action_dim: int,
        grippers: int,
        chunk: int,
        rngs: nnx.Rngs,
    ) -> None:
        classified, width = grippers if config.gripper == "binary" else 0, sizes.width
        self.config, self.action_dim, self.regressed_dim = config, action_dim, action_dim - classified
        self.regressed_grippers = grippers - classified
        self.token_norm = layer_norm(hidden_dim, rngs=rngs)
        self.token_in = linear(hidden_dim, width, dtype=jnp.float32, rngs=rngs)
        self.action_in = linear(self.regressed_dim, width, axes=(None, "embed"), dtype=jnp.float32, rngs=rngs)
        self.steps = embedding_table(rngs.params(), (chunk, width))
        self.time = Mlp(TIME_FEATURES, width, width, dtype=jnp.float32, rngs=rngs)
        self.layers = nnx.List([FlowLayer(sizes, hidden_dim, rngs=rngs) for _ in range(sizes.layers)])
        self.norm = layer_norm(width, rngs=rngs)
        self.out = linear(width, self.regressed_dim, std=0.0, dtype=jnp.float32, rngs=rngs)
        self.gripper = GripperHead(hidden_dim, sizes, classified, rngs=rngs) if classified else None

    def condition(
        self, tokens: Float32[Array, "batch chunk hidden"]
    ) -> tuple[Float32[Array, "batch 1 chunk width"], list[KeyValue]]:
        """The values that do not depend on noise and time: each step's own token, and every layer's keys and values."""
        normed = self.token_norm(tokens)
        aligned = (self.token_in(normed) + self.steps[...])[:, None]
        return aligned, [layer.cross_attention.keys_values(normed) for layer in self.layers]

    def velocity(
        self,
        noisy: Float32[Array, "batch draws chunk arm"],
        time: Float32[Array, "batch draws"],
        condition: tuple[Float32[Array, "batch 1 chunk width"], list[KeyValue]],
    ) -> Float32[Array, "batch draws chunk arm"]:
        """The predicted ``action - noise``; one flow time for the whole chunk."""
        aligned, keys_values = condition
        x = self.action_in(noisy) + aligned
        embedded = nnx.silu(self.time(time_features(time)))
        for layer, pair in zip(self.layers, keys_values, strict=True):
            x = layer(x, embedded, pair)
        return self.out(self.norm(x))

    def loss(
        self,
        tokens: Float32[Array, "batch chunk hidden"],
        action: Float32[Array, "batch chunk action"],
        mask: Bool[Array, "batch chunk"],
        key: jax.Array,
    ) -> HeadLoss:
        """Mean squared error of the velocity over ``draws`` draws of noise and time per sample."""
        draws, arm = self.config.draws, action[:, None, :, : self.regressed_dim]
        noise = jax.random.normal(jax.random.fold_in(key, NOISE), (arm.shape[0], draws, *arm.shape[2:]))
        time = sample_time(jax.random.fold_in(key, TIME), noise.shape[:2], self.config.time_beta)
        t = time[..., None, None]
        error = self.velocity((1.0 - t) * noise + t * arm, time, self.condition(tokens)) - (arm - noise)
        values = jnp.mean(jnp.square(error), axis=1)
        metrics = arm_and_gripper(values, mask, regressed=self.regressed_grippers)
        result = HeadLoss(masked_mean(values, mask), metrics)
        return add_gripper(self.gripper, self.config.gripper_weight, result, tokens, action, mask)

    def sample(
        self, tokens: Float32[Array, "batch chunk hidden"], key: jax.Array
    ) -> Float32[Array, "batch chunk action"]:
        """Integrates from noise drawn here; the tokens' keys and values are computed once."""
        noise = draw_noise(key, (*tokens.shape[:2], self.action_dim))
        return self.integrate(tokens, noise)

    def inpaint(
        self, tokens: Float32[Array, "batch chunk hidden"], key: jax.Array, known: Known
    ) -> Float32[Array, "batch chunk action"]:
        """As :meth:`sample`, from the same noise, guided to what is known: see :func:`guided`."""
        noise = draw_noise(key, (*tokens.shape[:2], self.action_dim))
        return self.integrate(tokens, noise, known)

    def integrate(
        self,
        tokens: Float32[Array, "batch chunk hidden"],
        noise: Float32[Array, "batch chunk action"],
        known: Known | None = None,
    ) -> Float32[Array, "batch chunk action"]:
        """The chunk that standard normal ``noise`` flows to, guided to what is known."""
        condition = self.condition(tokens)

        def velocity(x: Array, time: Array) -> Array:
            return self.velocity(x, jnp.broadcast_to(time, x.shape[:2]), condition)

        field: Velocity = velocity
        if known is not None:
            field = guided(velocity, known.action[:, None, :, : self.regressed_dim], known.weight[:, None])
        start = self.config.noise_scale * noise[:, None, :, : self.regressed_dim]
        arm = integrate(field, start, self.config.steps, self.config.solver)[:, 0]
        return arm if self.gripper is None else jnp.concatenate([arm, self.gripper.sample(tokens)], axis=-1)
