"""The policy network: VLM, world memory and action head composed.

    images, instruction, state -> VLM -> action tokens -> (+ world memory) -> head -> action chunk

The state and the action queries stand at the prompt's last ``1 + chunk`` positions.
"""

import dataclasses
from dataclasses import field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

from wmjax.data.observation import Prompt
from wmjax.errors import UserError, unknown_name
from wmjax.models.flow import FlowHead
from wmjax.models.heads import ActionHead, HeadConfig, HeadSizes, RegressionHead
from wmjax.models.memory import InjectionConfig
from wmjax.models.prophet import ProphetConfig, WorldLossConfig
from wmjax.models.qwen2_5_vl.config import Qwen2_5_VLConfig, preset
from wmjax.models.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.transformer import Mlp, table
from wmjax.models.world import Corruption, WorldMemory, WorldMemoryConfig, WorldOutput

MEMORY, HEAD, EMBED, DECODE = range(4)
"""Names folded into the key of a loss: world memory, action head, and the two halves of the VLM."""


class ModelInput(NamedTuple):
    """A batch for the policy. ``future`` and its mask serve the world loss only and never reach an action."""

    images: UInt8[Array, "batch cameras height width 3"]
    state: Float32[Array, "batch state"]
    prompt: Prompt
    latents: Float32[Array, "batch history tokens dim"] | None = None
    future: Float32[Array, "batch future tokens dim"] | None = None
    future_mask: Bool[Array, "batch future"] | None = None


class Backbone(Protocol):
    """What the VLA asks of a vision-language model; keys are for dropout in its adapters."""

    def embed(
        self,
        tokens: Int32[Array, "batch length"],
        images: UInt8[Array, "batch cameras height width 3"],
        key: jax.Array | None = None,
    ) -> Float[Array, "batch length hidden"]:
        """Token embeddings with image features in place."""
        ...

    def decode(
        self,
        embeddings: Float[Array, "batch length hidden"],
        positions: Int32[Array, "batch 3 length"],
        mask: Bool[Array, "batch length"],
        key: jax.Array | None = None,
    ) -> Float[Array, "batch length hidden"]:
        """Hidden states after the final norm."""
        ...


@dataclasses.dataclass(frozen=True)
class VLAConfig:
    """The policy network. Recipes own ``memory``, ``world`` and ``head``; scales own the sizes.

    ``use_state`` off feeds zeros for the state; ``cameras`` is how many of the observation's cameras the VLM sees,
    from the first (None: all). ``query_std`` is the initial size of the action queries. ``dtype`` is that of Prophet
    and memory; heads, norms and gate are float32 anyway.
    """

    memory: WorldMemoryConfig = field(default_factory=WorldMemoryConfig)
    world: WorldLossConfig = field(default_factory=WorldLossConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    backbone: Qwen2_5_VLConfig = field(default_factory=lambda: preset("mini"))
    prophet: ProphetConfig = field(default_factory=ProphetConfig)
    injection: InjectionConfig = field(default_factory=InjectionConfig)
    head_sizes: HeadSizes = field(default_factory=HeadSizes)
    chunk: int = 8
    action_dim: int = 7
    state_dim: int = 8
    use_state: bool = True
    cameras: int | None = None
    query_std: float = 0.5
    dtype: str = "float32"


def make_head(config: VLAConfig, hidden_dim: int, rngs: nnx.Rngs) -> ActionHead:
    """The head that the config names.

    Raises:
        UserError: unknown kind.

    """
    kinds: dict[str, type[RegressionHead] | type[FlowHead]] = {"regression": RegressionHead, "flow": FlowHead}
    if config.head.kind not in kinds:
        raise unknown_name("head.kind", config.head.kind, kinds)
    make, sizes = kinds[config.head.kind], config.head_sizes
    return make(config.head, sizes, hidden_dim=hidden_dim, action_dim=config.action_dim, chunk=config.chunk, rngs=rngs)


class VLA(nnx.Module):
    """Vision-language-action policy with world memory. Actions and state are normalised here."""

    def __init__(self, config: VLAConfig, *, rngs: nnx.Rngs, backbone: Backbone | None = None):
        """Builds it, with a given backbone of the configured width or a new one."""
        self.config, dtype, hidden_dim = config, jnp.dtype(config.dtype), config.backbone.text.hidden
        self.backbone = Qwen2_5_VL(config.backbone, rngs=rngs) if backbone is None else backbone
        self.state_in = Mlp(config.state_dim, hidden_dim, hidden_dim, dtype=jnp.float32, rngs=rngs)
        self.queries = table(rngs.params(), (config.chunk, hidden_dim), config.query_std)
        self.world = WorldMemory(
            config.memory,
            config.world,
            config.prophet,
            config.injection,
            hidden_dim=hidden_dim,
            dtype=dtype,
            rngs=rngs,
        )
        self.head = make_head(config, hidden_dim, rngs)

    def hidden(self, inputs: ModelInput, key: jax.Array | None = None) -> Float[Array, "batch length hidden"]:
        """The VLM's hidden states, with the state and the action queries at the last positions.

        Raises:
            UserError: the prompt is shorter than its placeholders, or the state has another size.

        """
        prompt, own = inputs.prompt, 1 + self.config.chunk
        if prompt.tokens.shape[1] <= own:
            raise UserError(
                f"prompt length is {prompt.tokens.shape[1]}; chunk {self.config.chunk} needs more than {own}"
            )
        if inputs.state.shape[-1] != self.config.state_dim:
            raise UserError(
                f"state has {inputs.state.shape[-1]} values; the model has state_dim {self.config.state_dim}"
            )
        images = inputs.images[:, : self.config.cameras]
        embeddings = self.backbone.embed(prompt.tokens, images, _fold(key, EMBED))
        state = self.state_in(inputs.state if self.config.use_state else jnp.zeros_like(inputs.state))
        queries = jnp.broadcast_to(self.queries[...], (state.shape[0], *self.queries.shape))
        placed = jnp.concatenate([state[:, None], queries], axis=1).astype(embeddings.dtype)
        embeddings = jnp.concatenate([embeddings[:, :-own], placed], axis=1)
        return self.backbone.decode(embeddings, prompt.positions, prompt.mask, _fold(key, DECODE))

    def action_tokens(
        self,
        inputs: ModelInput,
        *,
        key: jax.Array | None = None,
        train: bool = False,
        corruption: Corruption = "none",
        memory: Float32[Array, "batch future tokens dim"] | None = None,
    ) -> WorldOutput:
        """The post-injection tokens that either head reads. The VLM runs once; ``inputs.future`` is not read."""
        hidden = self.hidden(inputs, key if train else None)
        return self.world(
            hidden,
            inputs.prompt.mask,
            self.config.chunk,
            inputs.latents,
            key=_fold(key, MEMORY),
            train=train,
            corruption=corruption,
            memory=memory,
        )

    def loss(
        self,
        inputs: ModelInput,
        action: Float32[Array, "batch chunk action"],
        action_mask: Bool[Array, "batch chunk"],
        key: jax.Array,
        train: bool = True,
    ) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
        """Action loss plus the weighted world loss.

        Args:
            inputs: the batch; ``future`` may be missing if the world loss has weight 0.
            action: normalised expert actions.
            action_mask: False past the episode's end.
            key: randomness of all dropout, flow noise and flow time.
            train: whether dropout is on.

        Returns:
            The loss, and scalars for the log.

        Raises:
            UserError: an input that the arm needs is missing or misshapen.

        """
        if action.shape[1:] != (self.config.chunk, self.config.action_dim):
            raise UserError(
                f"action is {action.shape}; the model predicts [batch, {self.config.chunk}, {self.config.action_dim}]"
            )
        acted = inputs._replace(future=None, future_mask=None)
        out = self.action_tokens(acted, key=key, train=train)
        head = self.head.loss(out.tokens, action, action_mask, jax.random.fold_in(key, HEAD))
        world, metrics = self._world_loss(inputs, out)
        loss = head.loss + world
        memory = {name: jnp.mean(values) for name, values in out.metrics.items()}
        return loss, {"loss": loss, "action/loss": head.loss} | head.metrics | memory | metrics

    def _world_loss(
        self, inputs: ModelInput, out: WorldOutput
    ) -> tuple[Float32[Array, ""] | float, dict[str, Float32[Array, ""]]]:
        """The weighted world loss; with weight 0 it is still computed, so that e1 costs what e2 costs."""
        memory = self.config.memory
        if out.prediction is None or memory.input == "constant":
            return 0.0, {}
        if inputs.future is None or inputs.future_mask is None:
            if memory.world_loss:
                raise UserError(f"future latents are missing; memory.world_loss {memory.world_loss} needs them")
            return 0.0, {}
        loss, metrics = self.world.loss(out.prediction, inputs.latents, inputs.future, inputs.future_mask)
        return memory.world_loss * loss, metrics

    def sample(
        self,
        inputs: ModelInput,
        noise: Float32[Array, "batch chunk action"],
        *,
        corruption: Corruption = "none",
        key: jax.Array | None = None,
        memory: Float32[Array, "batch future tokens dim"] | None = None,
    ) -> tuple[Float32[Array, "batch chunk action"], dict[str, Any]]:
        """One normalised action chunk per sample.

        Args:
            inputs: the batch; ``future`` is not read.
            noise: standard normal, the start of the flow. Given row by row, rows do not depend on each other.
            corruption: what to do to the world memory.
            key: randomness of the corruption ``noise``.
            memory: replaces the predicted memory (oracle).

        Returns:
            The chunk, and ``prediction`` (latents, if there is a Prophet) with the memory's metrics per sample.

        """
        out = self.action_tokens(inputs, key=key, corruption=corruption, memory=memory)
        action = self.head.sample(out.tokens, noise)
        info: dict[str, Any] = dict(out.metrics)
        return action, info if out.prediction is None else info | {"prediction": out.prediction}


def _fold(key: jax.Array | None, name: int) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, name)
