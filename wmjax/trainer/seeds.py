"""Several seeds of one recipe, trained side by side in one program.

The states of all seeds are stacked, and the training step is mapped over them. A network that leaves an accelerator
idle so trains many seeds in little more time than one; on a CPU nothing is gained. Each seed has its own initial
values, order of samples and noise, and its own run's folder with metrics and checkpoints, as if it had been trained
alone. The products of a stacked network are summed in another order, so its parameters agree with those of its own run
within rounding.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmjax.core import signals
from wmjax.core.errors import UserError
from wmjax.data.loader import make_loader
from wmjax.trainer import checkpoint
from wmjax.trainer.build import Arrays, BuildModel, Built, DataSpecs, build, make_steps
from wmjax.trainer.config import Inputs, TrainConfig
from wmjax.trainer.loop import LoadBase, Loop, initial_arrays, loader_config, outputs, resumable
from wmjax.trainer.optimizer import OptimizerConfig
from wmjax.trainer.program import Program
from wmjax.trainer.sharding import MeshConfig, make_mesh

log = logging.getLogger("wmjax.train")


def seeds_of(config: TrainConfig) -> list[TrainConfig]:
    """The settings of each seed's own run: ``seed``, ``seed`` + 1, and so on."""
    return [dataclasses.replace(config, seed=config.seed + number, seeds=1) for number in range(config.seeds)]


def train_seeds(
    build_model: BuildModel,
    inputs: Inputs,
    runs: Sequence[Path],
    config: TrainConfig,
    optimizer_config: OptimizerConfig,
    *,
    max_shift: int,
    metas: Sequence[dict[str, Any]],
    load_base: LoadBase | None = None,
) -> list[Path]:
    """Trains ``config.seeds`` seeds to ``config.steps`` and returns their last checkpoints; a killed call resumes.

    It runs on one device. If the seeds' newest checkpoints are of different steps, all go on from the earliest.

    Args:
        build_model: makes the model from random keys.
        inputs: data and specs, the same for all seeds.
        runs: the folder of each seed's run.
        config: ``seed`` is that of the first.
        optimizer_config: AdamW and its schedule.
        max_shift: augmentation, pixels.
        metas: JSON-able values saved in each seed's checkpoints.
        load_base: puts published weights in the place of random ones, the same for all seeds.

    Raises:
        UserError: see :func:`wmjax.trainer.loop.train`; checkpoints of a step that all seeds have are missing, or
            the job has several processes.
        Stopped: a signal came; what was trained until then is saved.

    """
    if jax.process_count() > 1:
        raise UserError(f"train.seeds is {config.seeds}, but this job has several processes; start one")
    configs, folders = seeds_of(config), [resumable(run / "checkpoints") for run in runs]
    folders = _same_step(runs, folders)
    saved = [{} if folder is None else checkpoint.read_meta(folder) for folder in folders]
    inputs = inputs.as_in(saved[0]) if saved[0] else inputs
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    specs = DataSpecs.of(inputs)
    parts = optimizer_config, MeshConfig()
    built = [build(build_model, mesh, specs, one, *parts, max_shift=max_shift) for one in configs]
    arrays = [initial_arrays(each, load_base, folder) for each, folder in zip(built, folders, strict=True)]
    start = int(arrays[0].state.step)
    log.info("%d seeds side by side, %d to %d, from step %d", len(runs), configs[0].seed, configs[-1].seed, start)
    programs = _Programs(built[0], mesh, specs, config, max_shift, [one.seed for one in configs])
    with contextlib.ExitStack() as opened:
        lanes = []
        for number, (one, run, meta) in enumerate(zip(configs, runs, metas, strict=True)):
            loader = loader_config(one, inputs, mesh)
            stream = iter(make_loader(inputs.store, inputs.latents, inputs.train_episodes, loader, inputs.features))
            opened.enter_context(contextlib.closing(stream))
            if saved[number]:
                stream.set_state(saved[number]["loader"]["0"])
            writer, saver = opened.enter_context(outputs(run, start, one))
            steps = programs.train, programs.evaluation(number)
            frozen = arrays[number].frozen
            lanes.append(Loop(one, inputs, loader, mesh, frozen, *steps, stream, writer, saver, meta, None))
        last = _run(lanes, programs, arrays)
    ends = [done or folder for done, folder in zip(last, folders, strict=True)]
    return [end for end in ends if end is not None]


class _Programs:
    """The stacked training step, and the evaluation step of one seed, each compiled once for all seeds."""

    def __init__(
        self, built: Built, mesh: Any, specs: DataSpecs, config: TrainConfig, max_shift: int, seeds: Sequence[int]
    ) -> None:
        self._seeds = jnp.array(seeds, jnp.int32)

        def steps(seed: jax.Array) -> Any:
            parts = built.graph, built.shapes, built.optimizer
            return make_steps(*parts, mesh, specs, config, max_shift=max_shift, seed=seed)

        def update(seed: jax.Array, *arguments: Any) -> Any:
            return steps(seed)[0](*arguments)

        mapped = jax.vmap(update, in_axes=(0, 0, 0, 0, 0, None))
        self.train = Program("the training step", jax.jit(mapped, donate_argnums=(1, 2)), self._seeds)
        self._evaluate = jax.jit(lambda seed, *arguments: steps(seed)[1](*arguments))

    def evaluation(self, number: int) -> Program:
        """The evaluation step of a seed, with the same arguments as that of a run alone."""
        return Program("the validation step", self._evaluate, self._seeds[number])


def _run(lanes: Sequence[Loop], programs: _Programs, arrays: Sequence[Arrays]) -> list[Path | None]:
    """Steps of all seeds together; logs, validations and checkpoints of each."""
    first, config = lanes[0], lanes[0].config
    done = int(arrays[0].state.step)
    last: list[Path | None] = [None for _ in lanes]
    for lane, own in zip(lanes, arrays, strict=True):
        lane.begin(done, int(own.guard.skipped))
        if lane.lacks_validation(done):
            lane.validate(done, own.state)
    state, guard, frozen = (stack([getattr(own, name) for own in arrays]) for name in Arrays._fields)
    with signals.postponed():
        for step in range(done + 1, config.steps + 1):
            with signals.at_once() if step == done + 1 else contextlib.nullcontext():  # it compiles
                batch = jax.tree.map(lambda *parts: np.stack(parts), *(next(lane.stream) for lane in lanes))
                state, guard, metrics = programs.train(state, guard, frozen, batch, first.inputs.prompts)
            ends = step == config.steps
            if step % config.log_every == 0 or ends:
                for number, lane in enumerate(lanes):
                    lane.log_step(step, pick(metrics, number), pick(guard, number))
            stops = first.stopping()
            if not stops and (step % config.eval_every == 0 or ends):
                stops = not all([lane.validate(step, pick(state, number)) for number, lane in enumerate(lanes)])
            if stops or step % config.checkpoint_every == 0 or ends:
                last[:] = [
                    lane.save(step, pick(state, number), pick(guard, number), called=False)
                    for number, lane in enumerate(lanes)
                ]
            if stops:
                for lane in lanes:
                    lane.saver.wait()
                signals.stop(f"step {step} of {config.steps} is saved")
        for lane in lanes:
            lane.saver.wait()
    return last


def stack(trees: Sequence[Any]) -> Any:
    """Stacks trees of arrays into one, with a leading axis for the tree."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def pick(tree: Any, number: int) -> Any:
    """One of the trees that :func:`stack` joined."""
    return jax.tree.map(lambda leaf: leaf[number], tree)


def _same_step(runs: Sequence[Path], newest: Sequence[Path | None]) -> list[Path | None]:
    """The checkpoints of the earliest of the seeds' newest steps; none if a seed has none."""
    if any(folder is None for folder in newest):
        return [None] * len(runs)
    name = min(folder.name for folder in newest if folder is not None)
    folders: list[Path | None] = []
    for run in runs:
        folder = run / "checkpoints" / name
        if int(name) not in checkpoint.complete_steps(run / "checkpoints"):
            raise UserError(
                f"{folder} is missing, the seeds' runs have no step in common; train each with train.seeds 1, or "
                "delete their folders"
            )
        folders.append(folder)
    return folders
