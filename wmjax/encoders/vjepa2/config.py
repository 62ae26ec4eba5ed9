"""The shape of a V-JEPA 2 encoder, and how Hugging Face's ``config.json`` describes the same."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from wmjax.core.errors import UserError, unknown_name

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class VJEPA2Config:
    """A V-JEPA 2 encoder. Defaults are ``facebook/vjepa2-vitl-fpc64-256``.

    ``image_size`` is the crop that enters the encoder and fixes the rotary positions; ``resize`` the shortest
    edge before the crop (equal to ``image_size``: no resizing of frames that have that size).
    """

    image_size: int = 256
    resize: int = 292
    patch_size: int = 16
    tubelet_size: int = 2
    frames_per_clip: int = 64
    channels: int = 3
    hidden_size: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        """Refuses shapes that cannot be built.

        Raises:
            UserError: width not divisible by heads, or image not divisible by patch.

        """
        if self.hidden_size % self.num_heads:
            raise UserError(f"vjepa2.hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.image_size % self.patch_size or self.resize < self.image_size:
            raise UserError(
                f"vjepa2.image_size {self.image_size} must be a multiple of patch_size {self.patch_size} "
                f"and at most resize {self.resize}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def grid_size(self) -> int:
        """Patches along one edge of the image."""
        return self.image_size // self.patch_size

    @property
    def mlp_size(self) -> int:
        """Hidden width of the MLP."""
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def patch_dim(self) -> int:
        """Values in one tubelet patch."""
        return self.tubelet_size * self.patch_size**2 * self.channels


PRESETS: dict[str, VJEPA2Config] = {
    "mini": VJEPA2Config(
        image_size=112,
        resize=112,
        patch_size=14,
        frames_per_clip=4,
        hidden_size=192,
        num_layers=6,
        num_heads=3,
    ),
    "vitl": VJEPA2Config(),
    "vitg": VJEPA2Config(hidden_size=1408, num_layers=40, num_heads=22, mlp_ratio=48 / 11),
}
"""The shipped mini encoder and the published ``vjepa2-vit{l,g}-fpc64-256``."""


def preset(name: str) -> VJEPA2Config:
    """The named configuration.

    Raises:
        UserError: no such preset.

    """
    if name not in PRESETS:
        raise unknown_name("V-JEPA 2 preset", name, PRESETS)
    return PRESETS[name]


_HF_NAMES = {
    "crop_size": "image_size",
    "patch_size": "patch_size",
    "tubelet_size": "tubelet_size",
    "frames_per_clip": "frames_per_clip",
    "in_chans": "channels",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "layer_norm_eps": "layer_norm_eps",
}
_FRACTIONS = ("mlp_ratio", "layer_norm_eps")
_REQUIRED = {"model_type": "vjepa2", "hidden_act": "gelu", "qkv_bias": True}


def from_hf_config(values: Mapping[str, Any], where: str = "config.json") -> VJEPA2Config:
    """Reads a Hugging Face ``VJEPA2Config`` dictionary; keys it omits have that class's defaults.

    The resize edge is the processor's ``int(crop * 256 / 224)`` unless our own key ``resize`` overrides it
    (the mini encoder sees its 112 px frames unscaled).

    Raises:
        UserError: another architecture, activation or bias setting than the encoder here implements, or a size that
            is none.

    """
    for key, needed in _REQUIRED.items():
        if values.get(key, needed) != needed:
            raise UserError(f"{where}: {key} is {values[key]!r}, only {needed!r} is supported")
    names = {theirs: ours for theirs, ours in _HF_NAMES.items() if theirs in values}
    for theirs in (*names, *({"resize"} & values.keys())):
        kind, value = (float if theirs in _FRACTIONS else int), values[theirs]
        if isinstance(value, bool) or not isinstance(value, int | kind) or value <= 0:
            raise UserError(f"{where}: {theirs} is {value!r}, expected a positive {kind.__name__}; copy the file again")
    known: dict[str, Any] = {ours: values[theirs] for theirs, ours in names.items()}
    size = known.get("image_size", VJEPA2Config.image_size)
    known["resize"] = int(values.get("resize", size * 256 / 224))
    return VJEPA2Config(**known)


def to_hf_config(config: VJEPA2Config) -> dict[str, Any]:
    """The Hugging Face ``config.json`` of an encoder (plus our key ``resize``)."""
    values = {theirs: getattr(config, ours) for theirs, ours in _HF_NAMES.items()}
    return {"architectures": ["VJEPA2Model"], **_REQUIRED, **values, "resize": config.resize}
