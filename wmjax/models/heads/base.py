"""The interface of action heads, and the parts that the heads here share (gripper, masking).

A head turns the post-injection action tokens into a chunk of normalised actions, in float32. It is one class: it owns
its settings (``Config``), its loss and its sampling, and draws its own noise. ``model.head.kind`` names it, by a name
of :data:`HEADS` or as ``package.module:Class``; ``docs/extending.md`` shows how to add one.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float32

from wmjax.core.errors import UserError
from wmjax.core.handover import Realtime
from wmjax.core.registry import Registry
from wmjax.core.settings import Depth, Range, Settings, Weight, Width
from wmjax.models.nn.transformer import Mlp, layer_norm


@dataclasses.dataclass(frozen=True)
class HeadConfig(Settings, section="head"):
    """The base of a head's settings; a subclass adds the head's own fields."""

    kind: str = "flow"

    @classmethod
    def select(cls, values: dict[str, Any]) -> "type[HeadConfig]":
        """The settings' class of the head that ``values`` name."""
        return HEADS.resolve(values.get("kind", cls.kind)).Config

    @property
    def stochastic(self) -> bool:
        """Whether the sampled chunk depends on the key."""
        return False


@dataclasses.dataclass(frozen=True)
class GripperConfig(HeadConfig):
    """Whether the last action dimensions, the grippers, are regressed with the others or classified by their own head.

    The classification's loss weighs ``gripper_weight``.
    """

    gripper: Literal["binary", "regress"] = "binary"
    gripper_weight: Weight = 0.5


@dataclasses.dataclass(frozen=True)
class HeadSizes(Settings, section="head_sizes"):
    """Sizes, which a scale sets for all heads: ``hidden`` is that of MLPs, the others are of a transformer."""

    hidden: Width = 256
    width: Width = 192
    layers: Depth = 3
    heads: Depth = 6
    mlp_ratio: Annotated[float, Range(0.1, 100)] = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise UserError(
                f"head_sizes.width is {self.width}, not a multiple of head_sizes.heads {self.heads}; change one"
            )


Metrics = dict[str, Float32[Array, ""]]


class HeadLoss(NamedTuple):
    """A scalar loss and its terms."""

    loss: Float32[Array, ""]
    metrics: Metrics


class ActionHead(nnx.Module):
    """The interface of a head to the VLA; ``tokens`` are float32, and token i is that of action step i."""

    Config: ClassVar[type[HeadConfig]] = HeadConfig
    """The class of its settings."""

    def __init__(
        self,
        config: Any,
        sizes: HeadSizes,
        *,
        hidden_dim: int,
        action_dim: int,
        grippers: int,
        chunk: int,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds it for tokens of ``hidden_dim`` channels and chunks of ``chunk`` x ``action_dim``.

        The last ``grippers`` dimensions of a normalised action are gripper commands, -1 open and +1 closed.
        """
        raise NotImplementedError

    def loss(
        self,
        tokens: Float32[Array, "batch chunk hidden"],
        action: Float32[Array, "batch chunk action"],
        mask: Bool[Array, "batch chunk"],
        key: jax.Array,
    ) -> HeadLoss:
        """The loss over the unmasked steps; its metrics have ``action/arm``, the loss of the arm's dimensions."""
        raise NotImplementedError

    def sample(
        self, tokens: Float32[Array, "batch chunk hidden"], key: jax.Array
    ) -> Float32[Array, "batch chunk action"]:
        """One action chunk per sample.

        Args:
            tokens: post-injection action tokens.
            key: one key for the batch, or one per row, so that rows do not depend on each other: see
                :func:`draw_noise`.

        """
        raise NotImplementedError


class Known(NamedTuple):
    """The known part of chunks before they are sampled: normalised actions, and the weight of each of their steps."""

    action: Float32[Array, "batch chunk action"]
    weight: Float32[Array | np.ndarray, " chunk"]


class InpaintingHead(ActionHead):
    """A head that can complete a chunk of which a part is known, as real-time chunking does."""

    def inpaint(
        self, tokens: Float32[Array, "batch chunk hidden"], key: jax.Array, known: Known
    ) -> Float32[Array, "batch chunk action"]:
        """One action chunk per sample that continues what is known; the other arguments are those of :meth:`sample`.

        Classified grippers are what :meth:`sample` makes them.
        """
        raise NotImplementedError


HEADS: Registry[ActionHead] = Registry(
    "model.head.kind",
    {
        "regression": "wmjax.models.heads.regression:RegressionHead",
        "flow": "wmjax.models.heads.flow:FlowHead",
    },
)
"""The heads that have a name."""


def require_inpainting(kind: str, realtime: Realtime) -> None:
    """Refuses real-time chunking with a head that cannot complete a chunk.

    Raises:
        UserError: names the head.

    """
    if realtime == "rtc" and not issubclass(HEADS.resolve(kind), InpaintingHead):
        raise UserError(
            f"realtime is 'rtc', but the policy's head (model.head.kind {kind!r}) cannot complete a chunk; choose "
            "realtime 'blend', or a policy with the flow head"
        )


def default_head() -> HeadConfig:
    """The settings of the head that a recipe gets if it names none."""
    return HeadConfig.select({})()


def draw_noise(key: jax.Array, shape: tuple[int, ...]) -> Float32[Array, "*shape"]:
    """Standard normal noise of ``shape``, from one key, or row by row from one key per row (``[shape[0]]`` keys)."""
    if key.ndim == 0:
        return jax.random.normal(key, shape)
    return jax.vmap(lambda row: jax.random.normal(row, shape[1:]))(key)


def masked_mean(values: Float32[Array, "batch chunk *rest"], mask: Bool[Array, "batch chunk"]) -> Float32[Array, ""]:
    """Mean over the unmasked steps and all later axes; zero if every step is masked."""
    weights = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - 2)), values.shape)
    return jnp.sum(jnp.where(weights, values, 0.0)) / jnp.maximum(jnp.sum(weights), 1)


class GripperHead(nnx.Module):
    """Classifies each step's command of each gripper, close (+1) against open (-1)."""

    def __init__(self, hidden_dim: int, sizes: HeadSizes, grippers: int, *, rngs: nnx.Rngs):
        self.grippers = grippers
        self.norm = layer_norm(hidden_dim, rngs=rngs)
        self.mlp = Mlp(hidden_dim, sizes.hidden, grippers, std=0.01, dtype=jnp.float32, rngs=rngs)

    def logits(self, tokens: Float32[Array, "batch chunk hidden"]) -> Float32[Array, "batch chunk grippers"]:
        """Log-odds of closing."""
        return self.mlp(self.norm(tokens))

    def loss(
        self,
        tokens: Float32[Array, "batch chunk hidden"],
        command: Float32[Array, "batch chunk grippers"],
        mask: Bool[Array, "batch chunk"],
    ) -> HeadLoss:
        """Binary cross-entropy (nats) and accuracy."""
        logits, closed = self.logits(tokens), command > 0.0
        loss = masked_mean(optax.sigmoid_binary_cross_entropy(logits, closed.astype(jnp.float32)), mask)
        accuracy = masked_mean(((logits > 0.0) == closed).astype(jnp.float32), mask)
        return HeadLoss(loss, {"action/gripper": loss, "action/gripper_accuracy": accuracy})

    def sample(self, tokens: Float32[Array, "batch chunk hidden"]) -> Float32[Array, "batch chunk grippers"]:
        """The more probable commands, -1 or +1."""
        return jnp.where(self.logits(tokens) > 0.0, 1.0, -1.0)


def arm_and_gripper(
    values: Float32[Array, "batch chunk dim"], mask: Bool[Array, "batch chunk"], *, regressed: int
) -> Metrics:
    """The loss of the arm's dimensions, and of the last ``regressed`` ones, the grippers, if they are among them."""
    if not regressed:
        return {"action/arm": masked_mean(values, mask)}
    arm, gripper = jnp.split(values, [values.shape[-1] - regressed], axis=-1)
    return {"action/arm": masked_mean(arm, mask), "action/gripper": masked_mean(gripper, mask)}


def add_gripper(
    gripper: GripperHead | None,
    weight: float,
    arm: HeadLoss,
    tokens: Float32[Array, "batch chunk hidden"],
    action: Float32[Array, "batch chunk action"],
    mask: Bool[Array, "batch chunk"],
) -> HeadLoss:
    """The arm's loss plus the weighted gripper loss, if the grippers, the last dimensions, have their own head."""
    if gripper is None:
        return arm
    loss, metrics = gripper.loss(tokens, action[..., -gripper.grippers :], mask)
    return HeadLoss(arm.loss + weight * loss, arm.metrics | metrics)
