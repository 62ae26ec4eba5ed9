"""The policy network: VLM, world memory and action head composed.

    images, instruction, state -> VLM -> action tokens -> (+ world memory) -> head -> action chunk

The state and the action queries are at the prompt's last ``1 + chunk`` positions.
"""

import dataclasses
from dataclasses import field
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float32

from wmjax.core.errors import UserError
from wmjax.core.settings import Corruption, Depth, Range, Settings
from wmjax.models.backbones.base import BACKBONES, Backbone, BackboneConfig, Hidden, Seen, State, default_backbone
from wmjax.models.heads.base import HEADS, ActionHead, HeadConfig, HeadSizes, InpaintingHead, Known, default_head
from wmjax.models.inputs import ModelInput
from wmjax.models.nn.transformer import Mlp, embedding_table
from wmjax.models.world.conditioning import Context, ContextSizes
from wmjax.models.world.config import WorldMemoryConfig, require_condition
from wmjax.models.world.injection import InjectionConfig
from wmjax.models.world.memory import WorldMemory, WorldOutput
from wmjax.models.world.prophet import ProphetConfig, WorldLossConfig

__all__ = ["VLA", "Backbone", "ModelInput", "VLAConfig"]

MEMORY, HEAD, EMBED, DECODE = range(4)
"""Names folded into the key of a loss: world memory, action head, and the VLM's ``encode`` and ``decode``."""


@dataclasses.dataclass(frozen=True)
class VLAConfig(Settings, section="model"):
    """The policy network. Variants own ``memory`` and ``world``, heads own ``head``, scales own the sizes.

    Without ``use_state`` a learned token replaces the state, and the Prophet's context has zeros. ``cameras`` is the
    number of the observation's cameras that the VLM gets, from the first (None: all). Without ``use_images`` it gets
    black ones, at the same cost, so that a policy sees only through its world memory. ``pending`` is the number of
    pending actions that the network receives: the actions of the ``train.delay`` control steps before its chunk begins
    (0: none; else ``train.delay``). With ``roll_state`` the state that it gets is rolled forward by them, see
    :func:`wmjax.data.motion.roll_state`. ``query_std`` is the initial size of the action queries; with published
    weights it is that of their token embeddings (:func:`match_embeddings`). ``dtype`` is that of Prophet and memory;
    heads, norms and gate are always float32. ``action_dim``, ``grippers`` (the number of gripper commands, which are
    the last values of a normalised action) and ``state_dim`` follow from the demonstrations, see
    :func:`wmjax.experiment.dimensions.with_dimensions`.
    """

    memory: WorldMemoryConfig = field(default_factory=WorldMemoryConfig)
    world: WorldLossConfig = field(default_factory=WorldLossConfig)
    head: HeadConfig = field(default_factory=default_head)
    backbone: BackboneConfig = field(default_factory=default_backbone)
    prophet: ProphetConfig = field(default_factory=ProphetConfig)
    injection: InjectionConfig = field(default_factory=InjectionConfig)
    head_sizes: HeadSizes = field(default_factory=HeadSizes)
    chunk: Depth = 8
    action_dim: Annotated[int, Range(0, 1_000_000)] = 0
    grippers: Annotated[int, Range(0, 1_000)] = 0
    state_dim: Annotated[int, Range(0, 1_000_000)] = 0
    use_state: bool = True
    cameras: Depth | None = None
    use_images: bool = True
    pending: Annotated[int, Range(0, 10_000)] = 0
    roll_state: bool = False
    query_std: Annotated[float, Range(0, 100, above=True)] = 0.5
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_condition(self.memory, self.prophet)
        if self.prophet.linear_rank and self.world.target != "delta":
            raise UserError(
                f"prophet.linear_rank is {self.prophet.linear_rank} with world.target {self.world.target!r}; the "
                "linear part predicts changes, set world.target to delta or prophet.linear_rank to 0"
            )
        if self.roll_state and not self.use_state:
            raise UserError("model.roll_state is true with model.use_state false; set one of them otherwise")
        depth = self.backbone.depth
        for layer in self.injection.layers:
            if not 0 <= layer < depth:
                raise UserError(f"injection.layers contains {layer}; the backbone has {depth} layers, from 0 on")


def make_head(config: VLAConfig, hidden_dim: int, rngs: nnx.Rngs) -> ActionHead:
    """The head that the config names.

    Raises:
        UserError: unknown kind.

    """
    make, sizes = HEADS.resolve(config.head.kind), config.head_sizes
    return make(
        config.head,
        sizes,
        hidden_dim=hidden_dim,
        action_dim=config.action_dim,
        grippers=config.grippers,
        chunk=config.chunk,
        rngs=rngs,
    )


def make_world(config: VLAConfig, memory: WorldMemoryConfig, rngs: nnx.Rngs) -> WorldMemory:
    """The world memory of a policy, or a part of it if ``memory`` is not the config's own."""
    hidden_dim = config.backbone.width
    return WorldMemory(
        memory,
        config.world,
        config.prophet,
        config.injection,
        hidden_dim=hidden_dim,
        sizes=ContextSizes(config.state_dim, hidden_dim, config.action_dim, config.chunk),
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )


def match_embeddings(config: VLAConfig, params: nnx.State, frozen: nnx.State) -> tuple[nnx.State, nnx.State]:
    """The states of a policy whose own tokens are as large as the words of its backbone.

    The learned tokens are drawn at ``query_std``, which suits a backbone of random values. Published embeddings are of
    another size: the queries of a 3B model would be 20 times larger than its words. The drawn values are scaled.

    Args:
        config: of the policy.
        params: its trainable state, with the backbone's weights in place.
        frozen: the rest of its parameters, likewise.

    """
    name = BACKBONES.resolve(config.backbone.kind).EMBEDDINGS
    if not name:
        return params, frozen
    leaves = dict(nnx.to_flat_state(params))
    words = (leaves | dict(nnx.to_flat_state(frozen)))[("backbone", name)].get_value()
    scale = jax.jit(lambda x: jnp.std(x.astype(jnp.float32)) / config.query_std)(words)
    for path in (("queries",), ("state_in",)):  # the state's token is learned only without a state
        if path in leaves:
            old = leaves[path].get_value()
            resized = jax.jit(jnp.multiply, out_shardings=old.sharding)(old, scale)
            leaves[path] = leaves[path].replace(resized)
    return nnx.from_flat_state(leaves), frozen


class VLA(nnx.Module):
    """Vision-language-action policy with world memory. Actions and state are normalised here."""

    def __init__(self, config: VLAConfig, *, rngs: nnx.Rngs, backbone: Backbone | None = None):
        """Builds the network, with a given backbone of the configured width or a new one."""
        self.config, hidden_dim = config, config.backbone.width
        if backbone is None:
            backbone = BACKBONES.resolve(config.backbone.kind)(config.backbone, rngs=rngs)
        self.backbone = backbone
        # Without state its token is learned: an MLP of nothing would hold kernels that no gradient reaches.
        self.state_in = (
            Mlp(config.state_dim, hidden_dim, hidden_dim, dtype=jnp.float32, rngs=rngs)
            if config.use_state
            else embedding_table(rngs.params(), (1, hidden_dim), config.query_std)
        )
        self.queries = embedding_table(rngs.params(), (config.chunk, hidden_dim), config.query_std)
        # Before the memory, which differs between variants: what they share starts from the same values at one seed.
        self.head = make_head(config, hidden_dim, rngs)
        pending_size = config.pending * config.action_dim
        self.pending_in = (
            Mlp(pending_size, hidden_dim, hidden_dim, dtype=jnp.float32, rngs=rngs) if pending_size else None
        )
        self.world = make_world(config, config.memory, rngs)

    def hidden(self, inputs: ModelInput, key: jax.Array | None = None, last: int | None = None) -> Hidden:
        """The VLM's hidden states, with the state and the action queries at the last positions.

        With ``last``, only that many of the last positions are read afterwards, and the others may be missing.

        Raises:
            UserError: the prompt is shorter than its placeholders, or state or pending actions have another size.

        """
        return self.backbone.decode(self._encode(inputs, key), _fold(key, DECODE), last=last)[0]

    @property
    def _read_positions(self) -> int | None:
        """How many of the last hidden states are read: the action tokens, or all (None) for a prediction from them."""
        return None if self.config.memory.input == "hidden" else self.config.chunk

    @property
    def injects_between_layers(self) -> bool:
        """Whether the memory enters between decoder layers, so that the hidden states depend on it."""
        return self.config.memory.inject and bool(self.config.injection.layers)

    def encode_prompt(self, inputs: ModelInput, key: jax.Array | None = None) -> Hidden | State:
        """The part of the VLM that does not depend on the memory: all of it, or the layers before the injection."""
        return (
            self._encode(inputs, key) if self.injects_between_layers else self.hidden(inputs, key, self._read_positions)
        )

    def _encode(self, inputs: ModelInput, key: jax.Array | None) -> State:
        if inputs.state.shape[-1] != self.config.state_dim:
            raise UserError(
                f"state has {inputs.state.shape[-1]} values; the model has state_dim {self.config.state_dim}"
            )
        batch = inputs.state.shape[0]
        if isinstance(self.state_in, Mlp):
            state = self.state_in(inputs.state)[:, None]
        else:
            state = jnp.broadcast_to(self.state_in[...], (batch, *self.state_in.shape))
        if self.pending_in is not None:
            state = state + self.pending_in(self._pending(inputs))[:, None]
        queries = jnp.broadcast_to(self.queries[...], (batch, *self.queries.shape))
        own = jnp.concatenate([state, queries], axis=1)
        return self.backbone.encode(inputs.prompt, self._seen(inputs), own, _fold(key, EMBED))

    def _seen(self, inputs: ModelInput) -> Seen:
        """The images that the VLM gets, or their features where those are given."""
        if inputs.features is not None:
            return inputs.features
        assert inputs.images is not None, "only a Prophet alone is trained without images"
        images = inputs.images[:, : self.config.cameras]
        return images if self.config.use_images else jnp.zeros_like(images)

    def _pending(self, inputs: ModelInput) -> Float32[Array, "batch values"]:
        """The pending actions of each sample as one row."""
        size = (self.config.pending, self.config.action_dim)
        if inputs.pending is None or inputs.pending.shape[1:] != size:
            found = "missing" if inputs.pending is None else list(inputs.pending.shape)
            raise UserError(f"pending actions are {found}; the model expects [batch, {size[0]}, {size[1]}]")
        return inputs.pending.reshape(len(inputs.pending), -1)

    def action_tokens(
        self,
        inputs: ModelInput,
        *,
        key: jax.Array | None = None,
        train: bool = False,
        corruption: Corruption = "none",
        memory: Float32[Array, "batch future tokens dim"] | None = None,
    ) -> WorldOutput:
        """The post-injection tokens that either head reads. The VLM runs once; ``inputs.future`` is not read.

        It is where the memory itself is the true future (``memory.input`` is ``future``) and none is given.
        """
        encoded = self.encode_prompt(inputs, key if train else None)
        return self.act_on(encoded, inputs, key=key, train=train, corruption=corruption, memory=memory)

    def act_on(
        self,
        encoded: Hidden | State,
        inputs: ModelInput,
        *,
        key: jax.Array | None = None,
        train: bool = False,
        corruption: Corruption = "none",
        memory: Float32[Array, "batch future tokens dim"] | None = None,
    ) -> WorldOutput:
        """:meth:`action_tokens` from what :meth:`encode_prompt` returned; images are not read."""
        chunk = self.config.chunk
        if self.config.memory.needs_future and memory is None:
            memory = self.world.true_future(inputs.latents, inputs.future, inputs.future_mask)
        settings: dict[str, Any] = {
            "key": _fold(key, MEMORY),
            "train": train,
            "corruption": corruption,
            "memory": memory,
            "prophet_context": None if self.world.is_forward_model else self.prophet_context(inputs),
        }
        if not self.injects_between_layers:
            return self.world(encoded.tokens, encoded.mask, chunk, inputs.latents, **settings)
        inject, prediction = self.world.between_layers(len(inputs.state), chunk, inputs.latents, **settings)
        layers, dropout = self.config.injection.layers, _fold(key if train else None, DECODE)
        hidden, ratio = self.backbone.decode(encoded, dropout, layers=layers, inject=inject, last=self._read_positions)
        assert ratio is not None
        return self.world.after_layers(hidden.tokens, chunk, prediction, ratio)

    def prophet_context(
        self,
        inputs: ModelInput,
        action: Float32[Array, "batch chunk action"] | None = None,
        action_mask: Bool[Array, "batch chunk"] | None = None,
    ) -> Context:
        """The Prophet's inputs beside latents. Words carry no gradient: the world loss must not train the VLM."""
        words = is_text = None
        if "instruction" in self.config.prophet.condition:
            words, is_text = self.backbone.words(inputs.prompt, 1 + self.config.chunk)
            words = jax.lax.stop_gradient(words)
        return Context(self._state(inputs), words, is_text, action, action_mask)

    def _state(self, inputs: ModelInput) -> Float32[Array, "batch state"]:
        return inputs.state if self.config.use_state else jnp.zeros_like(inputs.state)

    def recall(
        self,
        inputs: ModelInput,
        action: Float32[Array, "batch chunk action"] | None = None,
        action_mask: Bool[Array, "batch chunk"] | None = None,
    ) -> Float32[Array, "batch future tokens dim"]:
        """The memory that the inputs would make, without the VLM; images are not read.

        Only a forward model's depends on the actions, which are normalised.

        Raises:
            UserError: latents missing or of another shape.

        """
        context = self.prophet_context(inputs, action, action_mask)
        return self.world.recall(inputs.latents, inputs.state.shape[0], context)

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
            key: randomness of all dropout and of the head.
            train: whether dropout is on.

        Returns:
            The loss, and scalars for the log.

        Raises:
            UserError: an input that the variant needs is missing or misshapen.

        """
        if action.shape[1:] != (self.config.chunk, self.config.action_dim):
            raise UserError(
                f"action is {action.shape}; the model predicts [batch, {self.config.chunk}, {self.config.action_dim}]"
            )
        blind = inputs._replace(future=None, future_mask=None)
        acted = inputs if self.config.memory.needs_future else blind
        out = self.action_tokens(acted, key=key, train=train)
        head = self.head.loss(out.tokens, action, action_mask, jax.random.fold_in(key, HEAD))
        if self.world.is_forward_model:  # only it has the true actions as input, and nothing of it is injected
            context = self.prophet_context(inputs, action, action_mask)
            out = out._replace(prediction=self.world.recall(inputs.latents, action.shape[0], context))
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
        key: jax.Array,
        *,
        corruption: Corruption = "none",
        corruption_key: jax.Array | None = None,
        memory: Float32[Array, "batch future tokens dim"] | None = None,
        known: Known | None = None,
    ) -> tuple[Float32[Array, "batch chunk action"], dict[str, Any]]:
        """One normalised action chunk per sample.

        Args:
            inputs: the batch; ``future`` is not read.
            key: randomness of the head; one key, or one per row, with which rows do not depend on each other.
            corruption: what to do to the world memory.
            corruption_key: randomness of the corruption ``noise``.
            memory: replaces the predicted memory: an oracle's, or another episode's (see :meth:`recall`).
            known: what the chunk has to continue, for a head that can (:class:`InpaintingHead`).

        Returns:
            The chunk, and ``prediction`` (latents, if there is a Prophet; a forward model's are those that the chunk
            leads to) with the memory's metrics per sample.

        """
        out = self.action_tokens(inputs, key=corruption_key, corruption=corruption, memory=memory)
        if known is None:
            action = self.head.sample(out.tokens, key)
        else:
            assert isinstance(self.head, InpaintingHead)
            action = self.head.inpaint(out.tokens, key, known)
        info: dict[str, Any] = dict(out.metrics)
        prediction = out.prediction
        if self.world.is_forward_model:
            prediction = self.world.recall(inputs.latents, action.shape[0], self.prophet_context(inputs, action))
        return action, info if prediction is None else info | {"prediction": prediction}


def _fold(key: jax.Array | None, name: int) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, name)
