"""Sizes and choices of a Qwen2.5-VL model: presets, and any Hugging Face ``config.json``."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.settings import merge
from wmjax.models.backbones.base import BackboneConfig
from wmjax.models.nn.attention import Implementation
from wmjax.models.nn.lora import LoRAConfig
from wmjax.models.nn.stack import Remat

DType = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Sizes of images and windows are in pixels; ``out`` is the text decoder's width."""

    depth: int = 32
    hidden: int = 1280
    heads: int = 16
    mlp: int = 3420
    out: int = 2048
    channels: int = 3
    patch: int = 14
    temporal_patch: int = 2
    merge: int = 2
    window: int = 112
    full_attention: tuple[int, ...] = (7, 15, 23, 31)

    def __post_init__(self) -> None:
        _require_positive(
            self, "depth", "hidden", "heads", "mlp", "out", "channels", "patch", "temporal_patch", "merge"
        )
        _require_multiple("vision.hidden", self.hidden, 4 * self.heads, "4 * vision.heads (2-D RoPE)")
        _require_multiple("vision.window", self.window, self.factor, "vision.patch * vision.merge")
        outside = [i for i in self.full_attention if not 0 <= i < self.depth]
        if outside:
            raise UserError(f"vision.full_attention has {outside}, outside 0..{self.depth - 1}; name existing blocks")

    @property
    def factor(self) -> int:
        """Pixels of one merged token's side; image sides are multiples of it."""
        return self.patch * self.merge

    @property
    def window_groups(self) -> int:
        """Merged tokens of one window's side."""
        return self.window // self.factor

    @property
    def patch_inputs(self) -> int:
        """Length of a patch vector, ordered (channel, time, row, column)."""
        return self.channels * self.temporal_patch * self.patch**2


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text decoder. ``rope_sections`` are the frequencies given to time, height and width."""

    vocabulary: int = 151936
    hidden: int = 2048
    depth: int = 36
    heads: int = 16
    kv_heads: int = 2
    mlp: int = 11008
    rope_theta: float = 1e6
    rope_sections: tuple[int, ...] = (16, 24, 24)
    norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        _require_positive(self, "vocabulary", "hidden", "depth", "heads", "kv_heads", "mlp")
        _require_multiple("text.hidden", self.hidden, 2 * self.heads, "2 * text.heads")
        _require_multiple("text.heads", self.heads, self.kv_heads, "text.kv_heads")
        if len(self.rope_sections) != 3 or sum(self.rope_sections) * 2 != self.head_dim:
            raise UserError(
                f"text.rope_sections is {self.rope_sections}; use three numbers that sum to half of the head's "
                f"{self.head_dim}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


@dataclasses.dataclass(frozen=True)
class Qwen2_5_VLConfig(BackboneConfig):
    """The whole model.

    ``added_tokens`` rows are trained on their own, beside the pretrained table: token ids from
    ``text.vocabulary`` on. ``dtype`` is that of the computation; ``param_dtype`` that of the base parameters,
    float32 when they train. ``embedding_std`` is the initial standard deviation of token embeddings.
    """

    kind: str = dataclasses.field(default="qwen2_5_vl", kw_only=True)
    vision: VisionConfig = dataclasses.field(default_factory=VisionConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    tied: bool = True
    image_token: int = 151655
    vision_start_token: int = 151652
    vision_end_token: int = 151653
    added_tokens: int = 0
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    dtype: DType = "float32"
    param_dtype: DType = "float32"
    remat: Remat = "none"
    scan_unroll: int = 1
    attention: Implementation = "xla"
    embedding_std: float = 0.02

    def __post_init__(self) -> None:
        if self.vision.out != self.text.hidden:
            raise UserError(f"vision.out is {self.vision.out} but text.hidden is {self.text.hidden}; make them equal")
        if not 0 <= self.image_token < self.text.vocabulary:
            raise UserError(f"image_token is {self.image_token}, outside the vocabulary of {self.text.vocabulary}")
        outside = [i for i in self.lora.layers if not 0 <= i < self.text.depth]
        if outside:
            raise UserError(f"lora.layers has {outside}, outside 0..{self.text.depth - 1}; name existing layers")

    @classmethod
    def expand(cls, values: dict[str, Any]) -> dict[str, Any]:
        """``preset`` (default: mini) as the fields it stands for, with what was said beside it laid on top."""
        values = dict(values)
        return merge(dataclasses.asdict(preset(values.pop("preset", "mini"))), values)

    @property
    def width(self) -> int:
        """That of the text decoder."""
        return self.text.hidden

    @property
    def depth(self) -> int:
        """That of the text decoder."""
        return self.text.depth

    @property
    def adapter_rank(self) -> int:
        """LoRA's."""
        return self.lora.rank


def preset(name: str, **changes: Any) -> Qwen2_5_VLConfig:
    """A named size: ``mini`` (trained from scratch), ``3b`` or ``7b`` (Qwen2.5-VL-Instruct), with fields replaced.

    Raises:
        UserError: unknown name.

    """
    presets = {"mini": _mini, "3b": Qwen2_5_VLConfig, "7b": _7b}
    if name not in presets:
        raise unknown_name("Qwen2.5-VL preset", name, presets)
    return dataclasses.replace(presets[name](), **changes)


def _mini() -> Qwen2_5_VLConfig:
    """About 3.5 M parameters; token ids are those of ``mini_tokenizer/tokenizer.json``."""
    vision = VisionConfig(depth=4, hidden=128, heads=4, mlp=384, out=192, window=56, full_attention=(1, 3))
    text = TextConfig(vocabulary=576, hidden=192, depth=4, heads=6, kv_heads=2, mlp=576, rope_sections=(4, 6, 6))
    return Qwen2_5_VLConfig(
        vision=vision, text=text, image_token=562, vision_start_token=559, vision_end_token=560, embedding_std=0.5
    )


def _7b() -> Qwen2_5_VLConfig:
    text = TextConfig(vocabulary=152064, hidden=3584, depth=28, heads=28, kv_heads=4, mlp=18944)
    return Qwen2_5_VLConfig(vision=VisionConfig(out=3584), text=text, tied=False)


def from_hf_config(values: dict[str, Any], **changes: Any) -> Qwen2_5_VLConfig:
    """Reads a Hugging Face ``config.json``, flat as published or with a nested ``text_config``.

    Args:
        values: the parsed file.
        changes: fields of :class:`Qwen2_5_VLConfig` to replace, such as ``lora``.

    Raises:
        UserError: another architecture, a missing field, or a feature that is not supported.

    """
    if values.get("model_type") != "qwen2_5_vl":
        raise UserError(f"config.json: model_type is {values.get('model_type')!r}; only 'qwen2_5_vl' is supported")
    text, vision = values.get("text_config") or values, values.get("vision_config") or {}
    _require_supported(text, vision)
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    try:
        return Qwen2_5_VLConfig(
            vision=_vision_from(vision),
            text=TextConfig(
                vocabulary=text["vocab_size"],
                hidden=text["hidden_size"],
                depth=text["num_hidden_layers"],
                heads=text["num_attention_heads"],
                kv_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
                mlp=text["intermediate_size"],
                rope_theta=float(rope.get("rope_theta", text.get("rope_theta", 1e6))),
                rope_sections=tuple(rope.get("mrope_section", (16, 24, 24))),
                norm_epsilon=float(text["rms_norm_eps"]),
            ),
            tied=bool(values.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
            image_token=values["image_token_id"],
            vision_start_token=values["vision_start_token_id"],
            vision_end_token=values["vision_end_token_id"],
            **changes,
        )
    except KeyError as error:
        raise UserError(f"config.json lacks the field {error.args[0]!r}; download it again") from error


def _vision_from(vision: dict[str, Any]) -> VisionConfig:
    return VisionConfig(
        depth=vision["depth"],
        hidden=vision["hidden_size"],
        heads=vision["num_heads"],
        mlp=vision["intermediate_size"],
        out=vision["out_hidden_size"],
        channels=vision.get("in_chans", vision.get("in_channels", 3)),
        patch=vision["patch_size"],
        temporal_patch=vision["temporal_patch_size"],
        merge=vision["spatial_merge_size"],
        window=vision["window_size"],
        full_attention=tuple(vision["fullatt_block_indexes"]),
    )


def _require_supported(text: dict[str, Any], vision: dict[str, Any]) -> None:
    """Refuses features that would silently change the result."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    found = {
        "hidden_act": (text.get("hidden_act", "silu"), ("silu",)),
        "vision_config.hidden_act": (vision.get("hidden_act", "silu"), ("silu",)),
        "use_sliding_window": (bool(text.get("use_sliding_window")), (False,)),
        "rope type": (rope.get("rope_type", rope.get("type", "mrope")), ("mrope", "default")),
    }
    for field, (value, supported) in found.items():
        if value not in supported:
            raise UserError(f"config.json: {field} is {value!r}; supported: {', '.join(map(repr, supported))}")


def load_hf_config(folder: Path | str, **changes: Any) -> Qwen2_5_VLConfig:
    """Reads ``config.json`` of a checkpoint folder; see :func:`from_hf_config`."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the folder of a downloaded Qwen2.5-VL checkpoint")
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again") from error
    return from_hf_config(values, **changes)


def _require_positive(config: VisionConfig | TextConfig, *fields: str) -> None:
    for field in fields:
        if getattr(config, field) <= 0:
            raise UserError(f"{type(config).__name__}.{field} is {getattr(config, field)}; use a positive number")


def _require_multiple(field: str, value: int, divisor: int, of: str) -> None:
    if value <= 0 or value % divisor:
        raise UserError(f"{field} is {value}; use a positive multiple of {of} = {divisor}")
