"""The world memory as three settings: what predicts it, what it is trained on, and whether the policy sees it."""

import dataclasses
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from wmjax.errors import UserError, unknown_name
from wmjax.models.memory import GatedCrossAttention, InjectionConfig
from wmjax.models.prophet import Prophet, ProphetConfig, WorldLossConfig, world_loss, world_metrics

Input = Literal["none", "latents", "constant", "copy", "hidden"]
Corruption = Literal["none", "zero", "noise", "shuffled", "closed"]
"""What evaluation may do to the memory: nothing, all zeros (the mean latent), unit noise, another episode's memory,
or an empty memory (the gate closed)."""

DROPOUT, NOISE = 0, 1
"""Names folded into the memory's key."""


@dataclasses.dataclass(frozen=True)
class WorldMemoryConfig:
    """An arm of the experiment.

    ``input`` is what the memory is made from: ``latents`` (Prophet on the latent history), ``constant`` (the same
    Prophet on ones), ``copy`` (z(t) repeated, no Prophet), ``hidden`` (a Prophet on the VLM's hidden states) or
    ``none``. ``world_loss`` weighs the prediction loss, ``inject`` lets action tokens attend to the memory.
    ``action_gradient`` lets the action loss train the Prophet. ``dropout`` is the share of training samples with an
    empty memory.
    """

    input: Input = "latents"
    world_loss: float = 0.5
    inject: bool = True
    action_gradient: bool = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.input not in get_args(Input):
            raise unknown_name("memory.input", self.input, get_args(Input))
        if self.world_loss < 0.0 or (self.world_loss > 0.0 and self.input not in ("latents", "hidden")):
            raise UserError(
                f"memory.world_loss is {self.world_loss} with memory.input {self.input!r}; only inputs latents and "
                f"hidden can be trained to predict, set it to 0"
            )
        if self.inject and self.input in ("none", "hidden"):
            raise UserError(f"memory.inject is true with memory.input {self.input!r}; set memory.inject to false")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"memory.dropout is {self.dropout}; use a value in [0, 1)")

    @property
    def has_prophet(self) -> bool:
        """Whether there is a network that predicts."""
        return self.input in ("latents", "constant", "hidden")

    @property
    def needs_latents(self) -> bool:
        """Whether V-JEPA latents must be given (``hidden`` needs them in the loss only)."""
        return self.input in ("latents", "copy")


ARMS: dict[str, WorldMemoryConfig] = {
    "e0": WorldMemoryConfig(input="none", world_loss=0.0, inject=False),
    "e0plus": WorldMemoryConfig(input="constant", world_loss=0.0),
    "e1copy": WorldMemoryConfig(input="copy", world_loss=0.0),
    "e1": WorldMemoryConfig(input="latents", world_loss=0.0),
    "e2": WorldMemoryConfig(input="latents"),
    "e2aux": WorldMemoryConfig(input="hidden", inject=False),
}
"""The experiment matrix of docs/design.md."""


class WorldOutput(NamedTuple):
    """Action tokens after the memory, float32; ``prediction`` is ẑ(t+1..t+K), or None without a Prophet.

    ``metrics`` are numbers of each sample: a rollout logs them per episode, a training step averages them.
    """

    tokens: Float32[Array, "batch chunk hidden"]
    prediction: Float32[Array, "batch future tokens dim"] | None
    metrics: dict[str, Float32[Array, "batch"]]


class WorldMemory(nnx.Module):
    """Prophet and gated cross-attention, as far as the arm has them. Never sees a true future in ``__call__``."""

    def __init__(
        self,
        config: WorldMemoryConfig,
        objective: WorldLossConfig,
        prophet: ProphetConfig,
        injection: InjectionConfig,
        *,
        hidden_dim: int,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        self.config, self.objective, self.shape = config, objective, prophet
        source = hidden_dim if config.input == "hidden" else None
        self.prophet = (
            Prophet(prophet, target=objective.target, hidden_dim=source, dtype=dtype, rngs=rngs)
            if config.has_prophet
            else None
        )
        self.injection = (
            GatedCrossAttention(
                injection,
                hidden_dim=hidden_dim,
                latent_dim=prophet.latent_dim,
                frames=prophet.future,
                tokens=prophet.tokens,
                dtype=dtype,
                rngs=rngs,
            )
            if config.inject
            else None
        )

    def __call__(
        self,
        hidden: Float[Array, "batch length hidden"],
        mask: Bool[Array, "batch length"],
        chunk: int,
        latents: Float32[Array, "batch history tokens dim"] | None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
        corruption: Corruption = "none",
        memory: Float32[Array, "batch future tokens dim"] | None = None,
    ) -> WorldOutput:
        """Predicts and injects.

        Args:
            hidden: the VLM's hidden states; the last ``chunk`` are the action tokens.
            mask: True at tokens that are not padding.
            chunk: number of action tokens.
            latents: normalised history, oldest first.
            key: for memory dropout and the noise corruption.
            train: whether memory dropout is on.
            corruption: what to do to the memory.
            memory: replaces the predicted memory (the oracle of an evaluation), before the corruption.

        Raises:
            UserError: latents missing or of another shape; unknown corruption; shuffling a batch of one.

        """
        tokens = hidden[:, -chunk:].astype(jnp.float32)
        prediction = self._predict(hidden, mask, latents)
        if self.injection is None:
            return WorldOutput(tokens, prediction, {})
        if memory is None:
            memory = prediction if prediction is not None else self._copy(latents)
        memory = memory if self.config.action_gradient else jax.lax.stop_gradient(memory)
        memory = corrupt(memory, corruption, key)
        injected = self.injection(tokens, memory, self._keep(tokens.shape[0], key, train, corruption))
        gate = jnp.broadcast_to(injected.gate, injected.ratio.shape)
        metrics = {"memory/gate": gate, "memory/ratio": injected.ratio}
        return WorldOutput(injected.tokens, prediction, metrics)

    def loss(
        self,
        prediction: Float32[Array, "batch future tokens dim"],
        latents: Float32[Array, "batch history tokens dim"] | None,
        future: Float32[Array, "batch future tokens dim"],
        mask: Bool[Array, "batch future"],
    ) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
        """The unweighted world loss and its metrics."""
        current = self.prepare(latents)[:, -1]
        if future.shape[1] < self.shape.future or mask.shape != future.shape[:2]:
            raise UserError(
                f"future latents are {future.shape} with a mask {mask.shape}; "
                f"prophet.future {self.shape.future} frames are needed"
            )
        target, mask = self.fit(future[:, : self.shape.future]), mask[:, : self.shape.future]
        loss = world_loss(self.objective, prediction, target, current, mask)
        return loss, {"world/loss": loss} | world_metrics(prediction, target, current, mask)

    def prepare(
        self, latents: Float32[Array, "batch frames tokens dim"] | None
    ) -> Float32[Array, "batch history tokens dim"]:
        """The newest ``history`` frames as the Prophet sees them: pooled to one token if it has one."""
        if latents is None:
            raise UserError(f"latents are missing; memory.input {self.config.input!r} needs them, give a latent store")
        if latents.shape[1] < self.shape.history:
            raise UserError(f"latents have {latents.shape[1]} frames; prophet.history needs {self.shape.history}")
        return self.fit(latents[:, -self.shape.history :])

    def fit(self, latents: Float32[Array, "batch frames tokens dim"]) -> Float32[Array, "batch frames fitted dim"]:
        """Latents in the shape that the Prophet predicts: pooled to one token and layer-normed, if it does so.

        Raises:
            UserError: tokens or channels other than the Prophet's.

        """
        tokens, dim = latents.shape[2:]
        if dim != self.shape.latent_dim or self.shape.tokens not in (1, tokens):
            raise UserError(
                f"latents are [..., {tokens}, {dim}]; the Prophet is built for [..., {self.shape.tokens}, "
                f"{self.shape.latent_dim}], set prophet.tokens and prophet.latent_dim"
            )
        if self.shape.tokens != tokens:
            latents = jnp.mean(latents, axis=2, keepdims=True)
        return jax.nn.standardize(latents, axis=-1, epsilon=1e-6) if self.objective.layer_norm else latents

    def _predict(
        self,
        hidden: Float[Array, "batch length hidden"],
        mask: Bool[Array, "batch length"],
        latents: Float32[Array, "batch history tokens dim"] | None,
    ) -> Float32[Array, "batch future tokens dim"] | None:
        if self.prophet is None:
            return None
        if self.config.input == "latents":
            return self.prophet(self.prepare(latents))
        shape = (hidden.shape[0], self.shape.history, self.shape.tokens, self.shape.latent_dim)
        if self.config.input == "constant":
            return self.prophet(jnp.ones(shape))  # not zeros: the input projection would never train
        # Without latents (acting) nothing reads this prediction; zeros keep it well defined.
        current = jnp.zeros(shape)[:, -1] if latents is None else self.prepare(latents)[:, -1]
        return self.prophet.predict_from_hidden(hidden, mask, current)

    def _copy(
        self, latents: Float32[Array, "batch history tokens dim"] | None
    ) -> Float32[Array, "batch future tokens dim"]:
        """z(t) repeated for every future frame."""
        return jnp.repeat(self.prepare(latents)[:, -1:], self.shape.future, axis=1)

    def _keep(
        self, batch: int, key: jax.Array | None, train: bool, corruption: Corruption
    ) -> Bool[Array, "batch"] | None:
        """Which samples keep their memory; None says all."""
        if corruption == "closed":
            return jnp.zeros((batch,), bool)
        if not train or not self.config.dropout:
            return None
        return jax.random.bernoulli(jax.random.fold_in(_need(key), DROPOUT), 1.0 - self.config.dropout, (batch,))


def corrupt(
    memory: Float32[Array, "batch future tokens dim"], corruption: Corruption, key: jax.Array | None
) -> Float32[Array, "batch future tokens dim"]:
    """The memory that an evaluation shows instead of the true one; ``closed`` is left to the gate.

    Raises:
        UserError: unknown corruption, or shuffling a batch of one.

    """
    if corruption not in get_args(Corruption):
        raise unknown_name("corruption", corruption, get_args(Corruption))
    if corruption == "zero":
        return jnp.zeros_like(memory)
    if corruption == "noise":
        return jax.random.normal(jax.random.fold_in(_need(key), NOISE), memory.shape)
    if corruption == "shuffled":
        if memory.shape[0] == 1:
            raise UserError("corruption 'shuffled' needs a batch of at least 2 episodes, got 1; run more in parallel")
        return jnp.roll(memory, 1, axis=0)
    return memory


def _need(key: jax.Array | None) -> jax.Array:
    assert key is not None, "memory dropout and noise need a key"
    return key
