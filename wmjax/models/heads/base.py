"""Action heads: both read exactly the same post-injection tokens and answer in float32, normalised actions.

This file has what the heads share (gripper, masking) and the regression head; ``flow.py`` has flow matching.
"""

import dataclasses
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float32

from wmjax.core.errors import UserError
from wmjax.models.nn.transformer import Mlp, layer_norm


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Which head and what it learns.

    ``gripper`` says whether the last action dimensions, the grippers, are regressed with the others or classified by a
    head of their own, whose loss weighs ``gripper_weight``. ``regression_loss`` concerns the regression head; the rest
    the flow head: ``draws`` of noise and time per sample and ``time_beta``, the Beta distribution of the flow time (one
    of the two must be 1) in training; ``steps``, ``solver`` and the scale of the initial noise in sampling.
    """

    kind: Literal["regression", "flow"] = "flow"
    gripper: Literal["binary", "regress"] = "binary"
    gripper_weight: float = 0.5
    regression_loss: Literal["mse", "l1", "huber"] = "l1"
    draws: int = 4
    time_beta: tuple[float, ...] = (1.5, 1.0)
    steps: int = 10
    solver: Literal["euler", "heun"] = "euler"
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if len(self.time_beta) != 2 or 1.0 not in self.time_beta or min(self.time_beta) <= 0:
            raise UserError(
                f"head.time_beta is {self.time_beta}; use two positive numbers of which one is 1.0, as in [1.5, 1.0]"
            )
        if self.draws < 1 or self.steps < 1:
            raise UserError(f"head.draws is {self.draws} and head.steps {self.steps}; both must be at least 1")


@dataclasses.dataclass(frozen=True)
class HeadSizes:
    """Sizes: ``hidden`` of the regression and gripper MLPs, the others of the flow head's transformer."""

    hidden: int = 256
    width: int = 192
    layers: int = 3
    heads: int = 6
    mlp_ratio: float = 3.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(
                f"head_sizes.width is {self.width}, not a multiple of head_sizes.heads {self.heads}; change one"
            )


Metrics = dict[str, Float32[Array, ""]]


class HeadLoss(NamedTuple):
    """A scalar loss and what it is made of."""

    loss: Float32[Array, ""]
    metrics: Metrics


class ActionHead(Protocol):
    """What the VLA asks of a head; ``tokens`` are float32 ``[batch, chunk, hidden]``."""

    def loss(
        self,
        tokens: Float32[Array, "batch chunk hidden"],
        action: Float32[Array, "batch chunk action"],
        mask: Bool[Array, "batch chunk"],
        key: jax.Array,
    ) -> HeadLoss:
        """The loss over the unmasked steps."""
        ...

    def sample(
        self, tokens: Float32[Array, "batch chunk hidden"], noise: Float32[Array, "batch chunk action"]
    ) -> Float32[Array, "batch chunk action"]:
        """One action chunk per sample; standard normal ``noise`` is all its randomness."""
        ...


def masked_mean(values: Float32[Array, "batch chunk *rest"], mask: Bool[Array, "batch chunk"]) -> Float32[Array, ""]:
    """Mean over the unmasked steps and everything behind them; zero if nothing is left."""
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
        """The likelier commands, -1 or +1."""
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
