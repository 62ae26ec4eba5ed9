"""How long a save keeps training from going on, and after how long the checkpoint is complete.

    python benchmarks/save_stall.py                mini
    python benchmarks/save_stall.py --scale 3b     what is trained at full size, without the frozen base

The trained parameters, their average, both moments and the guard have the shapes of the scale and random values. They
are saved as the training loop saves them, by the same :class:`wmjax.trainer.checkpoint.Saver`. The stall is the time
until ``save`` returns, after which the next step may run; the save before is complete by then, as it is where saves are
minutes apart. On an accelerator the stall includes the copy to the host. Where other programs keep the cores busy, the
CPU time of the calling thread is the better figure. Exits with 1 if a stall is longer than ``--most``.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wmjax.experiment.config import load
from wmjax.experiment.dimensions import of_store
from wmjax.models.parameters import to_named
from wmjax.scaling.program import programs
from wmjax.trainer import checkpoint
from wmjax.trainer.loop import GUARD, checkpoint_items
from wmjax.trainer.sharding import make_mesh

MOST = {"mini": 0.5, "3b": 2.0}
"""Seconds that training may stall at a save."""


def random_items(scale: str) -> dict[str, Any]:
    """The items of a checkpoint of e2_flow, with values that do not compress."""
    experiment = of_store(load("e2_flow", scale, None, {"train": {"backbone_weights": "random"}}), None)
    mesh = make_mesh(experiment.mesh, jax.devices()[:1])
    arrays = programs(experiment, mesh).shapes.named()
    items = {**checkpoint_items(arrays.state), GUARD: to_named(arrays.guard)}
    values = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(values.standard_normal(leaf.shape, np.float32).astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(draw, items)


def measure(items: dict[str, Any], root: Path, saves: int) -> dict[str, list[float]]:
    """Seconds of each save; the first one, which compiles a program, is not among them."""
    found: dict[str, list[float]] = {"training stalls": [], "of which its thread computes": [], "complete after": []}
    with checkpoint.Saver(root) as saver:
        for step in range(saves + 1):
            start, own = time.monotonic(), time.thread_time()
            saver.save(step, items, {})
            passed = [time.monotonic() - start, time.thread_time() - own]
            saver.wait()
            for seconds, value in zip(found.values(), [*passed, time.monotonic() - start], strict=True):
                seconds.append(value)
    return {name: seconds[1:] for name, seconds in found.items()}


def main() -> int:
    """Prints a line per duration; 1 if training stalled too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (default: a temporary folder)")
    parser.add_argument("--most", type=float, help="seconds of a stall (default: 0.5 at mini, 2 at 3b, else any)")
    options = parser.parse_args()
    items = random_items(options.scale)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(items, Path(folder), options.saves)
    print(
        f"e2_flow at {options.scale}: {len(jax.tree.leaves(items))} arrays, {size / 1e9:.3f} GB, {options.saves} saves"
    )
    for what, seconds in found.items():
        print(f"{what}: median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s")
    most = options.most or MOST.get(options.scale, float("inf"))
    return int(max(found["training stalls"]) > most)


if __name__ == "__main__":
    sys.exit(main())
