"""Frames per second of the latent export against a loop that encodes one frame at a time.

    python benchmarks/export.py STORE [--backend torch] [--model mini] [--precision bfloat16] [--rounds 3] [--out FILE]

Both write the latents of the unshifted view of every frame and are timed in turns, from the same opened encoder; the
latents must agree to within the store's bound. The loop reads a frame's clip, encodes it and keeps the result.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np

from wmjax.core.files import write_npz
from wmjax.core.settings import build
from wmjax.core.specs import Precision
from wmjax.data.store import TrainingStore
from wmjax.data.windows import clip_indices
from wmjax.encoders.base import ENCODERS, EncoderConfig, Exporter
from wmjax.encoders.encode import LATENT_BOUNDS, difference, encode_store

TARGET = 1.5


def make_encoder(backend: str, model: str, precision: str, cameras: tuple[str, ...]) -> Exporter:
    """The encoder of the first camera in PyTorch or in Flax."""
    settings = {"backend": backend, "model": model, "precision": precision}
    config = build(EncoderConfig, settings).with_default_camera(cameras)
    return ENCODERS.resolve(config.kind).for_export(config)


def export(store: TrainingStore, encoder: Exporter, out: Path) -> np.ndarray:
    """The export; returns its latents."""
    latents = encode_store(store, out, encoder, views=1)
    assert latents is not None
    return np.array(latents.latents[0], np.float32)


def per_frame(store: TrainingStore, encoder: Exporter, out: Path) -> np.ndarray:
    """The loop; returns its latents."""
    camera, found = store.spec.cameras.index(encoder.spec.cameras[0]), []
    for index, entry in enumerate(store.episodes):
        start, rows = entry["frame_start"], []
        for frame in range(start, start + entry["num_frames"]):
            clip = np.array(store.frames[clip_indices(frame, start, encoder.spec.clip_length), camera])
            rows.append(np.asarray(encoder.encode(clip[None]))[0].astype(np.float16))
        write_npz(out / f"{index:06d}.npz", {"latents": np.stack(rows)})
        found.append(np.stack(rows))
    return np.concatenate(found).astype(np.float32)


def worst_frame(a: np.ndarray, b: np.ndarray, precision: Precision) -> float:
    """The difference of the frame whose latents differ most."""
    return max(difference(one - other, other, precision) for one, other in zip(a, b, strict=True))


def measure(store: TrainingStore, encoder: Exporter, rounds: int) -> dict[str, float]:
    """Median frames per second of both after a warm-up round, and their ratio.

    Raises:
        ValueError: the two do not agree.

    """
    ways, frames = {"export": export, "per frame": per_frame}, len(store.frame_step)
    times: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(rounds + 1):
            latents = {}
            for way, run in ways.items():
                folder = Path(name) / f"{way}-{turn}"
                folder.mkdir()
                started = time.perf_counter()
                latents[way] = run(store, encoder, folder)
                if turn:
                    times[way].append(time.perf_counter() - started)
            precision = encoder.spec.precision
            bound, worst = LATENT_BOUNDS[precision], worst_frame(latents["export"], latents["per frame"], precision)
            if not worst <= bound:
                raise ValueError(f"latents differ by {worst:.2g} of the RMS, bound {bound:g}")
    found = {way: frames / float(np.median(values)) for way, values in times.items()}
    return found | {"ratio": found["export"] / found["per frame"], "difference": worst}


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--backend", choices=("torch", "jax"), default="torch")
    parser.add_argument("--model", default="mini", help="mini, a Hugging Face checkpoint folder, or a hub id")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args(arguments)
    store = TrainingStore(options.store)
    encoder = make_encoder(options.backend, options.model, options.precision, store.spec.cameras)
    found = measure(store, encoder, options.rounds)
    print(
        f"{len(store.frame_step)} frames, {options.model} in {options.backend}, {options.precision}: export "
        f"{found['export']:.1f} frames/s, per frame {found['per frame']:.1f} frames/s, {found['ratio']:.2f}x "
        f"(target {TARGET:g}x)"
    )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
