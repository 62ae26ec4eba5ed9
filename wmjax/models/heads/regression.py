"""Regression head: LayerNorm and an MLP per action token, in float32, on normalised actions."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float32

from wmjax.models.heads.base import (
    ActionHead,
    GripperConfig,
    GripperHead,
    HeadConfig,
    HeadLoss,
    HeadSizes,
    add_gripper,
    arm_and_gripper,
    masked_mean,
)
from wmjax.models.nn.transformer import Mlp, layer_norm


@dataclasses.dataclass(frozen=True)
class RegressionConfig(GripperConfig):
    """``regression_loss`` is that of each regressed value; Huber's threshold is 1."""

    kind: str = "regression"
    regression_loss: Literal["mse", "l1", "huber"] = "l1"


def elementwise(kind: Literal["mse", "l1", "huber"], error: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """The regression loss of each value; Huber with threshold 1."""
    if kind == "mse":
        return jnp.square(error)
    return jnp.abs(error) if kind == "l1" else optax.huber_loss(error)


class RegressionHead(ActionHead):
    """LayerNorm and an MLP per token: action step i from token i."""

    Config: ClassVar[type[HeadConfig]] = RegressionConfig

    def __init__(
        self,
        config: RegressionConfig,
        sizes: HeadSizes,
        *,
        hidden_dim: int,
        action_dim: int,
        grippers: int,
        chunk: int,
        rngs: nnx.Rngs,
    ) -> None:
        classified = grippers if config.gripper == "binary" else 0
        self.config, self.regressed_dim = config, action_dim - classified
        self.regressed_grippers = grippers - classified
        self.norm = layer_norm(hidden_dim, rngs=rngs)
        self.mlp = Mlp(hidden_dim, sizes.hidden, self.regressed_dim, std=0.01, dtype=jnp.float32, rngs=rngs)
        self.gripper = GripperHead(hidden_dim, sizes, classified, rngs=rngs) if classified else None

    def loss(
        self,
        tokens: Float32[Array, "batch chunk hidden"],
        action: Float32[Array, "batch chunk action"],
        mask: Bool[Array, "batch chunk"],
        key: jax.Array,
    ) -> HeadLoss:
        """The configured regression loss; ``key`` is not used."""
        error = self.mlp(self.norm(tokens)) - action[..., : self.regressed_dim]
        values, regressed = elementwise(self.config.regression_loss, error), self.regressed_grippers
        metrics = arm_and_gripper(values, mask, regressed=regressed)
        metrics["action/arm_mse"] = arm_and_gripper(jnp.square(error), mask, regressed=regressed)["action/arm"]
        result = HeadLoss(masked_mean(values, mask), metrics)
        return add_gripper(self.gripper, self.config.gripper_weight, result, tokens, action, mask)

    def sample(
        self, tokens: Float32[Array, "batch chunk hidden"], key: jax.Array
    ) -> Float32[Array, "batch chunk action"]:
        """The prediction; ``key`` is not used."""
        arm = self.mlp(self.norm(tokens))
        return arm if self.gripper is None else jnp.concatenate([arm, self.gripper.sample(tokens)], axis=-1)
