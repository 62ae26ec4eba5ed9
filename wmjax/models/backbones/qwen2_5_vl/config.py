"""Sizes and choices of a Qwen2.5-VL model: presets, and any Hugging Face ``config.json``."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.reading import read_json, typed
from wmjax.core.settings import Depth, Range, Settings, Width, merge, quoted
from wmjax.models.backbones.base import BackboneConfig
from wmjax.models.nn.attention import Implementation
from wmjax.models.nn.lora import LoRAConfig
from wmjax.models.nn.stack import Remat

FIX = "download it again"
DType = Literal["float32", "bfloat16"]
Token = Annotated[int, Range(0, 10_000_000)]


@dataclasses.dataclass(frozen=True)
class VisionConfig(Settings, section="vision"):
    """The vision tower. Sizes of images and windows are in pixels; ``out`` is the text decoder's width."""

    depth: Depth = 32
    hidden: Width = 1280
    heads: Depth = 16
    mlp: Width = 3420
    out: Width = 2048
    channels: Depth = 3
    patch: Depth = 14
    temporal_patch: Depth = 2
    merge: Depth = 2
    window: Width = 112
    full_attention: tuple[int, ...] = (7, 15, 23, 31)

    def __post_init__(self) -> None:
        super().__post_init__()
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
class TextConfig(Settings, section="text"):
    """The text decoder. ``rope_sections`` are the frequencies given to time, height and width."""

    vocabulary: Annotated[int, Range(1, 10_000_000)] = 151936
    hidden: Width = 2048
    depth: Depth = 36
    heads: Depth = 16
    kv_heads: Depth = 2
    mlp: Width = 11008
    rope_theta: Annotated[float, Range(1, 1e12)] = 1e6
    rope_sections: tuple[Annotated[int, Range(0, 1_000_000)], ...] = (16, 24, 24)
    norm_epsilon: Annotated[float, Range(0, 1, above=True)] = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
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
    image_token: Token = 151655
    vision_start_token: Token = 151652
    vision_end_token: Token = 151653
    added_tokens: Token = 0
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    dtype: DType = "float32"
    param_dtype: DType = "float32"
    remat: Remat = "none"
    scan_unroll: Depth = 1
    attention: Implementation = "xla"
    embedding_std: Annotated[float, Range(0, 100, above=True)] = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vision.out != self.text.hidden:
            raise UserError(f"vision.out is {self.vision.out} but text.hidden is {self.text.hidden}; make them equal")
        if not 0 <= self.image_token < self.text.vocabulary:
            raise UserError(f"image_token is {self.image_token}, outside the vocabulary of {self.text.vocabulary}")
        outside = [i for i in self.lora.layers if not 0 <= i < self.text.depth]
        if outside:
            raise UserError(f"lora.layers has {outside}, outside 0..{self.text.depth - 1}; name existing layers")

    @classmethod
    def expand(cls, values: dict[str, Any]) -> dict[str, Any]:
        """``preset`` (default: mini) as the fields that it sets, overridden by the fields given beside it."""
        values = dict(values)
        return merge(dataclasses.asdict(preset(str(values.pop("preset", "mini")))), values)

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

    @property
    def vision_parameters(self) -> dict[str, Any]:
        """The tower's sizes, and the dtypes."""
        return {"vision": dataclasses.asdict(self.vision), "dtype": self.dtype, "param_dtype": self.param_dtype}


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


def from_hf_config(values: dict[str, Any], where: str = "config.json", **changes: Any) -> Qwen2_5_VLConfig:
    """Reads a Hugging Face ``config.json``, flat as published or with a nested ``text_config``.

    Args:
        values: the parsed file.
        where: the file, for errors.
        changes: fields of :class:`Qwen2_5_VLConfig` to replace, such as ``lora``.

    Raises:
        UserError: another architecture, a missing field, or a feature that is not supported.

    """
    if values.get("model_type") != "qwen2_5_vl":
        raise UserError(f"{where}: model_type is {values.get('model_type')!r}; only 'qwen2_5_vl' is supported")
    text, vision = (values.get(key) or {} for key in ("text_config", "vision_config"))
    if not (isinstance(text, dict) and isinstance(vision, dict)):
        raise UserError(f"{where}: text_config or vision_config is not an object; {FIX}")
    text = text or values
    _require_supported(text, vision, where)
    file = typed({"text": text, "vision": vision, "whole": values}, _File, where, FIX)
    rope = file.text.rope_parameters or file.text.rope_scaling or _Rope()
    return Qwen2_5_VLConfig(
        vision=_vision_from(file.vision),
        text=TextConfig(
            vocabulary=file.text.vocab_size,
            hidden=file.text.hidden_size,
            depth=file.text.num_hidden_layers,
            heads=file.text.num_attention_heads,
            kv_heads=file.text.num_key_value_heads or file.text.num_attention_heads,
            mlp=file.text.intermediate_size,
            rope_theta=next(x for x in (rope.rope_theta, file.text.rope_theta, 1e6) if x is not None),
            rope_sections=rope.mrope_section or (16, 24, 24),
            norm_epsilon=file.text.rms_norm_eps,
        ),
        tied=_tied(values, text),
        image_token=file.whole.image_token_id,
        vision_start_token=file.whole.vision_start_token_id,
        vision_end_token=file.whole.vision_end_token_id,
        **changes,
    )


@dataclasses.dataclass(frozen=True)
class _Rope:
    rope_theta: float | None = None
    mrope_section: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class _Text:
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    rms_norm_eps: float
    num_key_value_heads: int | None = None
    rope_theta: float | None = None
    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None


@dataclasses.dataclass(frozen=True)
class _Vision:
    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    out_hidden_size: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    window_size: int
    fullatt_block_indexes: tuple[int, ...]
    in_chans: int | None = None
    in_channels: int | None = None


@dataclasses.dataclass(frozen=True)
class _Whole:
    image_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int


@dataclasses.dataclass(frozen=True)
class _File:
    """The fields of a ``config.json`` that are used, with their types."""

    text: _Text
    vision: _Vision
    whole: _Whole


def _tied(values: dict[str, Any], text: dict[str, Any]) -> bool:
    """Whether the output shares the embeddings: transformers ties the model that has a text_config by that one."""
    places = (text, values) if values.get("text_config") else (values,)
    return any(bool(place.get("tie_word_embeddings", False)) for place in places)


def _vision_from(vision: _Vision) -> VisionConfig:
    return VisionConfig(
        depth=vision.depth,
        hidden=vision.hidden_size,
        heads=vision.num_heads,
        mlp=vision.intermediate_size,
        out=vision.out_hidden_size,
        channels=vision.in_chans or vision.in_channels or 3,
        patch=vision.patch_size,
        temporal_patch=vision.temporal_patch_size,
        merge=vision.spatial_merge_size,
        window=vision.window_size,
        full_attention=vision.fullatt_block_indexes,
    )


def _require_supported(text: dict[str, Any], vision: dict[str, Any], where: str) -> None:
    """Refuses features that would silently change the result."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{where}: rope_parameters is {quoted(rope)}, expected an object; {FIX}")
    found = {
        "hidden_act": (text.get("hidden_act", "silu"), ("silu",)),
        "vision_config.hidden_act": (vision.get("hidden_act", "silu"), ("silu",)),
        "use_sliding_window": (bool(text.get("use_sliding_window")), (False,)),
        "rope type": (rope.get("rope_type", rope.get("type", "mrope")), ("mrope", "default")),
    }
    for field, (value, supported) in found.items():
        if value not in supported:
            raise UserError(f"{where}: {field} is {value!r}; supported: {', '.join(map(repr, supported))}")


def load_hf_config(folder: Path | str, **changes: Any) -> Qwen2_5_VLConfig:
    """Reads ``config.json`` of a checkpoint folder; see :func:`from_hf_config`."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the folder of a downloaded Qwen2.5-VL checkpoint")
    return from_hf_config(read_json(path, dict[str, Any], FIX), str(path), **changes)


def _require_multiple(field: str, value: int, divisor: int, of: str) -> None:
    if value <= 0 or value % divisor:
        raise UserError(f"{field} is {value}; use a positive multiple of {of} = {divisor}")
