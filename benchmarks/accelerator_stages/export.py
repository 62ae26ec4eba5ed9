"""V-JEPA latents per second of ViT-L: PyTorch's and Flax's encoder as they export, and what lower precision gives.

``worst_over_rms`` is the largest difference from the first exact encoder, PyTorch's in float32 if it is there, over
the RMS of the latents. An export and a rollout must agree within 5e-3.
"""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.accelerator_stages.session import Session
from wmjax.encoders.vjepa2 import MINI_FOLDER, PRESETS, VJEPA2Encoder, latents, load_encoder, save_encoder
from wmjax.encoders.vjepa2.encoder import VJEPA2Settings
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
    for framework, make in (("torch", torch_encoders), ("flax", flax_encoders)):
        try:
            encoders = make(folder)
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


def torch_encoders(folder: Path) -> dict[str, Encode]:
    """The exporter's encoder, and the same weights at lower precision."""
    import torch

    from encoders_export.vjepa import TorchEncoder, pool_last_tubelet, preprocess

    encoder = TorchEncoder(
        VJEPA2Settings(cameras=("agentview",), model=str(folder), pooling_grid=GRID, clip_length=CLIP)
    )

    def tf32(clips: np.ndarray) -> np.ndarray:
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return encoder.encode(clips)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    def bfloat16(clips: np.ndarray) -> np.ndarray:
        pixels = preprocess(torch.from_numpy(clips).to(encoder.device), encoder.config)
        with torch.inference_mode(), torch.autocast(encoder.device.type, torch.bfloat16):
            tokens = encoder.model.get_vision_features(pixels)
        return pool_last_tubelet(tokens.float(), encoder.config.grid_size**2, GRID).cpu().numpy()

    gpu_only: dict[str, Encode] = {"tf32": tf32} if encoder.device.type == "cuda" else {}
    return {"float32": encoder.encode, **gpu_only, "bfloat16": bfloat16}


def flax_encoders(folder: Path) -> dict[str, Encode]:
    """The policy's encoder at JAX's highest and default precision of float32, and in bfloat16."""
    chosen: dict[str, tuple[Any, str | None]] = {
        "float32 highest": (jnp.float32, "highest"),
        "float32 default": (jnp.float32, None),
        "bfloat16": (jnp.bfloat16, None),
    }
    return {name: _flax_encoder(folder, *settings) for name, settings in chosen.items()}


def _flax_encoder(folder: Path, dtype: Any, precision: str | None) -> Encode:
    graph, state = nnx.split(load_encoder(folder, dtype))

    @jax.jit
    def run(state: nnx.State, clips: Any) -> jax.Array:
        with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
            return latents(nnx.merge(graph, state), clips, GRID)

    return lambda clips: np.asarray(run(state, clips))
