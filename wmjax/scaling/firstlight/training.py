"""Checks of training: buffers, checkpoints, speed, and whether one episode can be overfitted."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmjax.experiment.config import to_dict
from wmjax.models.backbones.pretrained import backbone_hash, load_backbone
from wmjax.models.parameters import to_named
from wmjax.models.vla import VLA, match_embeddings
from wmjax.scaling.arrays import compiled, peak_gb, throughput
from wmjax.scaling.clock import clocked, timed
from wmjax.scaling.firstlight.bench import Bench, shared
from wmjax.scaling.firstlight.request import Finding, judged
from wmjax.scaling.program import step_flops
from wmjax.trainer import checkpoint
from wmjax.trainer.config import Inputs
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.loop import train

ROUNDS = 5
OVERFIT_STEPS, OVERFIT_BATCH, OVERFIT_RATE = 100, 16, 1e-3
"""Of the training on one episode; ``--train.steps``, ``--train.batch_size`` and ``--optimizer.learning_rate`` replace
them."""
OVERFIT_DECAY = 0.9
"""Of the averaged parameters, which are scored and act: an average over a run of 100 steps would be its beginning."""
OVERFIT_BOUND = 0.7
"""Share of the first tenth's loss that the last tenth's may have."""


def check_donation(bench: Bench) -> Finding:
    """The training step reuses the memory of its state: in the compiler's plan, and at run time."""
    arrays, batch, prompts = bench.arrays(), bench.batch(), bench.prompts()
    program, needs = compiled(bench.programs().train_step, *arrays, batch, prompts)
    plan, given = program.memory_analysis(), jax.tree.leaves((arrays.state, arrays.guard))
    share = sum(leaf.addressable_shards[0].data.nbytes for leaf in given)
    jax.block_until_ready(program(*arrays, batch, prompts))
    remaining = sum(not leaf.is_deleted() for leaf in given)
    good = remaining == 0 and plan.alias_size_in_bytes >= 0.99 * share
    text = f"{plan.alias_size_in_bytes / 1e9:.3f} of {share / 1e9:.3f} GB of state per device are taken over, "
    text += f"{remaining} of {len(given)} arrays left; compiled in {needs['compile_s']:.0f} s, "
    text += f"{needs['arguments_gb']:.2f} GB of arguments and {needs['temporaries_gb']:.2f} GB of temporaries"
    return judged(
        good, text, arrays_left=remaining, alias_gb=plan.alias_size_in_bytes / 1e9, state_gb=share / 1e9, **needs
    )


def check_checkpoint(bench: Bench) -> Finding:
    """One save and one restore of the whole trained state, bit for bit."""
    named = to_named(bench.arrays().state)
    root = bench.scratch / "checkpoints"
    folder, saving = clocked(lambda: checkpoint.save(root, 1, {"state": named}, {}))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), named)
    found, restoring = clocked(lambda: jax.block_until_ready(checkpoint.restore(folder, "state", like)))
    # On the host: compared on the device, every shape would be a program to compile.
    same = all(np.array_equal(np.asarray(named[name]), np.asarray(found[name])) for name in named)
    size = sum(leaf.nbytes for leaf in named.values()) / 1e9
    text = (
        f"{size:.3f} GB saved in {saving:.1f} s, restored in {restoring:.1f} s, {'the same' if same else 'other'} bits"
    )
    return judged(same, text, gb=size, save_s=saving, restore_s=restoring)


def check_step(bench: Bench) -> Finding:
    """Samples/s of the training step on a batch that is on the devices; model FLOPs utilisation where it is known."""
    arrays, batch, prompts = bench.arrays(), bench.batch(), bench.prompts()
    step, box = bench.programs().train_step, [arrays.state, arrays.guard]

    def call() -> Any:
        *box[:], metrics = step(*box, arrays.frozen, batch, prompts)
        return metrics["loss"]

    finite = bool(jnp.isfinite(call()))
    seconds, dispatch = timed(call, jax.block_until_ready, ROUNDS, warm_up=1)
    size, devices = bench.experiment.train.batch_size, jax.device_count()
    work = step_flops(bench.experiment, bench.programs(), bench.mesh())["model_tflop_per_sample"]
    found = throughput(size, seconds, work * 1e12, devices)
    mfu, peak = found["mfu"], peak_gb()
    text = f"{found['samples_per_s']:.1f} samples/s at batch {size} on {devices} x {jax.devices()[0].device_kind}, "
    text += f"{work:.4g} TFLOP each, "
    text += "" if finite else "loss not finite, "
    text += f"MFU {100 * mfu:.0f} %" if mfu is not None else "MFU unknown: no data sheet of this device here"
    text += "" if peak is None else f", peak {peak:.1f} GB"
    return judged(finite, text, batch=size, devices=devices, dispatch_s=dispatch, peak_gb=peak, **found)


def check_overfit(bench: Bench) -> Finding:
    """A training on one episode, by the real loop from loader to checkpoint: its loss must fall."""
    folder = overfitted(bench)
    losses = [row["loss"] for row in _metrics(folder, "train")]
    tenth = max(1, len(losses) // 10)
    first, last = float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))
    scored = {name: value for row in _metrics(folder, "val") for name, value in row.items()}
    text = f"loss {first:.3f} to {last:.3f} in {len(losses)} steps, {last / first:.2f} of it (bound {OVERFIT_BOUND:g})"
    text += f"; R² of the arm on the same episode {scored['r2_arm']:.2f}" if "r2_arm" in scored else ""
    good = last <= OVERFIT_BOUND * first
    return judged(good, text, first_loss=first, last_loss=last, steps=len(losses), r2_arm=scored.get("r2_arm"))


@shared
def overfitted(bench: Bench) -> Path:
    """The folder of a run that was trained on one episode."""
    experiment, given = bench.experiment, bench.request.settings
    train_given, parts = given.get("train", {}), bench.mesh().shape["data"] * bench.mesh().shape["fsdp"]
    steps = experiment.train.steps if "steps" in train_given else OVERFIT_STEPS
    batch = experiment.train.batch_size if "batch_size" in train_given else -(-OVERFIT_BATCH // parts) * parts
    rate = experiment.optimizer.learning_rate if "learning_rate" in given.get("optimizer", {}) else OVERFIT_RATE
    ends: Any = {"eval_every": steps, "checkpoint_every": steps, "eval_batches": 1, "log_every": 1, "trackers": ()}
    decay = min(experiment.train.ema_decay, OVERFIT_DECAY)
    settings = dataclasses.replace(experiment.train, steps=steps, batch_size=batch, ema_decay=decay, **ends)
    optimizer = dataclasses.replace(experiment.optimizer, learning_rate=rate, warmup_steps=min(10, steps))
    whole = dataclasses.replace(experiment, train=settings, optimizer=optimizer)
    folder = bench.scratch / "run"
    train(
        lambda rngs: VLA(experiment.model, rngs=rngs),
        _one_episode(make_inputs(bench.demonstration(), bench.views(), experiment.prompt, experiment.model, settings)),
        folder,
        settings,
        optimizer,
        experiment.mesh,
        max_shift=experiment.encoder.max_shift,
        meta={"experiment": to_dict(whole), "backbone_hash": bench.given and backbone_hash(bench.given)},
        load_base=None if bench.given is None else functools.partial(_load, bench),
    )
    return folder


def _one_episode(inputs: Inputs) -> Inputs:
    """Trained and scored on the first episode."""
    return dataclasses.replace(inputs, train_episodes=np.array([0]), val_episodes=np.array([0]))


def _load(bench: Bench, params: Any, frozen: Any) -> tuple[Any, Any]:
    assert bench.given is not None
    loaded = load_backbone(bench.given, bench.experiment.model.backbone, params, frozen)
    return match_embeddings(bench.experiment.model, *loaded)


def _metrics(folder: Path, split: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["split"] == split]
