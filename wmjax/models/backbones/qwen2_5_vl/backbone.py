"""Qwen2.5-VL as a :class:`wmjax.models.backbones.base.Backbone`: the interface that the policy network uses."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, UInt8

from wmjax.core.errors import UserError
from wmjax.core.files import write_json
from wmjax.core.reading import read_json
from wmjax.models.backbones.base import (
    Backbone,
    BackboneConfig,
    Hidden,
    Inject,
    Prepare,
    PromptConfig,
    Put,
    Seen,
)
from wmjax.models.backbones.pretrained import backbone_folder
from wmjax.models.backbones.qwen2_5_vl import adapters, weights
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig, load_hf_config
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.backbones.qwen2_5_vl.prompt import (
    COMPANIONS,
    MINI_TOKENIZER,
    MULTIPLE,
    TOKENIZER,
    Prompt,
    PromptBuilder,
)

CONFIG = "config.json"
OTHER_FIELDS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "video_token_id", "vision_token_id", "max_position_embeddings",
    "max_window_layers", "initializer_range", "attention_dropout", "sliding_window", "use_cache",
)  # fmt: skip
"""Fields of a base's config that no computation here depends on and other libraries read."""


class State(NamedTuple):
    """Embeddings, the positions (time, height, width) of every token, and False at padding."""

    embeddings: Float[Array, "batch length hidden"]
    positions: Int32[Array, "batch 3 length"]
    mask: Bool[Array, "batch length"]


class Qwen2_5_VLBackbone(Qwen2_5_VL, Backbone):
    """The policy's own tokens replace the placeholders at the end of a prompt."""

    Config: ClassVar[type[BackboneConfig]] = Qwen2_5_VLConfig
    EMBEDDINGS: ClassVar[str] = "embedding"
    VISION: ClassVar[str] = "vision"

    @classmethod
    def prepare(
        cls, config: Qwen2_5_VLConfig, prompt: PromptConfig, image_sizes: Sequence[tuple[int, int]], own: int
    ) -> Prepare:
        """The chat template with image placeholders, then placeholders of the policy's own tokens."""
        return PromptBuilder(tokenizer_folder(prompt.tokenizer), image_sizes, own - 1, prompt.length, config)

    @classmethod
    def prompt_shapes(
        cls, config: Qwen2_5_VLConfig, prompt: PromptConfig, image_sizes: Sequence[tuple[int, int]], own: int
    ) -> Prompt:
        """Of the settings' length; no tokenizer is read."""
        shape = (1, prompt.length)
        return Prompt(
            jax.ShapeDtypeStruct(shape, jnp.int32),
            jax.ShapeDtypeStruct(shape, jnp.bool_),
            jax.ShapeDtypeStruct((1, 3, prompt.length), jnp.int32),
        )

    @classmethod
    def trim(cls, prompts: Prompt) -> Prompt:
        """Without columns on the left that are padding in every prompt; the length stays a multiple of 8."""
        tokens, mask, positions = prompts
        length = tokens.shape[1]
        used = length - int(np.argmax(np.any(mask, axis=0)))
        cut = length - min(length, -(-used // MULTIPLE) * MULTIPLE)
        return Prompt(tokens[:, cut:], mask[:, cut:], positions[..., cut:])

    @classmethod
    def count_tokens(cls, prompts: Prompt) -> Int[np.ndarray, " batch"]:
        """Those that the mask has, in which images, the state and the actions have their placeholders."""
        return np.asarray(prompts.mask).sum(1)

    @classmethod
    def prompt_files(cls, prompt: PromptConfig) -> list[Path]:
        """Tokenizer, chat template and config of a checkpoint folder."""
        folder = Path(prompt.tokenizer)
        if prompt.tokenizer == "mini" or not folder.is_dir():
            return []
        return [folder / name for name in (*COMPANIONS, CONFIG) if (folder / name).is_file()]

    def encode(
        self,
        prompt: Prompt,
        images: Seen,
        own: Float32[Array, "batch own hidden"],
        key: jax.Array | None = None,
    ) -> State:
        """Token embeddings with image features and the policy's own tokens in place.

        Raises:
            UserError: the prompt is shorter than its placeholders, or images that do not fit.

        """
        count = own.shape[1]
        if prompt.tokens.shape[1] <= count:
            raise UserError(f"prompt length is {prompt.tokens.shape[1]}; chunk {count - 1} needs more than {count}")
        if images.ndim == 3:
            embeddings = self.place_features(prompt.tokens, images)
        else:
            embeddings = self.embed(prompt.tokens, images, key)
        placed = jnp.concatenate([embeddings[:, :-count], own.astype(embeddings.dtype)], axis=1)
        return State(placed, prompt.positions, prompt.mask)

    def decode(
        self,
        state: State,
        key: jax.Array | None = None,
        *,
        layers: tuple[int, ...] = (),
        inject: Inject | None = None,
        last: int | None = None,
    ) -> tuple[Hidden, Float32[Array, " batch"] | None]:
        """One scan over the layers, with a condition at those that are named."""
        if inject is None:
            hidden, ratio = self.forward(*state, key, last), None
        else:
            hidden, ratio = self.forward_injected(*state, key, layers, inject, last)
        return Hidden(hidden, state.mask[:, -hidden.shape[1] :]), ratio

    def words(
        self, prompt: Prompt, own: int
    ) -> tuple[Float[Array, "batch length hidden"], Bool[Array, "batch length"]]:
        """Token embeddings; image placeholders are not words."""
        tokens = jnp.asarray(prompt.tokens)
        is_word = jnp.asarray(prompt.mask) & (tokens != self.config.image_token)
        return self.embed(tokens), is_word.at[:, -own:].set(False)

    def image_tokens(
        self, prompt: Prompt, images: UInt8[Array, "batch cameras height width 3"], camera: int
    ) -> Float[Array, "batch 2 rows columns hidden"]:
        """Merged tokens; the decoder is causal, so those after the last layer depend only on earlier tokens."""
        batch, cameras, height, width, _ = images.shape
        rows, columns = (edge // self.config.vision.factor for edge in (height, width))
        placeholders = prompt.tokens[0] == self.config.image_token
        places = jnp.flatnonzero(placeholders, size=cameras * rows * columns).reshape(cameras, -1)[camera]
        embeddings = self.embed(prompt.tokens, images)
        hidden = self.forward(embeddings, prompt.positions, prompt.mask)
        return jnp.stack([x[:, places].reshape(batch, rows, columns, -1) for x in (embeddings, hidden)], axis=1)

    @classmethod
    def require_weights(cls, folder: Path, config: Qwen2_5_VLConfig, prompt: PromptConfig) -> None:
        """The architecture must be the same, and the tokenizer the one that the weights were trained with."""
        require_architecture(folder, config)
        require_tokenizer(folder, tokenizer_folder(prompt.tokenizer))

    @classmethod
    def read_weights(cls, folder: Path, config: Qwen2_5_VLConfig, put: Put) -> None:
        """From safetensors, one tensor at a time."""
        require_architecture(folder, config)
        weights.load(folder, config, put=put)

    def export(self, folder: Path, prompt: PromptConfig, base: str | None, *, merge: bool) -> str:
        """Adapters in PEFT's format; merged or without any, a Hugging Face checkpoint with its tokenizer."""
        adapted = self.config.lora.rank > 0
        if merge and not adapted:
            raise UserError("--merge: the run has no adapters (model.backbone.lora.rank is 0); leave --merge out")
        if adapted and not merge:
            adapters.save(self, folder, base=base)
            return "adapters in PEFT's format"
        weights.save(adapters.merge(self) if merge else self, folder)
        if base is not None:
            _copy_other_fields(backbone_folder(base), folder)
        source = tokenizer_folder(prompt.tokenizer)
        for name in COMPANIONS:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        return "the backbone as a Hugging Face checkpoint"


def _copy_other_fields(base: Path, folder: Path) -> None:
    """Copies the base's other fields, such as its special tokens, into the exported ``config.json``."""
    path, fix = folder / CONFIG, "export again"
    ours = read_json(path, dict[str, Any], fix)
    theirs = read_json(base / CONFIG, dict[str, Any], "download it again")
    text = theirs.get("text_config") or {}
    vision = {**(theirs.get("vision_config") or {}), **ours["vision_config"]}
    copied = {name: text[name] for name in OTHER_FIELDS if name in text}
    copied |= {name: theirs[name] for name in OTHER_FIELDS if name in theirs}
    write_json(path, {**copied, **ours, "vision_config": vision})


def tokenizer_folder(name: str) -> Path:
    """The folder of a tokenizer and its companion files: ``mini``, a folder or a hub id, downloaded once.

    Raises:
        UserError: no such folder and the hub does not deliver it.

    """
    return MINI_TOKENIZER if name == "mini" else backbone_folder(name, "prompt.tokenizer")


def require_tokenizer(folder: Path, prompts: Path) -> None:
    """Checks that a backbone gets the tokens that it was trained on, if its folder holds its tokenizer.

    Args:
        folder: of the backbone.
        prompts: folder of the tokenizer that makes the prompts.

    Raises:
        UserError: the two tokenizers differ.

    """
    own, other = folder / TOKENIZER, prompts / TOKENIZER
    if own.is_file() and own.read_bytes() != other.read_bytes():
        raise UserError(f"{own} is not {other}, which makes the prompts; set prompt.tokenizer to {folder}")


def require_architecture(folder: Path, config: Qwen2_5_VLConfig) -> None:
    """Checks that tensors which fit by their shapes also compute the same function: heads, windows, rotation, ...

    Raises:
        UserError: the checkpoint's ``config.json`` and the config differ; names the field and both values.

    """
    theirs, ours = _architecture(load_hf_config(folder)), _architecture(config)
    for name, value in theirs.items():
        if value != ours[name]:
            raise UserError(
                f"{folder} has {name} = {value}, model.backbone has {ours[name]}; take weights and sizes from one model"
            )


def _architecture(config: Qwen2_5_VLConfig) -> dict[str, Any]:
    """What the function depends on: not adapters, dtypes or how it is run."""
    parts = {part: dataclasses.asdict(getattr(config, part)) for part in ("vision", "text")}
    fields = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    return fields | {name: getattr(config, name) for name in ("tied", "image_token")}
