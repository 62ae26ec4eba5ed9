"""The interface of vision-language backbones: what the policy network requires, independent of the implementation.

A backbone is one class. On the host, :meth:`Backbone.prepare` returns the function from an instruction to a prompt, a
pytree that only the backbone interprets. On the device, ``encode(prompt, images, own)`` makes a state, also opaque,
that ends with the policy's own tokens (the robot's state, then the action queries); ``decode(state)`` runs the layers
and injects a memory between them on request. ``model.backbone.kind`` names it, by a name of :data:`BACKBONES` or as
``package.module:Class``; ``docs/extending.md`` shows how to add one.

A backbone that feeds its decoder more than embeddings fits without a change here. Qwen3-VL's DeepStack adds the
features of several vision layers to the hidden states at the image tokens after the decoder's first layers, one vision
layer per decoder layer. Its ``encode`` would run the vision tower once and keep those features, and where the image
tokens are, in its state beside embeddings and positions; its ``decode`` would add them after those layers, before
``inject`` is called for the same layer. Its interleaved MRoPE needs other angles, which its ``decode`` computes from
the positions that its ``prepare`` put in the prompt.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, UInt8

from wmjax.core.errors import UserError
from wmjax.core.registry import Registry
from wmjax.core.settings import Range, Settings, build
from wmjax.data.observation import Prompt

EXAMPLE = "pick up the bowl"
"""An instruction for values that depend only on the shape of a prompt."""
State = Any
"""The result of ``encode`` and input of ``decode``: a pytree that only the backbone interprets."""

Seen = UInt8[Array, "batch cameras height width 3"] | Float[Array, "batch tokens channels"]
"""Images, or the features that the vision tower (:attr:`Backbone.VISION`) has made of them, camera after camera."""

Inject = Callable[[Float[Array, "batch length hidden"], Int32[Array, ""]], tuple[Array, Array]]
"""``inject(x, i) -> (x, ratio)`` for the i-th of the layers that are named, with one number per sample.

``x`` ends with the policy's own tokens, as everything that a backbone decodes does."""

Put = Callable[[tuple[Any, ...], np.ndarray], Array]
"""Places a parameter that was read on devices: ``put(path, array)``."""


@dataclasses.dataclass(frozen=True)
class PromptConfig(Settings, section="prompt"):
    """``tokenizer`` is ``mini``, a checkpoint's folder or a hub id; ``length`` the tokens every prompt is padded to."""

    tokenizer: str = "mini"
    length: Annotated[int, Range(1, 100_000)] = 80


@dataclasses.dataclass(frozen=True)
class BackboneConfig(Settings, section="backbone"):
    """The base of a backbone's settings; a subclass adds the backbone's own fields."""

    kind: str = dataclasses.field(default="qwen2_5_vl", kw_only=True)

    @classmethod
    def select(cls, values: dict[str, Any]) -> "type[BackboneConfig]":
        """The settings' class of the backbone that ``values`` name."""
        return BACKBONES.resolve(values.get("kind", cls.kind)).Config

    @classmethod
    def expand(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Settings from a file or the command line, with each preset replaced by its values."""
        return values

    @property
    def width(self) -> int:
        """Channels of the hidden states."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """Layers between which a memory can be injected; 0 if that is not supported."""
        return 0

    @property
    def param_dtype(self) -> str:
        """The dtype of the base parameters."""
        return "float32"

    @property
    def adapter_rank(self) -> int:
        """Rank of the low-rank adapters; 0 if there are none."""
        return 0

    @property
    def vision_parameters(self) -> dict[str, Any]:
        """Settings that change what the vision tower of given weights makes of an image: all, unless fewer do."""
        return dataclasses.asdict(self)


class Hidden(NamedTuple):
    """Hidden states after the last layer, of which the last ones are those of the policy's own tokens."""

    tokens: Float[Array, "batch length hidden"]
    mask: Bool[Array, "batch length"]


@runtime_checkable
class Prepare(Protocol):
    """Makes a prompt from an instruction, on the host."""

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of the files that prompts depend on, which a checkpoint stores."""

    def __call__(self, instruction: str) -> Prompt:
        """The prompt of one instruction, a batch of one.

        Raises:
            UserError: an instruction that cannot be a prompt.

        """


class Backbone(nnx.Module):
    """The interface of a vision-language model to the policy network; keys are for dropout in adapters."""

    Config: ClassVar[type[BackboneConfig]] = BackboneConfig
    """The class of its settings."""
    EMBEDDINGS: ClassVar[str] = ""
    """The parameter of its token embeddings, [vocabulary, hidden]; "" if it has none."""
    VISION: ClassVar[str] = ""
    """The attribute that is its vision tower, a module from images ``[images, height, width, 3]`` to features
    ``[images, tokens, channels]``; "" if it has none, or if :meth:`encode` takes no features in place of images."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs) -> None:
        raise NotImplementedError

    @classmethod
    def prepare(cls, config: Any, prompt: PromptConfig, image_sizes: Sequence[tuple[int, int]], own: int) -> Prepare:
        """The function that makes prompts from instructions.

        Args:
            config: its settings.
            prompt: the settings of prompts.
            image_sizes: (height, width) in pixels of each image that goes with a prompt.
            own: number of the policy's own tokens.

        Raises:
            UserError: sizes or settings that do not fit.

        """
        raise NotImplementedError

    @classmethod
    def prompt_shapes(
        cls, config: Any, prompt: PromptConfig, image_sizes: Sequence[tuple[int, int]], own: int
    ) -> Prompt:
        """The prompt of one instruction as a pytree of ``jax.ShapeDtypeStruct``, for programs without data.

        Arguments and errors are those of :meth:`prepare`, which is called by default. A backbone whose tokenizer may
        have to be downloaded overrides this.
        """
        made = cls.prepare(config, prompt, image_sizes, own)(EXAMPLE)
        return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), made)

    @classmethod
    def trim(cls, prompts: Prompt) -> Prompt:
        """A batch of prompts without the padding that all of them have, on the host; by default as they are."""
        return prompts

    @classmethod
    def count_tokens(cls, prompts: Prompt) -> Int[np.ndarray, " batch"] | None:
        """The decoder's tokens of each prompt, those of images and of the policy included, without padding.

        On the host. None, the default, if the backbone does not count any.
        """
        return None

    @classmethod
    def prompt_files(cls, prompt: PromptConfig) -> list[Path]:
        """The files of a folder that the settings name and prompts depend on; none of what ships or is on a hub."""
        return []

    def encode(
        self,
        prompt: Prompt,
        images: Seen,
        own: Float32[Array, "batch own hidden"],
        key: jax.Array | None = None,
    ) -> State:
        """The inputs of the layers: prompt, images or their features and, last, the policy's own tokens."""
        raise NotImplementedError

    def decode(
        self,
        state: State,
        key: jax.Array | None = None,
        *,
        layers: tuple[int, ...] = (),
        inject: Inject | None = None,
        last: int | None = None,
    ) -> tuple[Hidden, Float32[Array, " batch"] | None]:
        """The hidden states after the final norm.

        Args:
            state: from :meth:`encode`.
            key: for dropout in adapters; None switches it off.
            layers: indices of the layers after which ``inject`` is called, ascending; below ``config.depth``.
            inject: what is done there.
            last: only so many of the last positions are read afterwards; the others may be left out. None: all are.

        Returns:
            The hidden states, and the mean of what ``inject`` reports, None without it.

        """
        raise NotImplementedError

    def words(
        self, prompt: Prompt, own: int
    ) -> tuple[Float[Array, "batch length hidden"], Bool[Array, "batch length"]]:
        """Embeddings of the instruction, and a mask of its words: without images, padding and ``own``.

        What is aligned at the end of the prompts is aligned here too.
        """
        raise NotImplementedError

    def image_tokens(
        self, prompt: Prompt, images: UInt8[Array, "batch cameras height width 3"], camera: int
    ) -> Float[Array, "batch 2 rows columns hidden"]:
        """A camera's image tokens at their place in the image, before the layers and after the last; for probes.

        All rows have the prompt of one instruction.

        Raises:
            UserError: the backbone has no such tokens.

        """
        raise UserError(f"a {type(self).__name__} has no image tokens on a grid; wmjax.probe cannot read it")

    @classmethod
    def require_weights(cls, folder: Path, config: Any, prompt: PromptConfig) -> None:
        """Checks that published weights compute what the settings say, on the prompts that the settings make.

        Raises:
            UserError: they do not, or the backbone has no published weights.

        """
        raise UserError(
            f"train.backbone_weights is {str(folder)!r}, but the backbone {config.kind} reads none; leave it empty"
        )

    @classmethod
    def read_weights(cls, folder: Path, config: Any, put: Put) -> None:
        """Reads the base parameters one by one; ``put`` gets each with its path inside the backbone.

        Raises:
            UserError: files that do not fit the settings.

        """
        raise NotImplementedError

    def export(self, folder: Path, prompt: PromptConfig, base: str | None, *, merge: bool) -> str:
        """Writes the backbone into a folder as files that other libraries read; returns what it wrote, in words.

        Args:
            folder: an existing, empty folder.
            prompt: the settings of its prompts.
            base: the folder or hub id of the weights that it started from, if any.
            merge: whether adapters become part of the weights.

        Raises:
            UserError: it has no such format, or nothing to merge.

        """
        raise UserError(f"a {type(self).__name__} has no export; only the backbone qwen2_5_vl has one")


BACKBONES: Registry[Backbone] = Registry(
    "model.backbone.kind", {"qwen2_5_vl": "wmjax.models.backbones.qwen2_5_vl.backbone:Qwen2_5_VLBackbone"}
)
"""The backbones that have a name."""


def default_backbone() -> BackboneConfig:
    """The settings of the backbone that a scale gets if it names none."""
    return build(BackboneConfig, BackboneConfig.select({}).expand({}))
