"""Inputs of the Prophet beside latents: the state, the instruction, the actions of the coming chunk.

Each becomes context tokens that the Prophet's queries attend to. A Prophet without such inputs has no parameters for
them.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32

from wmjax.core.errors import UserError
from wmjax.models.nn.transformer import embedding_table, linear

Condition = Literal["state", "instruction", "actions"]


class Context(NamedTuple):
    """A batch of the Prophet's other inputs; only those that it is conditioned on must be given.

    State and actions are normalised. ``words`` are the VLM's token embeddings of the prompt, ``word_mask`` is False
    where they are not text; ``action_mask`` is False past an episode's end (None: all exist).
    """

    state: Float32[Array, "batch state"] | None = None
    words: Float[Array, "batch length hidden"] | None = None
    word_mask: Bool[Array, "batch length"] | None = None
    actions: Float32[Array, "batch chunk action"] | None = None
    action_mask: Bool[Array, "batch chunk"] | None = None


class ContextSizes(NamedTuple):
    """Values of a state, channels of a word, values of an action, actions of a chunk."""

    state: int
    word: int
    action: int
    chunk: int


class Conditioner(nnx.Module):
    """Context to tokens: one for the state, one per word, one per action with an embedding of its step."""

    def __init__(
        self,
        condition: tuple[Condition, ...],
        width: int,
        sizes: ContextSizes,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.condition, self.width = condition, width
        inputs = {"state": sizes.state, "instruction": sizes.word, "actions": sizes.action}
        # One linear layer each, in a fixed order: the parameters do not depend on the order of the names.
        made = {
            name: linear(size, width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
            for name, size in inputs.items()
            if name in condition
        }
        self.state, self.words, self.actions = made.get("state"), made.get("instruction"), made.get("actions")
        self.steps = embedding_table(rngs.params(), (sizes.chunk, width)) if self.actions is not None else None

    def __call__(self, context: Context) -> tuple[Float[Array, "batch extra width"], Bool[Array, "batch extra"]]:
        """The tokens, and which of them exist.

        Raises:
            UserError: something that the Prophet is conditioned on is missing.

        """
        tokens, masks = [], []
        if self.state is not None:
            state = _need(context.state, "state")
            tokens.append(self.state(state)[:, None])
            masks.append(jnp.ones((state.shape[0], 1), bool))
        if self.words is not None:
            words = _need(context.words, "instruction")
            # The order of words matters ("the bowl on the plate"); positions count from the end, which is aligned.
            tokens.append(self.words(words) + positions(words.shape[1], self.width)[::-1])
            masks.append(_need(context.word_mask, "instruction"))
        if self.actions is not None and self.steps is not None:
            actions = _need(context.actions, "actions")
            tokens.append(self.actions(actions) + self.steps[...])
            missing = context.action_mask is None
            masks.append(jnp.ones(actions.shape[:2], bool) if missing else jnp.asarray(context.action_mask))
        return jnp.concatenate(tokens, axis=1), jnp.concatenate(masks, axis=1)


def positions(length: int, width: int) -> Float32[Array, "length width"]:
    """Sines and cosines of the position (Vaswani et al., 2017)."""
    half = (width + 1) // 2
    angles = jnp.arange(length)[:, None] / 10_000.0 ** (jnp.arange(half) / half)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, :width]


def _need(value: Array | None, name: str) -> Array:
    if value is None:
        raise UserError(f"prophet.condition names {name!r}, but none is given; give it, or leave it out of the setting")
    return jnp.asarray(value)
