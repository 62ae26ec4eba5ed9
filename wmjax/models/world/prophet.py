"""The Prophet predicts future V-JEPA latents from a history of them.

Learned queries for ``future`` frames x ``tokens`` positions attend to themselves and to a context: the latent history
(variants e1, e2), or the VLM's hidden states (e2aux). Space and time embeddings are factorised.
"""

import dataclasses
from typing import Annotated, Literal, get_args

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.settings import Depth, Range, Settings, Weight, Width
from wmjax.models.nn.transformer import Attention, Mlp, embedding_table, layer_norm, linear
from wmjax.models.world.conditioning import Condition, Conditioner, Context, ContextSizes
from wmjax.models.world.linear_skip import LinearSkip


@dataclasses.dataclass(frozen=True)
class ProphetConfig(Settings, section="prophet"):
    """Shape of the Prophet.

    ``history`` and ``future`` count frames, ``tokens`` positions per frame (1 pools), ``latent_dim`` channels.
    ``condition`` names its inputs beside latents: ``state``, ``instruction``, or ``actions``, the coming chunk,
    which makes it a forward model (for ``memory.inject = false`` only). With a ``linear_rank`` above 0 the prediction
    is the network's plus a linear map of that rank (:class:`wmjax.models.world.linear_skip.LinearSkip`), which training
    starts at ridge regression.
    """

    width: Width = 192
    layers: Depth = 2
    heads: Depth = 6
    mlp_ratio: Annotated[float, Range(0.1, 100)] = 2.0
    history: Depth = 3
    future: Depth = 4
    tokens: Annotated[int, Range(1, 100_000)] = 16
    latent_dim: Width = 192
    condition: tuple[Condition, ...] = ()
    linear_rank: Annotated[int, Range(0, 100_000)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.linear_rank > (most := self.future * self.latent_dim):
            raise UserError(
                f"prophet.linear_rank is {self.linear_rank}, above the {most} values that are predicted of a position "
                "(prophet.future x prophet.latent_dim); lower it"
            )
        for name in self.condition:
            if name not in get_args(Condition):
                raise unknown_name("prophet.condition", name, get_args(Condition))
        if self.width % self.heads:
            raise UserError(f"prophet.width is {self.width}, not a multiple of prophet.heads {self.heads}; change one")


@dataclasses.dataclass(frozen=True)
class WorldLossConfig(Settings, section="world"):
    """The target of the Prophet and the loss of its predictions.

    ``target`` chooses whether the network's output is added to z(t) (``delta``) or is the prediction itself.
    ``layer_norm`` applies a LayerNorm to every latent token first. The three weights mix: ``cosine`` (one minus
    cosine), ``smooth_l1``, and ``normalised_mse``, the squared error over that of copying z(t).
    """

    target: Literal["delta", "absolute"] = "delta"
    layer_norm: bool = False
    cosine: Weight = 0.0
    smooth_l1: Weight = 0.0
    normalised_mse: Weight = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cosine + self.smooth_l1 + self.normalised_mse:
            raise UserError(
                "world.cosine, smooth_l1 and normalised_mse are all 0; to switch the loss off set "
                "memory.world_loss to 0"
            )


class ProphetLayer(nnx.Module):
    """Pre-norm attention from the queries to [queries, context], then an MLP."""

    def __init__(self, config: ProphetConfig, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        width = config.width
        self.attention_norm = layer_norm(width, rngs=rngs)
        self.attention = Attention(width, config.heads, dtype=dtype, rngs=rngs)
        self.mlp_norm = layer_norm(width, rngs=rngs)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch queries width"],
        context: Float[Array, "batch context width"],
        mask: Bool[Array, "batch both"] | None,
    ) -> Float[Array, "batch queries width"]:
        """One layer; ``context`` is already normalised and is not updated."""
        normed = self.attention_norm(x)
        source = jnp.concatenate([normed, context], axis=1)
        x = x + self.attention(normed, self.attention.keys_values(source), mask)
        return x + self.mlp(self.mlp_norm(x))


class Prophet(nnx.Module):
    """Predicts the latents of the next frames from a latent history or from hidden states."""

    def __init__(
        self,
        config: ProphetConfig,
        *,
        target: Literal["delta", "absolute"] = "delta",
        hidden_dim: int | None = None,
        sizes: ContextSizes | None = None,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds it.

        Args:
            config: its shape.
            target: whether the output is added to z(t) or stands alone.
            hidden_dim: None to predict from latents; else the width of the hidden states to predict from.
            sizes: of its other inputs, if ``config.condition`` names any.
            dtype: dtype of the computation.
            rngs: keys of the initialisation.

        """
        self.config, self.target, self.from_hidden = config, target, hidden_dim is not None
        width = config.width
        self.project = linear(hidden_dim or config.latent_dim, width, dtype=dtype, rngs=rngs)
        self.space = embedding_table(rngs.params(), (config.tokens, width))
        self.future_time = embedding_table(rngs.params(), (config.future, width))
        if not self.from_hidden:
            self.history_time = embedding_table(rngs.params(), (config.history, width))
        self.context_norm = layer_norm(width, rngs=rngs)
        self.layers = nnx.List([ProphetLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.layers)])
        self.norm = layer_norm(width, rngs=rngs)
        # Zero: a delta Prophet starts as the copy baseline.
        self.out = linear(width, config.latent_dim, std=0.0, dtype=dtype, rngs=rngs)
        # Last: the other parameters' initial values do not depend on it.
        assert sizes is not None or not config.condition, "a condition has sizes"
        self.conditioner = (
            Conditioner(config.condition, width, sizes, dtype=dtype, rngs=rngs) if config.condition and sizes else None
        )
        linear_part = bool(config.linear_rank) and not self.from_hidden
        self.linear = (
            LinearSkip(
                config.linear_rank,
                history=config.history,
                future=config.future,
                tokens=config.tokens,
                dim=config.latent_dim,
                rngs=rngs,
            )
            if linear_part
            else None
        )

    def __call__(
        self, history: Float32[Array, "batch history tokens dim"], prophet_context: Context | None = None
    ) -> Float32[Array, "batch future tokens dim"]:
        """Predicts normalised latents from normalised latents, oldest frame first, and from its other inputs.

        Raises:
            UserError: an input that it is conditioned on is missing.

        """
        prediction = self._of_network(history, prophet_context)
        return prediction if self.linear is None else prediction + self.linear(history)

    def _of_network(
        self, history: Float32[Array, "batch history tokens dim"], prophet_context: Context | None
    ) -> Float32[Array, "batch future tokens dim"]:
        """The prediction without the linear map."""
        batch, frames, tokens, _ = history.shape
        embedded = self.project(history) + self.space[...]
        context = (embedded + self.history_time[...][:, None]).reshape(batch, frames * tokens, -1)
        # The newest frame's content starts the queries: each position predicts its own future.
        queries = embedded[:, -1:] + self.future_time[...][:, None]
        if self.conditioner is None:
            return self._predict(queries, context, None, history[:, -1])
        extra, exists = self.conditioner(prophet_context or Context())
        known = jnp.ones((batch, (self.config.future + frames) * tokens), bool)
        mask = jnp.concatenate([known, exists], axis=1)
        return self._predict(queries, jnp.concatenate([context, extra], axis=1), mask, history[:, -1])

    def predict_from_hidden(
        self,
        hidden: Float[Array, "batch length hidden"],
        mask: Bool[Array, "batch length"],
        current: Float32[Array, "batch tokens dim"],
    ) -> Float32[Array, "batch future tokens dim"]:
        """Predicts from hidden states alone; ``current`` is z(t), the base of a delta, and no other input."""
        queries = self.space[...] + self.future_time[...][:, None]
        queries = jnp.broadcast_to(queries, (hidden.shape[0], *queries.shape))
        own = jnp.ones((hidden.shape[0], self.config.future * self.config.tokens), bool)
        return self._predict(queries, self.project(hidden), jnp.concatenate([own, mask], axis=1), current)

    def _predict(
        self,
        queries: Float[Array, "batch future tokens width"],
        context: Float[Array, "batch context width"],
        mask: Bool[Array, "batch both"] | None,
        current: Float32[Array, "batch tokens dim"],
    ) -> Float32[Array, "batch future tokens dim"]:
        batch, future, tokens, width = queries.shape
        x, context = queries.reshape(batch, future * tokens, width), self.context_norm(context)
        for layer in self.layers:
            x = layer(x, context, mask)
        out = self.out(self.norm(x)).astype(jnp.float32).reshape(batch, future, tokens, -1)
        return out + current[:, None] if self.target == "delta" else out


def _masked_mean(values: Float32[Array, "batch future"], mask: Bool[Array, "batch future"]) -> Float32[Array, ""]:
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)


def _squared_errors(
    prediction: Float32[Array, "batch future tokens dim"],
    future: Float32[Array, "batch future tokens dim"],
    current: Float32[Array, "batch tokens dim"],
    mask: Bool[Array, "batch future"],
) -> tuple[Float32[Array, " future"], Float32[Array, " future"]]:
    """Summed squared error of the prediction and of copying z(t), per horizon frame, over unmasked samples."""
    guesses = (prediction, jnp.broadcast_to(current[:, None], future.shape))
    error, copy = (jnp.sum(jnp.sum(jnp.square(guess - future), axis=(2, 3)) * mask, axis=0) for guess in guesses)
    return error, copy


def world_loss(
    config: WorldLossConfig,
    prediction: Float32[Array, "batch future tokens dim"],
    future: Float32[Array, "batch future tokens dim"],
    current: Float32[Array, "batch tokens dim"],
    mask: Bool[Array, "batch future"],
) -> Float32[Array, ""]:
    """The configured mix, over frames that exist. With ``target="delta"`` the cosine is that of the deltas.

    ``normalised_mse`` is the mean over horizon frames of |ẑ-z₊|² / |z_t-z₊|² with both sums over the batch: one
    minus the skill, so that near and far frames weigh the same.
    """
    terms = []
    if config.cosine:
        base = current[:, None] if config.target == "delta" else 0.0
        terms.append(config.cosine * _masked_mean(_cosine_distance(prediction - base, future - base), mask))
    if config.smooth_l1:
        size = jnp.abs(prediction - future)
        huber = jnp.where(size < 1.0, 0.5 * jnp.square(size), size - 0.5)
        terms.append(config.smooth_l1 * _masked_mean(jnp.mean(huber, axis=(2, 3)), mask))
    if config.normalised_mse:
        error, copy = _squared_errors(prediction, future, current, mask)
        count = jnp.sum(mask, axis=0)
        # Latents have unit variance: a floor of 1e-3 per value keeps a motionless batch from exploding.
        floor = 1e-3 * jnp.maximum(count, 1) * float(future.shape[2] * future.shape[3])
        frames = jnp.maximum(jnp.sum(count > 0), 1)
        terms.append(config.normalised_mse * jnp.sum(error / jnp.maximum(copy, floor)) / frames)
    return sum(terms, start=jnp.zeros(()))


def _cosine_distance(
    a: Float32[Array, "batch future tokens dim"], b: Float32[Array, "batch future tokens dim"]
) -> Float32[Array, "batch future"]:
    """One minus cosine per token, averaged over tokens; the epsilon keeps the gradient finite at zero."""
    norms = jnp.sqrt((jnp.sum(a * a, -1) + 1e-2) * (jnp.sum(b * b, -1) + 1e-2))
    return jnp.mean(1.0 - jnp.sum(a * b, -1) / norms, axis=-1)


def world_metrics(
    prediction: Float32[Array, "batch future tokens dim"],
    future: Float32[Array, "batch future tokens dim"],
    current: Float32[Array, "batch tokens dim"],
    mask: Bool[Array, "batch future"],
) -> dict[str, Float32[Array, ""]]:
    """Skill over copy per horizon frame, 1 - |ẑ-z₊|²/|z_t-z₊|², and two variances over those of the truth.

    ``variance_ratio`` is that of ẑ over that of z₊, ``change_ratio`` that of ẑ - z(t) over that of z₊ - z(t), over
    the frames that exist of the batch, per channel and position. Near 0 the prediction has collapsed; for a Prophet
    that adds to z(t) only the second shows this, because z(t) itself varies.
    """
    error, copy = _squared_errors(prediction, future, current, mask)
    skill = jnp.where(copy > 0.0, 1.0 - error / jnp.maximum(copy, 1e-6), 0.0)
    metrics = {f"world/skill_{i + 1}": skill[i] for i in range(skill.shape[0])}
    now, weight = current[:, None], mask.astype(jnp.float32)
    weight = weight / jnp.maximum(jnp.sum(weight, axis=0), 1.0)

    def variance(x: Float32[Array, "batch future tokens dim"]) -> Float32[Array, ""]:
        # About the mean, not E[x²] - E[x]²: a collapsed prediction's variance is the difference of two large numbers.
        mean = jnp.sum(weight[..., None, None] * x, axis=0)
        return jnp.mean(jnp.sum(weight * jnp.mean(jnp.square(x - mean), axis=(2, 3)), axis=0))

    pairs = {"variance": (prediction, future), "change": (prediction - now, future - now)}
    ratios = {f"world/{name}_ratio": variance(a) / jnp.maximum(variance(b), 1e-6) for name, (a, b) in pairs.items()}
    return metrics | ratios
