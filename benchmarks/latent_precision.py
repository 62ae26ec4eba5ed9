"""How far latents of V-JEPA 2 differ by precision, framework and batch.

    python benchmarks/latent_precision.py STORE [--model mini] [--clips 64]

For each precision it prints the difference of a clip's latents over their root mean square (RMS), of the worst clip:
the largest value and the RMS. It is taken to the float32 of this device, between PyTorch and Flax, and between clips
that are encoded one by one, as a policy does, and in batches. Last is the difference of the two most similar
neighbours among the clips.

A CPU has no TF32. There, and only in Flax, ``tf32`` rounds the operands of every product to TF32's 10 bits of mantissa,
which is what a GPU does.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from wmjax.core.specs import Precision
from wmjax.data.store import TrainingStore
from wmjax.data.windows import clip_indices
from wmjax.encoders.encode import BATCH, LATENT_BOUNDS, difference, encode_clips
from wmjax.encoders.vjepa2.encoder import VJEPA2, VJEPA2Settings

CLIP = 4
MANTISSA = 10
"""Bits of TF32."""


def recorded_clips(store: TrainingStore, count: int) -> np.ndarray:
    """Clips of the first camera, of frames that are spread over the store."""
    frames = np.linspace(0, len(store.frame_step) - 1, min(count, len(store.frame_step))).astype(int)
    starts = [store.episodes[int(store.frame_episode[frame])]["frame_start"] for frame in frames]
    clips = [store.frames[clip_indices(frame, start, CLIP), 0] for frame, start in zip(frames, starts, strict=True)]
    return np.stack(clips)


@contextlib.contextmanager
def rounded_products() -> Iterator[None]:
    """What is traced inside rounds the operands of every matrix product to TF32, which jax cannot do on a CPU."""
    product = jax.lax.dot_general_p
    bind = product.bind

    def rounded(*operands: Any, **parameters: Any) -> Any:
        return bind(*(jax.lax.reduce_precision(each, 8, MANTISSA) for each in operands), **parameters)

    product.bind = rounded  # type: ignore[method-assign]
    try:
        yield
    finally:
        product.bind = bind  # type: ignore[method-assign]


def both(a: np.ndarray, b: np.ndarray, choose: Callable[..., float] = max) -> str:
    """The difference of the worst clip, or of the one that ``choose`` chooses: largest value and RMS, over the RMS."""
    sizes = ("float32", "bfloat16")
    largest, rms = (choose(difference(x - y, y, size) for x, y in zip(a, b, strict=True)) for size in sizes)
    return f"{largest:.1e} ({rms:.1e})"


def latents_of(settings: VJEPA2Settings, clips: np.ndarray, batch: int) -> np.ndarray:
    """In Flax."""
    emulated = settings.precision == "tf32" and jax.default_backend() == "cpu"
    encoder = VJEPA2(settings)
    with rounded_products() if emulated else contextlib.nullcontext():
        if batch == 1:  # without the padding of the export
            return np.concatenate([np.asarray(encoder.encode(clip[None])) for clip in clips])
        return encode_clips(encoder.encode, clips, batch)


def torch_latents(settings: VJEPA2Settings, clips: np.ndarray) -> np.ndarray | None:
    """In PyTorch; None without it, or where there is no TF32."""
    try:
        import torch

        from encoders_export.vjepa import TorchEncoder
    except ImportError:
        return None
    if settings.precision == "tf32" and not torch.cuda.is_available():
        return None
    return encode_clips(TorchEncoder(settings).encode, clips, BATCH)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--model", default="mini", help="mini, a Hugging Face checkpoint folder, or a hub id")
    parser.add_argument("--clips", type=int, default=64)
    options = parser.parse_args()
    store = TrainingStore(options.store)
    clips, exact = recorded_clips(store, options.clips), None
    print(f"{len(clips)} clips, {options.model} on {jax.devices()[0].device_kind}: largest value (RMS)")
    for precision in get_args(Precision):
        settings = VJEPA2Settings(cameras=store.spec.cameras[:1], model=options.model, precision=precision)
        found, alone = (latents_of(settings, clips, batch) for batch in (BATCH, 1))
        exact = found if exact is None else exact
        torch = torch_latents(settings, clips)
        between = "not computed" if torch is None else both(torch, found)
        print(
            f"{precision}: to float32 {both(found, exact)}, PyTorch to Flax {between}, one by one "
            f"{both(alone, found)}; bound {LATENT_BOUNDS[precision]:g}"
        )
    assert exact is not None
    print(f"neighbours: {both(exact[1:], exact[:-1], min)}")


if __name__ == "__main__":
    main()
