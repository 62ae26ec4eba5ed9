"""The world memory: it is predicted from latents, trained by the world loss, and injected into the action tokens."""

from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int32

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.settings import SHUFFLED, Corruption
from wmjax.models.backbones.base import Inject
from wmjax.models.nn.stack import stack_layers
from wmjax.models.world.conditioning import Context, ContextSizes
from wmjax.models.world.config import Input, WorldMemoryConfig
from wmjax.models.world.injection import GatedCrossAttention, Injection, InjectionConfig
from wmjax.models.world.prophet import Prophet, ProphetConfig, WorldLossConfig, world_loss, world_metrics

__all__ = ["Input", "WorldMemory", "WorldMemoryConfig", "WorldOutput", "corrupt"]

DROPOUT, NOISE = 0, 1
"""Names folded into the memory's key."""


class WorldOutput(NamedTuple):
    """Action tokens after the memory, float32; ``prediction`` is ẑ(t+1..t+K), or None without a Prophet.

    ``metrics`` are numbers of each sample: a rollout logs them per episode, a training step averages them.
    """

    tokens: Float32[Array, "batch chunk hidden"]
    prediction: Float32[Array, "batch future pooled dim"] | None
    metrics: dict[str, Float32[Array, " batch"]]


class WorldMemory(nnx.Module):
    """Prophet and gated cross-attention, as far as the variant has them. ``__call__`` never reads a true future."""

    def __init__(
        self,
        config: WorldMemoryConfig,
        objective: WorldLossConfig,
        prophet: ProphetConfig,
        injection: InjectionConfig,
        *,
        hidden_dim: int,
        sizes: ContextSizes | None = None,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.config, self.objective, self.shape = config, objective, prophet
        self.is_forward_model = config.has_prophet and "actions" in prophet.condition
        self.layers = injection.layers

        def make(keys: nnx.Rngs) -> GatedCrossAttention:
            return GatedCrossAttention(
                injection,
                hidden_dim=hidden_dim,
                latent_dim=prophet.latent_dim,
                frames=prophet.future,
                tokens=prophet.tokens,
                dtype=dtype,
                rngs=keys,
            )

        several = len(self.layers)
        # Before the Prophet, which e1copy lacks: what the variants share starts from the same values at one seed.
        self.injection = (stack_layers(make, several, rngs) if several else make(rngs)) if config.inject else None
        source = hidden_dim if config.input == "hidden" else None
        self.prophet = (
            Prophet(prophet, target=objective.target, hidden_dim=source, sizes=sizes, dtype=dtype, rngs=rngs)
            if config.has_prophet
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
        memory: Float32[Array, "batch future pooled dim"] | None = None,
        prophet_context: Context | None = None,
    ) -> WorldOutput:
        """Predicts and injects after the VLM's last layer.

        Args:
            hidden: the VLM's hidden states; the last ``chunk`` are the action tokens.
            mask: True at tokens that are not padding.
            chunk: number of action tokens.
            latents: normalised history, oldest first.
            key: for memory dropout and the noise corruption.
            train: whether memory dropout is on.
            corruption: how the memory is corrupted.
            memory: replaces the predicted memory, before the corruption: an oracle's, or another episode's, which
                ``shuffled`` and ``shuffled_in_task`` need.
            prophet_context: the Prophet's inputs beside latents, if it is conditioned on any. A forward model predicts
                nothing here, because there are no actions yet.

        Raises:
            UserError: latents missing or of another shape; unknown corruption; a shuffled memory that is not given.

        """
        tokens = hidden[:, -chunk:].astype(jnp.float32)
        prediction = self._predict(hidden, mask, latents, prophet_context)
        if self.injection is None:
            return WorldOutput(tokens, prediction, {})
        memory_and_mask = self._injected_memory(prediction, latents, memory, corruption, key, train)
        injected = self.injection(tokens, *memory_and_mask)
        return WorldOutput(injected.tokens, prediction, self._metrics(injected.ratio))

    def between_layers(
        self,
        batch: int,
        chunk: int,
        latents: Float32[Array, "batch history tokens dim"] | None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
        corruption: Corruption = "none",
        memory: Float32[Array, "batch future pooled dim"] | None = None,
        prophet_context: Context | None = None,
    ) -> tuple[Inject, Float32[Array, "batch future pooled dim"] | None]:
        """As :meth:`__call__` for ``injection.layers``: a function to call after the named layers, and the prediction.

        The function takes hidden states and the number of the injection; it returns the hidden states with the
        action tokens replaced, and ``memory/ratio`` of each sample.
        """
        assert self.injection is not None and self.layers
        prediction = None if self.prophet is None else self.recall(latents, batch, prophet_context)
        memory_and_mask = self._injected_memory(prediction, latents, memory, corruption, key, train)
        graph, state = nnx.split(self.injection)
        arrays = nnx.as_pure(state)

        def inject(x: Float[Array, "batch length hidden"], number: Int32[Array, ""]) -> tuple[Array, Array]:
            layer: GatedCrossAttention = nnx.merge(graph, jax.tree.map(lambda stacked: stacked[number], arrays))
            out: Injection = layer(x[:, -chunk:].astype(jnp.float32), *memory_and_mask)
            return jnp.concatenate([x[:, :-chunk], out.tokens.astype(x.dtype)], axis=1), out.ratio

        return inject, prediction

    def after_layers(
        self,
        hidden: Float[Array, "batch length hidden"],
        chunk: int,
        prediction: Float32[Array, "batch future pooled dim"] | None,
        ratio: Float32[Array, " batch"],
    ) -> WorldOutput:
        """The output of a decoder between whose layers was injected; ``ratio`` is the mean over the injections."""
        return WorldOutput(hidden[:, -chunk:].astype(jnp.float32), prediction, self._metrics(ratio))

    def _injected_memory(
        self,
        prediction: Float32[Array, "batch future pooled dim"] | None,
        latents: Float32[Array, "batch history tokens dim"] | None,
        memory: Float32[Array, "batch future pooled dim"] | None,
        corruption: Corruption,
        key: jax.Array | None,
        train: bool,
    ) -> tuple[Float32[Array, "batch future pooled dim"], Bool[Array, " batch"] | None]:
        """The memory that the action tokens attend to, and the mask of the samples that have one."""
        if memory is None:
            if corruption in SHUFFLED:
                raise UserError(f"corruption {corruption!r} needs a memory; give that of another episode (VLA.recall)")
            memory = prediction if prediction is not None else self._observed(latents)
        memory = memory if self.config.action_gradient else jax.lax.stop_gradient(memory)
        return corrupt(memory, corruption, key), self._memory_mask(memory.shape[0], key, train, corruption)

    def _metrics(self, ratio: Float32[Array, " batch"]) -> dict[str, Float32[Array, " batch"]]:
        assert self.injection is not None
        gate = jnp.mean(jnp.abs(jnp.tanh(self.injection.gate[...])))
        return {"memory/gate": jnp.broadcast_to(gate, ratio.shape), "memory/ratio": ratio}

    def loss(
        self,
        prediction: Float32[Array, "batch predicted pooled dim"],
        latents: Float32[Array, "batch history tokens dim"] | None,
        future: Float32[Array, "batch future tokens dim"],
        mask: Bool[Array, "batch masked"],
    ) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
        """The unweighted world loss and its metrics."""
        current = self.prepare(latents)[:, -1]
        self._require_target(future, mask)
        target, mask = self.prophet_latents(future[:, : self.shape.future]), mask[:, : self.shape.future]
        loss = world_loss(self.objective, prediction, target, current, mask)
        return loss, {"world/loss": loss} | world_metrics(prediction, target, current, mask)

    def _require_target(self, future: Float32[Array, "batch _ tokens dim"], mask: Bool[Array, "batch _"]) -> None:
        if future.shape[1] < self.shape.future or mask.shape != future.shape[:2]:
            raise UserError(
                f"future latents are {future.shape} with a mask {mask.shape}; "
                f"prophet.future {self.shape.future} frames are needed"
            )

    def prepare(
        self, latents: Float32[Array, "batch frames tokens dim"] | None
    ) -> Float32[Array, "batch history pooled dim"]:
        """The newest ``history`` frames in the Prophet's shape: pooled to one token if it has one."""
        if latents is None:
            raise UserError(f"latents are missing; memory.input {self.config.input!r} needs them, give a latent store")
        if latents.shape[1] < self.shape.history:
            raise UserError(f"latents have {latents.shape[1]} frames; prophet.history needs {self.shape.history}")
        return self.prophet_latents(latents[:, -self.shape.history :])

    def prophet_latents(
        self, latents: Float32[Array, "batch frames tokens dim"]
    ) -> Float32[Array, "batch frames pooled dim"]:
        """See :func:`prophet_latents`."""
        return prophet_latents(latents, self.shape, self.objective)

    def _predict(
        self,
        hidden: Float[Array, "batch length hidden"],
        mask: Bool[Array, "batch length"],
        latents: Float32[Array, "batch history tokens dim"] | None,
        prophet_context: Context | None,
    ) -> Float32[Array, "batch future pooled dim"] | None:
        if self.prophet is None or self.is_forward_model:
            return None
        if self.config.input != "hidden":
            return self.recall(latents, hidden.shape[0], prophet_context)
        # Without latents (acting) nothing reads this prediction; zeros keep it well defined.
        shape = (hidden.shape[0], self.shape.tokens, self.shape.latent_dim)
        current = jnp.zeros(shape) if latents is None else self.prepare(latents)[:, -1]
        return self.prophet.predict_from_hidden(hidden, mask, current)

    def recall(
        self,
        latents: Float32[Array, "batch history tokens dim"] | None,
        batch: int,
        prophet_context: Context | None = None,
    ) -> Float32[Array, "batch future pooled dim"]:
        """The memory of variants that make it without the VLM; where it is the true future, z(t) replaces it."""
        if self.prophet is None:
            return self._observed(latents)
        if self.config.input == "constant":
            shape = (batch, self.shape.history, self.shape.tokens, self.shape.latent_dim)
            return self.prophet(jnp.ones(shape), prophet_context)  # not zeros: the input projection would never train
        return self.prophet(self.prepare(latents), prophet_context)

    def _observed(
        self, latents: Float32[Array, "batch history tokens dim"] | None
    ) -> Float32[Array, "batch future pooled dim"]:
        """The observed latents in the memory's shape: z(t) repeated, or the history, oldest first, and then z(t)."""
        observed, future = self.prepare(latents), self.shape.future
        if self.config.input != "history":
            return jnp.repeat(observed[:, -1:], future, axis=1)
        observed = observed[:, -future:]
        return jnp.concatenate([observed, jnp.repeat(observed[:, -1:], future - observed.shape[1], axis=1)], axis=1)

    def true_future(
        self,
        latents: Float32[Array, "batch history tokens dim"] | None,
        future: Float32[Array, "batch future tokens dim"] | None,
        mask: Bool[Array, "batch future"] | None,
    ) -> Float32[Array, "batch future pooled dim"]:
        """The memory of the input ``future``. The last frame that can be foreseen replaces the later ones.

        Args:
            latents: the history.
            future: the frames to come, as recorded.
            mask: True up to the episode's end and the next provoked failure.

        Raises:
            UserError: there is no future, or one of other sizes.

        """
        if future is None or mask is None:
            raise UserError(
                "future latents are missing; memory.input 'future' needs them: give a latent store, or an oracle"
            )
        self._require_target(future, mask)
        present, ahead = self.prepare(latents)[:, -1:], self.shape.future
        frames = jnp.concatenate([present, self.prophet_latents(future[:, :ahead])], axis=1)
        known = jnp.sum(jnp.cumprod(mask[:, :ahead].astype(jnp.int32), axis=1), axis=1)
        chosen = jnp.minimum(jnp.arange(1, 1 + ahead), known[:, None])
        return jnp.take_along_axis(frames, chosen[:, :, None, None], axis=1)

    def _memory_mask(
        self, batch: int, key: jax.Array | None, train: bool, corruption: Corruption
    ) -> Bool[Array, " batch"] | None:
        """True for samples that have a memory, False for dropped ones; None if all have one."""
        if corruption == "closed":
            return jnp.zeros((batch,), bool)
        if not train or not self.config.dropout:
            return None
        return jax.random.bernoulli(jax.random.fold_in(_need(key), DROPOUT), 1.0 - self.config.dropout, (batch,))


def prophet_latents(
    latents: Float32[Array, "batch frames tokens dim"], shape: ProphetConfig, objective: WorldLossConfig
) -> Float32[Array, "batch frames pooled dim"]:
    """Latents in the shape that a Prophet predicts: pooled to one token and layer-normed, if it does so.

    Raises:
        UserError: tokens or channels other than the Prophet's.

    """
    tokens, dim = latents.shape[2:]
    if dim != shape.latent_dim or shape.tokens not in (1, tokens):
        raise UserError(
            f"latents are [..., {tokens}, {dim}]; the Prophet is built for [..., {shape.tokens}, "
            f"{shape.latent_dim}], set prophet.tokens and prophet.latent_dim"
        )
    if shape.tokens != tokens:
        latents = jnp.mean(latents, axis=2, keepdims=True)
    return jax.nn.standardize(latents, axis=-1, epsilon=1e-6) if objective.layer_norm else latents


def corrupt(
    memory: Float32[Array, "batch future tokens dim"], corruption: str, key: jax.Array | None
) -> Float32[Array, "batch future tokens dim"]:
    """The memory that replaces the predicted one in an evaluation.

    ``closed`` is applied by the mask; for the shuffled corruptions the given memory already is another episode's.

    Raises:
        UserError: unknown corruption.

    """
    if corruption not in get_args(Corruption):
        raise unknown_name("corruption", corruption, get_args(Corruption))
    if corruption == "zero":
        return jnp.zeros_like(memory)
    if corruption == "noise":
        return jax.random.normal(jax.random.fold_in(_need(key), NOISE), memory.shape)
    return memory


def _need(key: jax.Array | None) -> jax.Array:
    assert key is not None, "memory dropout and noise need a key"
    return key
