"""V-JEPA 2 encoder (Assran et al. 2025, arXiv:2506.09985) in Flax NNX: frozen video features.

Names are resolved on first use, so that exporting with PyTorch may read configs without importing jax.
"""

import importlib
from typing import Any

_HOMES = {
    "PRESETS": "config",
    "VJEPA2Config": "config",
    "from_hf_config": "config",
    "preset": "config",
    "MINI_FOLDER": "files",
    "encoder_spec": "files",
    "read_config": "files",
    "resolve_folder": "files",
    "weights_hash": "files",
    "VJEPA2Encoder": "model",
    "latents": "model",
    "pool_last_tubelet": "model",
    "preprocess": "pixels",
    "load_encoder": "weights",
    "save_encoder": "weights",
}


def __getattr__(name: str) -> Any:
    """The public names of the modules below."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    return getattr(module, name)
