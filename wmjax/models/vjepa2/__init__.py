"""V-JEPA 2 encoder (Assran et al. 2025, arXiv:2506.09985) in Flax NNX: frozen video features."""

from wmjax.models.vjepa2.config import PRESETS, VJEPA2Config, from_hf_config, preset
from wmjax.models.vjepa2.model import VJEPA2Encoder, latents, pool_last_tubelet
from wmjax.models.vjepa2.preprocess import preprocess

__all__ = [
    "PRESETS",
    "VJEPA2Config",
    "VJEPA2Encoder",
    "from_hf_config",
    "latents",
    "pool_last_tubelet",
    "preprocess",
    "preset",
]
