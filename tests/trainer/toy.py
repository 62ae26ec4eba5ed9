"""A real training of a network so small that it compiles in a second: ``python -m tests.trainer.toy JOB.json``.

Loop, loader, optimizer, checkpoints, metrics, lock and signals are those of the train command.
"""

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.tiny import tiny_config
from wmjax.core import logs
from wmjax.core.command import run_command
from wmjax.core.files import owned
from wmjax.data.loader import BatchSource
from wmjax.data.store import TrainingStore
from wmjax.models.nn.layout import split_batch
from wmjax.models.nn.stack import annotate
from wmjax.models.prompts import PromptConfig
from wmjax.trainer import checkpoint, loop
from wmjax.trainer.config import Inputs, TrainConfig
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.optimizer import OptimizerConfig
from wmjax.trainer.sharding import MeshConfig

WIDTH = 16


class Toy(nnx.Module):
    """Predicts the chunk from the state, through one hidden layer that is split over fsdp and tensor."""

    def __init__(self, chunk: int, rngs: nnx.Rngs, noise: float) -> None:
        self.noise = noise
        normal = nnx.initializers.normal(0.1)
        self.first = nnx.Param(annotate(normal, "embed", "mlp")(rngs.params(), (8, WIDTH)))
        self.second = nnx.Param(annotate(normal, "mlp", "embed")(rngs.params(), (WIDTH, chunk * 7)))

    def __call__(self, state: jax.Array) -> jax.Array:
        hidden = split_batch(jnp.tanh(split_batch(state) @ self.first.get_value()), "mlp")
        return split_batch(hidden @ self.second.get_value()).reshape(len(state), -1, 7)

    def loss(self, inputs: Any, action: Any, mask: Any, key: Any, *, train: bool) -> tuple[jax.Array, dict]:
        noise = self.noise * jax.random.normal(key, action.shape) if train else 0.0
        error = jnp.square(self(inputs.state) + noise - action) * mask[..., None]
        return error.mean(), {"pixels": inputs.images.mean() / 255}

    def sample(self, inputs: Any, noise: Any) -> tuple[jax.Array, dict]:
        return self(inputs.state), {}


def toy_config(**changes: Any) -> TrainConfig:
    defaults = {"steps": 8, "batch_size": 8, "validation_fraction": 0.2, "log_every": 1, "eval_every": 4}
    return TrainConfig(**{**defaults, "eval_batches": 2, "checkpoint_every": 4, "threads": 1, **changes})


def toy_inputs(store: TrainingStore, config: TrainConfig) -> Inputs:
    return make_inputs(store, None, PromptConfig(length=56), tiny_config("e0"), config)


def fit_toy(
    inputs: Inputs, run: Path, config: TrainConfig, mesh: MeshConfig | None = None, noise: float = 0.01, **more: Any
) -> Path:
    chunk, optimizer = inputs.loader.chunk, OptimizerConfig(learning_rate=1e-2, warmup_steps=1)
    build = lambda rngs: Toy(chunk, rngs, noise)  # noqa: E731
    return loop.train(build, inputs, run, config, optimizer, mesh or MeshConfig(), max_shift=3, meta={}, **more)


def send(job: dict[str, Any]) -> None:
    """Lets the process send ``job["signal"]`` to itself at the beginning of its step number ``job["at"]``, or, without
    one, when it hashes its first checkpoint."""
    number = getattr(signal, job["signal"])
    if "at" not in job:
        checkpoint.hash_file = lambda path: os.kill(os.getpid(), number)
        return
    update, steps = loop.Loop.update, itertools.count(1)

    def stopping_update(self: Any, *arguments: Any) -> Any:
        if next(steps) == job["at"]:
            os.kill(os.getpid(), number)
        return update(self, *arguments)

    loop.Loop.update = stopping_update


def slow_down(seconds: float) -> None:
    """Gives somebody else time for a signal in every step."""
    get = BatchSource.__getitem__

    def slow_get(self: BatchSource, index: int) -> Any:
        time.sleep(seconds)
        return get(self, index)

    BatchSource.__getitem__ = slow_get


def main(job: dict[str, Any]) -> int:
    """Trains as the job says: ``store``, ``run``, settings of ``train``, and what :func:`send` takes."""
    run = Path(job["run"])
    if "signal" in job:
        send(job)
    if "pause" in job:
        slow_down(job["pause"])

    def body() -> int:
        with owned(run, "run", "choose another folder with --run"):
            logs.set_up(run / "log.txt")
            config = toy_config(**job.get("train", {}))
            fit_toy(toy_inputs(TrainingStore(Path(job["store"])), config), run, config)
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text())))
