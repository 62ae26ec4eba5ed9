"""The training loop."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from wmjax.core import distributed, signals
from wmjax.core.errors import UserError
from wmjax.core.logs import bar
from wmjax.data.loader import BatchSource, LoaderConfig, make_loader
from wmjax.data.statistics import normalise_action
from wmjax.models.parameters import count, from_named, to_named
from wmjax.trainer import checkpoint
from wmjax.trainer.build import Arrays, BuildModel, Built, DataSpecs, build
from wmjax.trainer.clock import Clock, Speed
from wmjax.trainer.config import Inputs, TrainConfig
from wmjax.trainer.guard import GuardState, require_progress, skipped_since
from wmjax.trainer.metrics import MetricsWriter, mean_r2, r2_over_steps
from wmjax.trainer.optimizer import OptimizerConfig
from wmjax.trainer.program import Program
from wmjax.trainer.sharding import (
    MeshConfig,
    batch_shard,
    fetch,
    make_mesh,
    replicate,
    require_divisible,
    shard_batch,
)
from wmjax.trainer.step import Metrics, Parameters, TrainState
from wmjax.trainer.trace import StepTrace

log = logging.getLogger("wmjax.train")


OnCheckpoint = Callable[[int, Path, Any], None]
LoadBase = Callable[[nnx.State, nnx.State], tuple[nnx.State, nnx.State]]


def train(
    build_model: BuildModel,
    inputs: Inputs,
    run: Path,
    config: TrainConfig,
    optimizer_config: OptimizerConfig,
    mesh_config: MeshConfig,
    *,
    max_shift: int,
    meta: dict[str, Any],
    load_base: LoadBase | None = None,
    on_checkpoint: OnCheckpoint | None = None,
    copy: checkpoint.Copy | None = None,
    speed: Speed = lambda rate: {},
) -> Path:
    """Trains to ``config.steps`` and returns the last checkpoint's folder; a killed run resumes bit for bit.

    Args:
        build_model: makes the model from random keys.
        inputs: data and specs.
        run: the run's folder; ``checkpoints/`` and ``metrics.jsonl`` are written below it.
        config: lengths and intervals.
        optimizer_config: AdamW and its schedule.
        mesh_config: how devices are laid out.
        max_shift: augmentation, pixels.
        meta: JSON-able values saved in every checkpoint beside the specs.
        load_base: puts published weights in the place of random ones, in the trainable and the frozen state.
        on_checkpoint: called with (step, folder, frozen parameters by name) after each checkpoint, by every process,
            which may share work there. A run that resumes calls it with what it resumes from: it may have been killed
            in it.
        copy: where each checkpoint is copied to; with several processes each then has a ``run`` of its own.
        speed: called with samples/s; returns further metrics.

    Raises:
        UserError: batch and mesh do not fit, a checkpoint is not this run's or not writable, many updates are skipped.
        Stopped: a signal came; what was trained until then is saved.

    """
    # 1. The mesh, before any array exists.
    mesh = _connect(mesh_config, config)
    # 2. The checkpoint that it goes on from, if there is one, whose inputs these must be.
    folder = resumable(run / "checkpoints")
    saved = {} if folder is None else checkpoint.read_meta(folder)
    inputs = inputs if folder is None else inputs.as_in(saved)
    # 3. The programs and the layout of their arrays, which is known before memory is spent.
    specs = DataSpecs.of(inputs)
    built = build(build_model, mesh, specs, config, optimizer_config, mesh_config, max_shift=max_shift)
    # 4. The data: every process reads its slice of the same global order.
    loader = loader_config(config, inputs, mesh)
    stream = iter(make_loader(inputs.store, inputs.latents, inputs.train_episodes, loader, inputs.features))
    # 5. Where it begins: published weights below all, then what the checkpoint holds. Random keys follow from the step.
    state, guard, frozen = initial_arrays(built, load_base, folder)
    if folder is not None:
        stream.set_state(saved["loader"]["0"])
        if on_checkpoint is not None:
            on_checkpoint(int(state.step), folder, frozen)
    # 6. The loop.
    with contextlib.closing(stream), outputs(run, int(state.step), config, copy) as (writer, saver):
        steps = Program("the training step", built.train_step), Program("the validation step", built.eval_step)
        loop = Loop(config, inputs, loader, mesh, frozen, *steps, stream, writer, saver, meta, on_checkpoint, speed)
        return loop.run(state, guard, folder)


def _connect(mesh_config: MeshConfig, config: TrainConfig) -> Mesh:
    """The mesh of all devices of all processes."""
    mesh = make_mesh(mesh_config)
    require_divisible(config.batch_size, mesh)
    distributed.connect(mesh)
    log.info("mesh %s; %s", dict(mesh.shape), distributed.host_devices())
    return mesh


@contextlib.contextmanager
def outputs(
    run: Path, step: int, config: TrainConfig, copy: checkpoint.Copy | None = None
) -> Iterator[tuple[MetricsWriter, checkpoint.Saver]]:
    """The writers of a run: metrics from a step on, and checkpoints."""
    metrics = MetricsWriter(run, step, to_disk=distributed.is_first(), trackers=config.trackers)
    retention = checkpoint.Retention(config.max_to_keep, config.keep_period)
    with contextlib.closing(metrics), checkpoint.Saver(run / "checkpoints", retention, copy) as saver:
        yield metrics, saver


def initial_arrays(built: Built, load_base: LoadBase | None, folder: Path | None) -> Arrays:
    """The initial arrays by name: from the seed, with published weights in place of some, or from a checkpoint.

    Raises:
        UserError: a frozen parameter of published weights is not loaded.

    """
    state, guard, frozen = jax.block_until_ready(built.initialise())
    trained, total = count(state.params), count(state.params) + count(frozen)
    log.info("%s parameters, %s trainable", f"{total:,}", f"{trained:,}")
    if load_base is not None:
        params, frozen = load_base(state.params, frozen)
        state = state._replace(params=params, ema=jax.tree.map(jnp.copy, params))
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(frozen)):
        raise UserError(
            "train.backbone_weights names weights, but load_base brings none for a frozen parameter; load them, or set "
            "it to random"
        )
    named = Arrays(state, guard, frozen).named()
    if folder is not None:
        state, guard = _restore(folder, named.state, guard)
        named = named._replace(state=state, guard=guard)
        log.info("resumed at step %d from %s", int(state.step), folder)
    return named


@dataclasses.dataclass
class Loop:
    """Steps, validations and saves until the last step, or until a signal comes."""

    config: TrainConfig
    inputs: Inputs
    loader: LoaderConfig
    mesh: Mesh
    frozen: Parameters
    train_step: Program
    eval_step: Program
    stream: Any
    writer: MetricsWriter
    saver: checkpoint.Saver
    meta: dict[str, Any]
    on_checkpoint: OnCheckpoint | None
    speed: Speed = lambda rate: {}

    def run(self, state: TrainState, guard: GuardState, last: Path | None) -> Path:
        """Trains; returns the last checkpoint's folder, ``last`` if none was made.

        Raises:
            Stopped: a signal came; what was trained is saved.
            UserError: updates are skipped again and again, or a checkpoint cannot be written.

        """
        config, done = self.config, int(state.step)
        self.begin(done, int(guard.skipped))
        if done == config.steps and self.lacks_validation(done):
            self.validate(done, state)
        with signals.postponed(), self._trace:
            for step in range(done + 1, config.steps + 1):
                if step == done + 1:
                    with signals.at_once():  # compiling takes long, and nothing would be lost
                        self._prepare(step, state)
                        state, guard, metrics = self.update(step, state, guard)
                else:
                    state, guard, metrics = self.update(step, state, guard)
                ends = step == config.steps
                if step % config.log_every == 0 or ends:
                    self.log_step(step, metrics, guard)
                stops = self.stopping()
                if not stops and (step % config.eval_every == 0 or ends):
                    stops = not self.validate(step, state)
                if stops or step % config.checkpoint_every == 0 or ends:
                    last = self.save(step, state, guard, called=not stops)
                if stops:
                    self.saver.wait()
                    signals.stop(f"step {step} of {config.steps} is saved")
            self.saver.wait()
        assert last is not None
        return last

    def begin(self, step: int, skipped: int) -> None:
        """Starts the clock and places the prompts, given the number of earlier steps and of skipped ones."""
        self._clock, self.stopping = Clock(step, self.config, self.speed), distributed.Stopping(self.mesh)
        self._skipped = skipped
        prompts = replicate(self.inputs.prompts, self.mesh)  # once, not at every step
        self.inputs = dataclasses.replace(self.inputs, prompts=prompts)
        traced = self.config.profile_steps if distributed.is_first() else 0
        self._trace = StepTrace(self.writer.run / "profile", step + 2, traced)  # the step before compiles

    def _prepare(self, step: int, state: TrainState) -> None:
        """Does what an interrupted earlier process may have left undone, and compiles the validation."""
        if self.lacks_validation(step - 1):
            self.validate(step - 1, state)
        else:
            with _validation(self.inputs, self.loader) as stream:
                batch = shard_batch(next(stream), self.mesh)
            jax.block_until_ready(self.eval_step(state.ema, self.frozen, batch, self.inputs.prompts, np.int32(0)))

    def lacks_validation(self, step: int) -> bool:
        """Whether a process was stopped before the validation of the step that it saved."""
        due = step > 0 and (step % self.config.eval_every == 0 or step == self.config.steps)
        return due and bool(distributed.broadcast_from_first(lambda: not self.writer.has(step, "val")))

    def update(self, step: int, state: TrainState, guard: GuardState) -> tuple[TrainState, GuardState, Metrics]:
        """One step, on the stream's next batch."""
        self._trace.before(step)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            with self._clock.of("data"):
                batch = shard_batch(next(self.stream), self.mesh)
            results = self.train_step(state, guard, self.frozen, batch, self.inputs.prompts)
        self._trace.after(step, results)
        return results

    def log_step(self, step: int, metrics: Metrics, guard: GuardState) -> None:
        """Metrics to disk, a line to the log, and a warning for every skipped update."""
        config = self.config
        found, fetched = fetch((metrics, guard))
        skips = {"skipped": float(fetched.skipped)} if fetched.skipped else {}
        values = self.writer.write(step, "train", {**found, **skips, **self._clock.tick(step)})
        loss = values.get("loss", float("nan"))
        progress = f"{bar(step, config.steps)} step {step}/{config.steps}"
        log.info("%s  loss %.4f  %s", progress, loss, self._clock.left(step))
        source = BatchSource(
            self.inputs.store, self.inputs.latents, self.inputs.train_episodes, _unsharded(self.loader)
        )
        for number, value in skipped_since(fetched, self._skipped):
            samples = source.samples_of(number - 1)
            episodes = sorted({int(e) for e in self.inputs.store.frame_episode[samples]})
            text = "update skipped at step %d: loss %g; its batch has the samples %s of the episodes %s"
            log.warning(text, number, value, samples.tolist(), episodes)
        self._skipped = int(fetched.skipped)
        require_progress(fetched, config.max_skipped)

    def validate(self, step: int, state: TrainState) -> bool:
        """Scores the averaged parameters; returns whether it finished before a signal came."""
        with self._clock.of("validation"):
            found = validate(
                self.eval_step,
                state,
                self.frozen,
                self.inputs,
                self.loader,
                self.config.eval_batches,
                self.mesh,
                self.stopping,
            )
        if found is None:
            return False
        values = self.writer.write(step, "val", found)
        log.info("validation: %s", "  ".join(f"{k} {v:.3f}" for k, v in values.items() if k in LOGGED_METRICS))
        return True

    def save(self, step: int, state: TrainState, guard: GuardState, *, called: bool) -> Path:
        """Starts a save; if the checkpoint is evaluated during training, waits until it is complete."""
        with self._clock.of("save"):
            # The position counts global batches: process 0's is every process's, however many resume from it.
            position = {"loader": {"0": self.stream.get_state()}}
            skipping = {checkpoint.BAD: True} if int(guard.in_a_row) else {}
            items = {**checkpoint_items(state), GUARD: to_named(guard)}
            folder = self.saver.save(step, items, {**self.meta, **self.inputs.meta(), **position, **skipping})
        if called and self.on_checkpoint is not None:
            with self._clock.of("evaluation"):
                self.saver.wait()
                with signals.at_once():  # its results are stored step by step
                    self.on_checkpoint(step, folder, self.frozen)
        return folder


GUARD = "guard"
"""The item of a checkpoint that holds a :class:`GuardState`."""
LOGGED_METRICS = ("loss", "r2_arm", "r2/6", "world/skill_1", "world/skill_4", "memory/gate", "memory/ratio")


def loader_config(config: TrainConfig, inputs: Inputs, mesh: Mesh) -> LoaderConfig:
    """How this process loads its slice of every batch."""
    index, count = batch_shard(mesh)
    return dataclasses.replace(
        inputs.loader,
        batch_size=config.batch_size,
        seed=config.seed,
        shard_index=index,
        shard_count=count,
        threads=config.threads,
    )


def _validation(inputs: Inputs, loader: LoaderConfig) -> "contextlib.closing[Any]":
    """The batches of held-out episodes, frames as they are; closed at the end, because it reads ahead in threads."""
    plain = dataclasses.replace(loader, views=1, max_shift=0)
    batches = make_loader(inputs.store, inputs.latents, inputs.val_episodes, plain, inputs.features)
    return contextlib.closing(iter(batches))


def _unsharded(loader: LoaderConfig) -> LoaderConfig:
    """The configuration that loads the global batches instead of this process's part of them."""
    return dataclasses.replace(loader, shard_index=0, shard_count=1)


def checkpoint_items(state: TrainState) -> dict[str, dict[str, Any]]:
    """The trees of a checkpoint: averaged parameters for a policy, and the state that only training needs."""
    return {"ema": to_named(state.ema), "state": to_named(state._replace(ema=None))}


def resumable(checkpoints: Path) -> Path | None:
    """The newest intact checkpoint, the same for all processes; None if there is none at all.

    Raises:
        UserError: there are some, and none of them is intact.

    """

    def newest() -> int:
        return int(checkpoint.latest(checkpoints).name) if checkpoint.complete_steps(checkpoints) else -1

    step = distributed.broadcast_from_first(newest)
    return None if step < 0 else checkpoints / f"{step:08d}"


def _shapes(tree: Any) -> Any:
    """The tree of shapes from which :func:`wmjax.trainer.checkpoint.restore` makes arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _restore(folder: Path, state: TrainState, guard: GuardState) -> tuple[TrainState, GuardState]:
    saved = {name: checkpoint.restore(folder, name, tree) for name, tree in _shapes(checkpoint_items(state)).items()}
    rest = from_named(state._replace(ema=None), saved["state"])
    guard = from_named(guard, checkpoint.restore(folder, GUARD, _shapes(to_named(guard))))
    return rest._replace(ema=from_named(state.ema, saved["ema"])), guard


def validate(
    eval_step: Any,
    state: TrainState,
    frozen: Parameters,
    inputs: Inputs,
    loader: LoaderConfig,
    batches: int,
    mesh: Mesh,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Losses of the averaged parameters on held-out episodes, unshifted, and of a policy R² per action dimension.

    None if ``stopping``, which is asked after each batch, is true before the last one.
    """
    predicted, actual, masks, losses = [], [], [], []
    with _validation(inputs, loader) as stream:
        for index, batch in zip(range(batches), stream, strict=False):
            batch = shard_batch(batch, mesh)
            chunk, metrics = eval_step(state.ema, frozen, batch, inputs.prompts, np.int32(index))
            needed = batch["action"], batch["state"], batch["action_mask"]
            chunk, action, decided_at, mask, metrics = fetch((chunk, *needed, metrics))
            predicted.append(chunk)
            actual.append(np.asarray(normalise_action(action, inputs.action_spec, decided_at)))
            masks.append(mask)
            losses.append(metrics)
            if stopping() and index + 1 < batches:
                return None
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *losses)
    if predicted[0] is None:
        return mean
    r2 = r2_over_steps(np.concatenate(predicted), np.concatenate(actual), np.concatenate(masks))
    arm, grippers = inputs.action_spec.arm, inputs.action_spec.grippers
    scores = {f"r2/{i}": value for i, value in zip(arm + grippers, r2, strict=True)} | {
        "r2_arm": mean_r2(r2[: len(arm)])
    }
    return mean | {name: value for name, value in scores.items() if np.isfinite(value)}  # undefined where nothing moves
