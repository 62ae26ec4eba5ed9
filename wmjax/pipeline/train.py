"""The stages of a training run, in order: plan, demonstrations, latents, training, closed loop, verdict."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from wmjax.analysis.summary import Summary, summarize
from wmjax.core import distributed, logs
from wmjax.core.devices import require_devices
from wmjax.core.errors import UserError
from wmjax.core.files import owned
from wmjax.core.location import Location, Remote
from wmjax.core.paths import enable_compilation_cache
from wmjax.core.shards import UNSHARDED, own_shard
from wmjax.data.latents import LatentStore
from wmjax.data.shift import ViewTable
from wmjax.data.store import TrainingStore
from wmjax.experiment.checks import given_store, require_consistent, require_side_by_side
from wmjax.experiment.config import Experiment, load, to_dict
from wmjax.experiment.dimensions import of_store
from wmjax.experiment.next_steps import next_steps
from wmjax.experiment.plan import RunPlan, default_folder, plan_run, require_saved, save_settings
from wmjax.models.backbones.pretrained import load_backbone
from wmjax.models.vla import match_embeddings
from wmjax.models.world_model import network
from wmjax.pipeline.demonstrations import demonstrations
from wmjax.pipeline.evaluate_checkpoint import evaluate_checkpoint
from wmjax.pipeline.latents import latents_or_views
from wmjax.pipeline.memory_fit import chosen, chosen_side_by_side, free_memory, resumed
from wmjax.pipeline.ridge_start import start_at_ridge
from wmjax.pipeline.start import Start, end_parameters, starting_point
from wmjax.pipeline.utilisation import utilisation
from wmjax.pipeline.vision_features import vision_features
from wmjax.policy.places import copy_assets
from wmjax.policy.restore import sharing
from wmjax.rollout.evaluation_shards import gather, shard_folder
from wmjax.rollout.results import read_header
from wmjax.rollout.settings import EvaluateSettings
from wmjax.scaling.dry_run import describe
from wmjax.trainer import checkpoint as checkpoints
from wmjax.trainer.config import Inputs
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.loop import LoadBase, resumable, train
from wmjax.trainer.mirror import Mirror
from wmjax.trainer.seeds import seeds_of, train_seeds
from wmjax.trainer.trackers import require_trackers


def run(
    recipe: str,
    scale: str,
    dataset: str | None,
    settings: dict[str, Any],
    *,
    folder: Location | None = None,
    evaluates: bool = True,
) -> None:
    """Runs all stages of an experiment.

    Args:
        recipe: a variant and a head, such as ``e2_flow``.
        scale: a file of ``train/scales``.
        dataset: a file of ``train/data``; the scale's when None.
        settings: nested settings, laid over the files.
        folder: the run's folder; ``<cache>/runs/<name>`` when None. Of a URL every process has its folder in the cache,
            and a copy is kept there, from which other machines go on (:mod:`wmjax.trainer.mirror`).
        evaluates: whether the closed-loop evaluation follows the training.

    Raises:
        UserError: bad settings, data or weights, or a URL that cannot be read or written to.

    """
    enable_compilation_cache()
    # 1. What will run.
    experiment = load(recipe, scale, dataset, settings)
    require_trackers(experiment.train.trackers)
    evaluates = evaluates and experiment.train.objective == "policy"  # nothing else acts
    mirror = _mirror(experiment, folder)
    if mirror is not None:
        distributed.join()  # every process has a folder of its own, by its number
        folder = mirror.run
    assert not isinstance(folder, Remote)
    if experiment.train.seeds > 1:
        _run_seeds(experiment, folder, evaluates=evaluates)
        return
    plan = plan_run(experiment, folder, evaluates=evaluates)
    with contextlib.ExitStack() as stack:
        if distributed.is_first() or mirror is not None:
            stack.enter_context(owned(plan.folder, "run", "choose another folder with --run"))
        _run_stages(plan, mirror, evaluates=evaluates)


def _mirror(experiment: Experiment, folder: Location | None) -> Mirror | None:
    """What keeps the copy of a run whose folder is a URL."""
    if not isinstance(folder, Remote):
        return None
    if experiment.train.seeds > 1:
        raise UserError(f"--run is {folder}, but train.seeds keeps no copies of its runs; name a folder")
    return Mirror(folder)


def _run_stages(plan: RunPlan, mirror: Mirror | None, *, evaluates: bool) -> None:
    """The stages, in a folder that belongs to this job."""
    experiment, first = plan.experiment, distributed.is_first()
    start = _start(experiment)
    log = logs.set_up(level=logging.INFO if first else logging.WARNING)
    if mirror is not None:  # before log.txt is opened, which is fetched too
        distributed.alone(mirror.fetch)
    plan = resumed(plan)
    if first:
        logs.set_up(plan.folder / "log.txt")
    log.info("recipe %s, scale %s, data %s -> %s", experiment.recipe, experiment.scale, experiment.dataset, plan.folder)
    distributed.alone(lambda: save_settings(plan.folder, plan.settings))
    distributed.alone(lambda: copy_assets(plan.folder, experiment))
    if mirror is not None:  # a place that cannot be written to is refused now
        distributed.alone(mirror.push)
        plan = plan if first else resumed(plan, mirror.place)
    require_saved(plan.folder if first or mirror is None else mirror.place, plan.settings)
    if mirror is not None and (newest := resumable(plan.folder / "checkpoints")) is not None:
        mirror.follow(int(newest.name))
    # 2. Demonstrations. 3. Latents.
    store, latents = _data(plan)
    # 4. Training.
    checkpoint = train_policy(plan, store, latents, start, mirror)
    if experiment.train.objective == "world":
        distributed.alone(lambda: print(f"{checkpoint}\npolicies start from it with --train.init_from {plan.folder}"))
    # 5. Closed loop. 6. The verdict.
    if evaluates:
        judge(plan, checkpoint, functools.partial(verdict, plan), shared=mirror is None)
    if mirror is not None:
        distributed.alone(mirror.push)


def _start(experiment: Experiment) -> Start | None:
    """The checkpoint that the training starts from; None if it names none."""
    start = starting_point(experiment.train.init_from)
    if start is not None:
        start.require_same_prophet(experiment.model)
    return start


def _data(plan: RunPlan) -> tuple[TrainingStore, LatentStore | ViewTable]:
    """The demonstrations and their latents, existing ones or made now."""
    store = plan.store or distributed.first(lambda: demonstrations(plan.experiment))
    if plan.protocol is not None:  # demonstrations of another simulator would be refused there, after the training
        environment = plan.protocol.environment
        distributed.alone(lambda: environment.simulator(store.spec))
    latents = distributed.first(lambda: latents_or_views(plan.experiment, store, plan.latent_spec))
    fix = "put them at a URL or in a folder that all processes read, with --data.path and --encoder.path"
    distributed.require_same("demonstrations", store.hash, fix)
    if not isinstance(latents, ViewTable):
        distributed.require_same("latents", latents.hash, fix)
    return store, latents


def _run_seeds(experiment: Experiment, folder: Path | None, *, evaluates: bool) -> None:
    """The stages of several seeds that are trained side by side, each in its own folder.

    Raises:
        UserError: several processes, or evaluations during the training.

    """
    require_side_by_side(experiment)
    plans = []
    for config in seeds_of(experiment.train):
        own = None if folder is None else folder.with_name(f"{folder.name}-s{config.seed}")
        plan = plan_run(dataclasses.replace(experiment, train=config), own, evaluates=evaluates)
        plans.append(chosen_side_by_side(resumed(plan)))
    experiment = dataclasses.replace(plans[0].experiment, train=experiment.train)  # with the sizes of the data
    start = _start(experiment)
    with contextlib.ExitStack() as stack:
        for plan in plans:
            stack.enter_context(owned(plan.folder, "run", "choose another folder with --run"))
        log = logs.set_up(plans[0].folder / "log.txt")
        for plan in plans:
            log.info("seed %d -> %s", plan.experiment.train.seed, plan.folder)
            save_settings(plan.folder, plan.settings)
            copy_assets(plan.folder, plan.experiment)
        store, latents = _data(plans[0])
        resumes = all(_has_checkpoints(plan) for plan in plans)
        inputs, load = training_inputs(plans[0], store, latents, start, resumes=resumes)
        ends = train_seeds(
            lambda rngs: network(experiment.model, experiment.train.objective, rngs),
            inputs,
            [plan.folder for plan in plans],
            experiment.train,
            experiment.optimizer,
            max_shift=experiment.encoder.max_shift,
            metas=[_meta(plan) for plan in plans],
            load_base=load,
        )
        for plan, end in zip(plans, ends, strict=True):
            if evaluates:
                judge(plan, end, functools.partial(verdict, plan))
            else:
                print(end)


def dry_run(
    recipe: str,
    scale: str,
    dataset: str | None,
    settings: dict[str, Any],
    *,
    folder: Location | None = None,
    evaluates: bool = True,
) -> None:
    """Prints what :func:`run` would do with the same arguments; reads neither data nor weights.

    Raises:
        UserError: settings that contradict each other, or a mesh that does not fit the devices.

    """
    experiment = load(recipe, scale, dataset, settings)
    _mirror(experiment, folder)
    given = given_store(experiment, needed=False)
    experiment = of_store(experiment, given)
    require_consistent(experiment, given, evaluates=evaluates and experiment.train.objective == "policy")
    distributed.join()
    require_devices()
    text = f"run: {folder or default_folder(experiment)}\n{describe(experiment)}"
    distributed.alone(lambda: print(text))


def train_policy(
    plan: RunPlan,
    store: TrainingStore,
    latents: LatentStore | ViewTable,
    start: Start | None = None,
    copy: checkpoints.Copy | None = None,
) -> Path:
    """Trains the plan's model, from another run's checkpoint if ``start`` is one; returns the last checkpoint's folder.

    A new run first chooses what its settings leave open, and saves it in its ``config.json``. Each checkpoint is copied
    to ``copy`` in the background.

    Raises:
        UserError: the data do not fit the model or ``start``, or the training step does not fit into memory.

    """
    inputs, load = training_inputs(plan, store, latents, start, resumes=_has_checkpoints(plan))
    plan = chosen(plan, inputs, free_memory(), shared=copy is None)
    experiment = plan.experiment
    return train(
        lambda rngs: network(experiment.model, experiment.train.objective, rngs),
        inputs,
        plan.folder,
        experiment.train,
        experiment.optimizer,
        experiment.mesh,
        max_shift=experiment.encoder.max_shift,
        meta=_meta(plan),
        on_checkpoint=functools.partial(judge_early, plan, copy is None) if experiment.evaluation.every else None,
        load_base=load,
        copy=copy,
        speed=utilisation(experiment, inputs),
    )


def training_inputs(
    plan: RunPlan, store: TrainingStore, latents: LatentStore | ViewTable, start: Start | None, *, resumes: bool
) -> tuple[Inputs, LoadBase | None]:
    """The inputs of a plan's training, and the function that replaces random initial parameters.

    What ``resumes`` has trained parameters, so that the Prophet's linear part needs no fit.

    Raises:
        UserError: the data do not fit the model or ``start``.

    """
    experiment, weights = plan.experiment, plan.weights.folder
    features = distributed.first(lambda: vision_features(experiment, plan.weights, store))
    settings = experiment.prompt, experiment.model, experiment.train, experiment.data.mixture
    inputs = make_inputs(store, latents, *settings, features=features)
    loads: list[LoadBase] = []
    if weights is not None:
        loads.append(functools.partial(load_backbone, weights, experiment.model.backbone))
        loads.append(functools.partial(match_embeddings, experiment.model))
    if start is not None:
        inputs = start.adopt_statistics(inputs)
    if not resumes and not (start is not None and start.is_world):
        loads.append(functools.partial(start_at_ridge, inputs, experiment.model))
    if start is not None:
        ends = start.new_ends(inputs)
        loads.append(functools.partial(start.load, new=end_parameters(experiment, ends) if ends else ()))
    return inputs, functools.partial(_load_all, loads) if loads else None


def _has_checkpoints(plan: RunPlan) -> bool:
    """Whether the first process resumes: what others still have of an earlier run at the same URL does not count."""
    return bool(distributed.broadcast_from_first(lambda: len(checkpoints.complete_steps(plan.folder / "checkpoints"))))


def _meta(plan: RunPlan) -> dict[str, Any]:
    """What a checkpoint says of its run beside the specs."""
    return {"experiment": to_dict(plan.experiment), "backbone_hash": plan.weights.hash}


def _load_all(loads: Sequence[LoadBase], params: nnx.State, frozen: nnx.State) -> tuple[nnx.State, nnx.State]:
    """Applies several loads, the later ones on top."""
    for load_one in loads:
        params, frozen = load_one(params, frozen)
    return params, frozen


def judge_early(plan: RunPlan, shared: bool, step: int, checkpoint: Path, frozen: dict[str, Any]) -> None:
    """Evaluates a checkpoint in the middle of training, if the settings require it, on the training's frozen arrays."""
    every = plan.experiment.evaluation.every
    if plan.protocol and every and step % every == 0 and step < plan.experiment.train.steps:
        with sharing(frozen):
            judge(plan, checkpoint, Summary.table, shared=shared)


def judge(plan: RunPlan, checkpoint: Path, report: Callable[[Summary], str], *, shared: bool = True) -> None:
    """Prints a report on the closed-loop success of a checkpoint, on the protocol's tasks that it was trained on.

    Every process of the job runs a part of the episodes, with a policy of its own. If they do not share the run's
    folder, the first process, which has the whole checkpoint, runs all of them.
    """
    assert plan.protocol is not None
    if not shared:
        whole = dataclasses.replace(plan.experiment.evaluation, shard=UNSHARDED)
        distributed.alone(lambda: print(report(_evaluated(plan, checkpoint, whole))))
        return
    out, shard = plan.evaluation_folder(checkpoint), own_shard()
    summary = _evaluated(plan, checkpoint, dataclasses.replace(plan.experiment.evaluation, shard=shard))
    if shard != UNSHARDED:
        distributed.wait()
        summary = summarize(gather(out, read_header(shard_folder(out, shard))).values())
    distributed.alone(lambda: print(report(summary)))


def _evaluated(plan: RunPlan, checkpoint: Path, settings: EvaluateSettings) -> Summary:
    assert plan.protocol is not None
    return evaluate_checkpoint(checkpoint, plan.protocol, plan.evaluation_folder(checkpoint), settings)


def verdict(plan: RunPlan, summary: Summary) -> str:
    """The outcome of a finished run in a few lines: the success table, the run's folder, and the next commands."""
    assert plan.protocol is not None
    steps = next_steps(plan.experiment, plan.folder, plan.protocol)
    lines = ["", summary.table(), "", f"run: {plan.folder}", "next:", *(f"  {line}" for line in steps)]
    return "\n".join(lines)
