"""A backbone in one file: which words the instruction has and the mean colour of the images, in any order."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float32, UInt8

from wmjax.core.errors import UserError
from wmjax.core.rng import stable_hash
from wmjax.models.backbones.base import Backbone, BackboneConfig, Hidden, Inject, PromptConfig
from wmjax.models.nn.transformer import Mlp, layer_norm, linear


@dataclasses.dataclass(frozen=True)
class BagConfig(BackboneConfig):
    """Words are counted in ``buckets``, by their hash; ``hidden`` is the number of channels."""

    buckets: int = 64
    hidden: int = 32

    @property
    def width(self) -> int:
        """Channels of the hidden states."""
        return self.hidden


class BagPrompt(NamedTuple):
    """How often each bucket's words occur."""

    counts: Float32[Array | np.ndarray, "batch buckets"]


class Count:
    """From an instruction to its counts; it reads no files."""

    def __init__(self, buckets: int) -> None:
        self._buckets = buckets
        self.hashes: dict[str, str] = {}

    def __call__(self, instruction: str) -> BagPrompt:
        """The counts of one instruction."""
        words = instruction.split()
        if not words:
            raise UserError("instruction is empty; every prompt needs the task in words")
        chosen = [stable_hash(word) % self._buckets for word in words]
        return BagPrompt(np.bincount(chosen, minlength=self._buckets).astype(np.float32)[None])


class BagOfWords(Backbone):
    """Words and colours are added to each of the policy's own tokens, and an MLP follows."""

    Config: ClassVar[type[BackboneConfig]] = BagConfig

    def __init__(self, config: BagConfig, *, rngs: nnx.Rngs) -> None:
        width = config.width
        self.words_in = linear(config.buckets, width, axes=(None, "embed"), rngs=rngs)
        self.colours_in = linear(3, width, axes=(None, "embed"), rngs=rngs)
        self.norm = layer_norm(width, rngs=rngs)
        self.mlp = Mlp(width, 2 * width, width, rngs=rngs)

    @classmethod
    def prepare(
        cls, config: BagConfig, prompt: PromptConfig, image_sizes: Sequence[tuple[int, int]], own: int
    ) -> Count:
        """Prompts need no tokenizer and have no length."""
        return Count(config.buckets)

    def encode(
        self,
        prompt: BagPrompt,
        images: UInt8[Array, "batch cameras height width 3"],
        own: Float32[Array, "batch own hidden"],
        key: jax.Array | None = None,
    ) -> Float32[Array, "batch own hidden"]:
        """The policy's own tokens, each with all that there is to see."""
        colours = jnp.mean(images / 255.0, axis=(1, 2, 3), dtype=jnp.float32)
        return own + (self.words_in(prompt.counts) + self.colours_in(colours))[:, None]

    def decode(
        self,
        state: Float32[Array, "batch own hidden"],
        key: jax.Array | None = None,
        *,
        layers: tuple[int, ...] = (),
        inject: Inject | None = None,
        last: int | None = None,
    ) -> tuple[Hidden, None]:
        """One layer, and none to inject something after: ``config.depth`` is 0."""
        return Hidden(state + self.mlp(self.norm(state)), jnp.ones(state.shape[:2], bool)), None

    def words(
        self, prompt: BagPrompt, own: int
    ) -> tuple[Float32[Array, "batch length hidden"], Bool[Array, "batch length"]]:
        """The whole bag as one word."""
        bag = self.words_in(prompt.counts)[:, None]
        return bag, jnp.ones(bag.shape[:2], bool)
