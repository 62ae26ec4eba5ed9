"""The training loop, top to bottom."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from wmjax.core import distributed
from wmjax.core.logs import bar
from wmjax.core.rng import named_key
from wmjax.data.loader import LoaderConfig, make_loader
from wmjax.data.statistics import normalise_action
from wmjax.models.parameters import count, from_named, split_model, to_named, trainable_filter
from wmjax.trainer import checkpoint
from wmjax.trainer.config import Inputs, TrainConfig
from wmjax.trainer.metrics import MetricsWriter, mean_r2, r2_over_steps
from wmjax.trainer.optimizer import OptimizerConfig, make_optimizer
from wmjax.trainer.sharding import MeshConfig, batch_shard, fetch, make_mesh, require_divisible, shard_batch, shardings
from wmjax.trainer.step import TrainState, initial_state, make_eval_step, make_train_step

log = logging.getLogger("wmjax.train")


OnCheckpoint = Callable[[int, Path], None]
LoadBase = Callable[[nnx.State, nnx.State], tuple[nnx.State, nnx.State]]


def train(
    build_model: Callable[[nnx.Rngs], nnx.Module],
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
        on_checkpoint: called with (step, folder) after each checkpoint, on process 0; the others wait. A run that
            resumes calls it again with the checkpoint that it resumes from: it may have been killed in it.

    Raises:
        UserError: batch and mesh do not fit, or a checkpoint does not belong to this run.
        FloatingPointError: the loss is not finite.

    """
    # 1. The mesh, before any array exists.
    mesh = make_mesh(mesh_config)
    require_divisible(config.batch_size, mesh)
    distributed.connect(mesh)

    # 2. The model and the optimizer, first as shapes only: shardings are known before memory is spent.
    optimizer = make_optimizer(optimizer_config, config.steps)
    trainable = trainable_filter(config.trainable)

    def initialise() -> tuple[TrainState, nnx.State]:
        model = build_model(nnx.Rngs(named_key(config.seed, "parameters")))
        _, params, frozen = split_model(model, trainable)
        return initial_state(params, optimizer), frozen

    graph = split_model(nnx.eval_shape(lambda: build_model(nnx.Rngs(0))), trainable)[0]
    state_shape, frozen_shape = jax.eval_shape(initialise)
    state_sharding = shardings(state_shape, mesh)
    frozen_sharding = shardings(frozen_shape, mesh, replicate=not mesh_config.shard_frozen)

    # 3. The data: every process reads its slice of the same global order.
    loader = _loader_config(config, inputs, mesh)
    stream = iter(make_loader(inputs.store, inputs.latents, inputs.train_episodes, loader))

    # 4. Resume order: published weights below all; parameters and moments from the newest complete checkpoint, else
    #    from the seed; then the data stream's position, which belongs to the same step. Random keys need nothing:
    #    they follow from the step.
    checkpoints = run / "checkpoints"
    state, frozen = jax.jit(initialise, out_shardings=(state_sharding, frozen_sharding))()
    if load_base is not None:
        params, frozen = load_base(state.params, frozen)
        state = state._replace(params=params, ema=jax.tree.map(jnp.copy, params))
    if checkpoint.complete_steps(checkpoints):
        folder = checkpoint.latest(checkpoints)
        saved = checkpoint.read_meta(folder)
        inputs.require_same(saved)
        state = _restore(folder, state)
        stream.set_state(saved["loader"]["0"])
        log.info("resumed at step %d from %s", int(state.step), folder)
        if on_checkpoint is not None:
            distributed.alone(functools.partial(on_checkpoint, int(state.step), folder))

    # 5. The two steps. Donating the state halves its memory; out_shardings keep the layout from drifting.
    train_step = jax.jit(
        make_train_step(
            graph,
            optimizer,
            inputs.action_spec,
            inputs.encoder_spec,
            seed=config.seed,
            ema_decay=config.ema_decay,
            max_shift=max_shift,
            state_noise=config.state_noise,
            cameras=inputs.cameras,
        ),
        donate_argnums=0,
        out_shardings=(state_sharding, None),
    )
    eval_step = jax.jit(make_eval_step(graph, inputs.action_spec, inputs.encoder_spec, seed=config.seed))
    trained, frozen_count = count(state.params), count(frozen)
    log.info("%s parameters, %s trainable; mesh %s", f"{trained + frozen_count:,}", f"{trained:,}", dict(mesh.shape))

    # 6. The loop.
    writer = MetricsWriter(run, to_disk=distributed.is_first())
    clock = _Clock(int(state.step), config)
    last = checkpoints / f"{int(state.step):08d}"
    for step in range(int(state.step) + 1, config.steps + 1):
        batch = shard_batch(next(stream), mesh)
        state, metrics = train_step(state, frozen, batch, inputs.prompts)
        if step % config.log_every == 0 or step == config.steps:
            values = writer.write(step, "train", {**fetch(metrics), **clock.tick(step)})
            progress = f"{bar(step, config.steps)} step {step}/{config.steps}"
            log.info("%s  loss %.4f  %s", progress, values["loss"], clock.left(step))
        if step % config.eval_every == 0 or step == config.steps:
            found = validate(eval_step, state, frozen, inputs, loader, config.eval_batches, mesh)
            values = writer.write(step, "val", found)
            log.info("validation: %s", "  ".join(f"{k} {v:.3f}" for k, v in values.items() if k in SHOWN))
        if step % config.checkpoint_every == 0 or step == config.steps:
            # The position counts global batches: process 0's is every process's, however many resume from it.
            position = {"0": stream.get_state()}
            full = {**meta, **inputs.meta(), "loader": position}
            last = checkpoint.save(checkpoints, step, _items(state), full)
            if on_checkpoint is not None:
                distributed.alone(functools.partial(on_checkpoint, step, last))
    writer.close()
    return last


SHOWN = ("loss", "r2_arm", "r2/6", "world/skill_1", "world/skill_4", "memory/gate", "memory/ratio")


def _loader_config(config: TrainConfig, inputs: Inputs, mesh: Mesh) -> LoaderConfig:
    index, count = batch_shard(mesh)
    return dataclasses.replace(
        inputs.loader,
        batch_size=config.batch_size,
        seed=config.seed,
        shard_index=index,
        shard_count=count,
        threads=config.threads,
    )


def _items(state: TrainState) -> dict[str, dict[str, Any]]:
    """What a checkpoint holds: the averaged parameters, which a policy needs, apart from what only training needs."""
    return {"ema": to_named(state.ema), "state": to_named(state._replace(ema=None))}


def _restore(folder: Path, state: TrainState) -> TrainState:
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _items(state))
    saved = {name: checkpoint.restore(folder, name, tree) for name, tree in like.items()}
    rest = from_named(state._replace(ema=None), saved["state"])
    return rest._replace(ema=from_named(state.ema, saved["ema"]))


def validate(
    eval_step: Any,
    state: TrainState,
    frozen: nnx.State,
    inputs: Inputs,
    loader: LoaderConfig,
    batches: int,
    mesh: Mesh,
) -> dict[str, Any]:
    """Losses and R² per action dimension of the averaged parameters on held-out episodes, unshifted."""
    predicted, actual, masks, losses = [], [], [], []
    plain = dataclasses.replace(loader, views=1, max_shift=0)
    stream = make_loader(inputs.store, inputs.latents, inputs.val_episodes, plain)
    for index, batch in zip(range(batches), stream, strict=False):
        batch = shard_batch(batch, mesh)
        chunk, metrics = eval_step(state.ema, frozen, batch, inputs.prompts, np.int32(index))
        chunk, action, mask, metrics = fetch((chunk, batch["action"], batch["action_mask"], metrics))
        predicted.append(chunk)
        actual.append(np.asarray(normalise_action(action, inputs.action_spec)))
        masks.append(mask)
        losses.append(metrics)
    r2 = r2_over_steps(np.concatenate(predicted), np.concatenate(actual), np.concatenate(masks))
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *losses)
    arm, grippers = inputs.action_spec.arm, inputs.action_spec.grippers
    scores = {f"r2/{i}": value for i, value in zip(arm + grippers, r2, strict=True)} | {
        "r2_arm": mean_r2(r2[: len(arm)])
    }
    return mean | {name: value for name, value in scores.items() if np.isfinite(value)}  # undefined where nothing moves


class _Clock:
    """Samples per second since the last tick, and the time left."""

    def __init__(self, step: int, config: TrainConfig):
        self._config, self._step, self._time = config, step, time.monotonic()
        self._rate = 0.0

    def tick(self, step: int) -> dict[str, float]:
        now = time.monotonic()
        self._rate = (step - self._step) / max(now - self._time, 1e-9)
        self._step, self._time = step, now
        return {"samples_per_second": self._rate * self._config.batch_size}

    def left(self, step: int) -> str:
        minutes = (self._config.steps - step) / max(self._rate, 1e-9) / 60
        return f"{self._rate * self._config.batch_size:.0f} samples/s  {minutes:.1f} min left"
