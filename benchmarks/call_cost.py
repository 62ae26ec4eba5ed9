"""What a call of the training step costs in Python, with parameters in NNX states and by name.

    python benchmarks/call_cost.py                mini
    python benchmarks/call_cost.py --scale 3b     the same at full size: no weights, no data, no memory

The program takes and returns the step's arrays, of one element each, and computes nothing. Measured is the CPU time of
the calling thread, which other processes do not change much, in turns.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wmjax.experiment.config import load
from wmjax.experiment.dimensions import of_store
from wmjax.scaling.program import call_shapes, programs
from wmjax.trainer.sharding import make_mesh

METRICS = 30
"""Numbers that the step returns beside its arrays, about as many as e2_flow's."""


def caller(arrays: Any, data: Any) -> Callable[[], None]:
    """A call of a program that takes over the state and the guard, and gets them back."""

    def program(state: Any, guard: Any, frozen: Any, *data: Any) -> Any:
        return state, guard, [jnp.zeros(()) for _ in range(METRICS)]

    compiled = jax.jit(program, donate_argnums=(0, 1))
    small = jax.jit(lambda: jax.tree.map(lambda s: jnp.zeros(1, s.dtype), (arrays, data)))
    (*carried, frozen), data = small()

    def call() -> None:
        *carried[:], _ = compiled(*carried, frozen, *data)

    return call


def main() -> None:
    """Prints one line per form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    settings = {"train": {"backbone_weights": "random"}}
    experiment = of_store(load("e2_flow", options.scale, None, settings), None)
    mesh = make_mesh(experiment.mesh, jax.devices()[:1])
    built = programs(experiment, mesh)
    data = call_shapes(experiment, built, mesh)[3:]
    forms = {"NNX states": caller(built.shapes, data), "by name": caller(built.shapes.named(), data)}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for repeat in range(options.repeats + 5):
        for name, call in forms.items():
            start = time.thread_time()
            call()
            if repeat >= 5:
                seconds[name].append(time.thread_time() - start)
    print(f"e2_flow at {options.scale}, {len(jax.tree.leaves((built.shapes, data)))} arrays")
    for name, found in seconds.items():
        print(f"{name}: median {1e3 * statistics.median(found):.2f} ms, least {1e3 * min(found):.2f} ms")


if __name__ == "__main__":
    main()
