"""V-JEPA latents per second of ViT-L: PyTorch's and Flax's encoder as they export, by precision.

``worst_over_rms`` is the largest difference from the first exact encoder, PyTorch's in float32 if it is there, over
the RMS of the latents. An export and a rollout must agree within ``LATENT_BOUNDS`` of their precision.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from flax import nnx

from benchmarks.accelerator_stages.session import Session
from wmjax.core.specs import Precision
from wmjax.encoders.base import Exporter
from wmjax.encoders.vjepa2 import MINI_FOLDER, PRESETS, VJEPA2Encoder, save_encoder
from wmjax.encoders.vjepa2.encoder import VJEPA2, VJEPA2Settings
from wmjax.scaling.arrays import filled_model
from wmjax.scaling.clock import clocked, timed

GRID, CLIP = 4, 4
Encode = Callable[[np.ndarray], np.ndarray]


def run(session: Session) -> None:
    """The stage."""
    folder, seconds = clocked(lambda: encoder_folder(session))
    session.record(what="checkpoint", seconds=seconds)
    rng, side = np.random.default_rng(0), PRESETS[session.sizes.encoder].image_size
    clips = {b: rng.integers(0, 256, (b, CLIP, side, side, 3), np.uint8) for b in session.sizes.clip_batches}
    exact: dict[int, np.ndarray] = {}
    backends: tuple[tuple[str, Literal["torch", "jax"]], ...] = (("torch", "torch"), ("flax", "jax"))
    for framework, backend in backends:
        try:
            encoders = encoders_of(backend, folder)
        except Exception as error:
            session.record(framework=framework, error=f"{type(error).__name__}: {error}")
            continue
        for precision, encode in encoders.items():
            for batch, given in clips.items():
                work = functools.partial(measure, encode, given, exact)
                session.attempt(work, needs=8, framework=framework, precision=precision, batch=batch)


def encoder_folder(session: Session) -> Path:
    """The shipped mini encoder, or a random one of the wanted size, written once."""
    if session.sizes.encoder == "mini":
        return MINI_FOLDER
    folder = session.scratch / session.sizes.encoder
    if not (folder / "config.json").is_file():  # it is written last
        config = PRESETS[session.sizes.encoder]
        save_encoder(filled_model(lambda: VJEPA2Encoder(config, rngs=nnx.Rngs(0))), folder)
    return folder


def measure(encode: Encode, clips: np.ndarray, exact: dict[int, np.ndarray]) -> dict[str, Any]:
    """Latents per second, from clips on the host to latents on the host."""
    found, first = clocked(lambda: encode(clips))
    seconds, _ = timed(lambda: encode(clips), lambda latents: latents, rounds=4, warm_up=1)
    wanted = exact.setdefault(len(clips), found)
    error = float(np.abs(found - wanted).max() / np.sqrt((wanted**2).mean()))
    return {"latents_per_s": len(clips) / seconds, "first_s": first, "worst_over_rms": error}


def encoders_of(backend: Literal["torch", "jax"], folder: Path) -> dict[str, Encode]:
    """The exporter by precision."""
    found: dict[str, Encode] = {}
    for precision in get_args(Precision):
        encoder = VJEPA2.for_export(
            VJEPA2Settings(
                cameras=("agentview",),
                model=str(folder),
                pooling_grid=GRID,
                clip_length=CLIP,
                precision=precision,
                backend=backend,
            )
        )
        found[precision] = functools.partial(_on_host, encoder)
    return found


def _on_host(encoder: Exporter, clips: np.ndarray) -> np.ndarray:
    return np.asarray(encoder.encode(clips))
