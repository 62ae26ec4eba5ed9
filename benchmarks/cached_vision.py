"""A training step on the stored features of a frozen vision tower beside the step on images, and the stores' rounding.

    python benchmarks/cached_vision.py                     mini_lora: FLOPs, and seconds per step, all forms in turns
    python benchmarks/cached_vision.py --scale 3b --repeats 0   FLOPs only: no weights, no data, no memory
    python benchmarks/cached_vision.py --rounding          what each form changes in the features of the policy `mini`

Steps are on random data; the loader, which reads features where it read images, is not in them. The rounding is that of
the trained tower of the policy that ships, on the rendered reference frame of both cameras.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import jax
import numpy as np
from flax import nnx
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.recipes import build, step_flops, step_times
from wmjax.data.packing import Packing, pack, unpack
from wmjax.experiment.config import load
from wmjax.models.backbones.frozen_vision import frozen_tower
from wmjax.models.parameters import from_named, to_named
from wmjax.policy.saved import find_policy
from wmjax.scaling.shapes import feature_bytes
from wmjax.trainer.config import CachedVision

REFERENCE = Path(__file__).resolve().parents[1] / "wmjax/sim/reference_frame.png"


def costs(recipe: str, scale: str, forms: Sequence[str], repeats: int, batch: int) -> None:
    """Prints FLOPs per sample, counted, and seconds of a step on images and on features of each form, measured."""
    systems, sizes = {}, {}
    for form in forms:
        train = {
            "trainable": "adapters",
            "backbone_weights": "random",
            "batch_size": batch,
            "same_shift": True,
            "cached_vision": form,
        }
        experiment = load(recipe, scale, overrides={"train": train})
        systems[form], sizes[form] = build(experiment), feature_bytes(experiment)
    work = {form: step_flops(system) for form, system in systems.items()}
    seconds = step_times(systems, repeats) if repeats else {}
    for form, count in work.items():
        cells = [f"{count / 1e9:,.3f} GFLOP per sample ({count / work['none']:.3f} x)"]
        if seconds:
            rate = f"{seconds[form]:.3f} s per step, {batch / seconds[form]:.1f} samples/s"
            cells += [f"{rate} ({seconds['none'] / seconds[form]:.3f} x)"]
        if sizes[form]:
            cells += [f"{sizes[form] / 1e3:,.1f} kB per frame and view"]
        print(f"{'images' if form == 'none' else form:<9} {'; '.join(cells)}")


def rounding() -> None:
    """Prints the error of each form, relative to the root mean square of the features, and the largest one."""
    saved = find_policy("mini")
    graph, shapes = frozen_tower(saved.experiment.model.backbone)
    parameters, prefix = saved.parameters(), "backbone/vision/"
    tower = from_named(shapes, {name: parameters[prefix + name] for name in to_named(shapes)})
    both = np.asarray(Image.open(REFERENCE).convert("RGB"))
    images = np.stack(np.split(both, both.shape[1] // both.shape[0], axis=1))
    features = np.asarray(jax.jit(lambda params, x: nnx.merge(graph, params)(x))(tower, images), np.float32)
    size = np.sqrt(np.square(features).mean())
    print(f"{features.shape} features, RMS {size:.3g}, largest {np.abs(features).max() / size:.1f} times that")
    for form in get_args(Packing):
        error = np.abs(unpack(pack(features, form), form) - features) / size
        print(f"{form:<9} error {np.sqrt(np.square(error).mean()):.1e} of the RMS, largest {error.max():.1e}")


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="e2_flow")
    parser.add_argument("--scale", default="mini_lora")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each form (default: 10)")
    parser.add_argument("--batch", type=int, default=32, help="samples of a step (default: 32)")
    parser.add_argument("--forms", nargs="+", choices=get_args(CachedVision)[1:], default=get_args(CachedVision)[1:])
    parser.add_argument("--rounding", action="store_true", help="measure the rounding and not the speed")
    options = parser.parse_args(arguments)
    if options.rounding:
        rounding()
    else:
        costs(options.config, options.scale, ["none", *options.forms], options.repeats, options.batch)


if __name__ == "__main__":
    main()
