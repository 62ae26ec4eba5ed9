"""Ridge probes of an encoder: from the pooled latent z(t), on held-out episodes.

    python -m encoders_export.probe --data STORE [STORE ...] --encoder mini|FOLDER|random [--encoder ...]

Every encoder is compared with random weights of the same architecture and with pooled pixels; targets, split and
regression are those of :mod:`wmjax.diagnostics.probe`. Prints a table of R^2 and effective rank.
"""

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from encoders_export.jepa import PredictorConfig, build_model
from encoders_export.vjepa import TorchEncoder
from wmjax.core.command import run_command
from wmjax.core.files import write_json
from wmjax.core.location import local, location
from wmjax.core.paths import require_place
from wmjax.data.store import TrainingStore
from wmjax.diagnostics.probe import Frames, find_camera, format_table, probe
from wmjax.encoders.encode import EpisodeClips, encode_clips
from wmjax.encoders.vjepa2.config import preset, to_hf_config
from wmjax.encoders.vjepa2.encoder import VJEPA2Settings


def random_encoder(cameras: tuple[str, ...], seed: int = 0) -> TorchEncoder:
    """The mini architecture with its initial weights, for these cameras."""
    from safetensors.torch import save_file

    model = build_model(preset("mini"), PredictorConfig(hidden_size=32, num_layers=1, num_heads=1), seed)
    with tempfile.TemporaryDirectory() as folder:
        tensors = {k: v.contiguous() for k, v in model.state_dict().items() if k.startswith("encoder.")}
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(to_hf_config(preset("mini"))), encoding="utf-8")
        return TorchEncoder(VJEPA2Settings(model=folder, cameras=cameras))


def encode(
    name: str, encoder: TorchEncoder, camera: int, frames: Frames, instruction: str
) -> dict[str, Float[np.ndarray, "frames tokens dim"]]:
    """z(t) of every frame of an episode, as :data:`wmjax.diagnostics.probe.Features`."""
    return {name: encode_clips(encoder.encode, EpisodeClips(frames[:, camera], [(0, 0)], 4), 32)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m encoders_export.probe", description="Linear probes of encoders.")
    parser.add_argument("--data", type=location, nargs="+", required=True, help="training stores")
    parser.add_argument(
        "--encoder", action="append", help="mini, a folder or random; repeatable (default: mini, random)"
    )
    parser.add_argument("--camera", help="the camera whose tokens are read (default: the stores' first)")
    parser.add_argument("--json", type=local, help="also write the numbers there")
    return run_command(lambda: _run(parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    if options.json:
        require_place(options.json, "--json", "JSON file")
    names = options.encoder or ["mini", "random"]
    stores = [TrainingStore(folder) for folder in options.data]
    camera = find_camera(stores, options.camera)
    cameras = (stores[0].spec.cameras[camera],)
    encoders = {
        name: random_encoder(cameras) if name == "random" else TorchEncoder(VJEPA2Settings(model=name, cameras=cameras))
        for name in names
    }
    kinds = [functools.partial(encode, name, encoder, camera) for name, encoder in encoders.items()]
    table = probe(stores, camera, kinds)
    print(format_table(table))
    if options.json:
        write_json(options.json, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
