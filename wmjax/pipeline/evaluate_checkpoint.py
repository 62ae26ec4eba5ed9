"""The closed-loop evaluation of a checkpoint."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from wmjax.analysis.summary import Summary
from wmjax.core.devices import require_devices
from wmjax.core.errors import UserError
from wmjax.core.files import hash_json
from wmjax.core.location import Location
from wmjax.core.paths import enable_compilation_cache, records_folder
from wmjax.core.settings import SHUFFLED, dotted
from wmjax.core.specs import require_equal, to_dict
from wmjax.data.latents import LatentStore
from wmjax.data.store import TrainingStore
from wmjax.experiment.changes import changed_settings, saved_as_given
from wmjax.experiment.config import RESUMABLE, Experiment, from_dict
from wmjax.models.prompts import join_prompts
from wmjax.pipeline.demonstrations import find_store
from wmjax.pipeline.evaluate import evaluate
from wmjax.pipeline.latents import find_latents, made_before
from wmjax.policy.interventions import Donors
from wmjax.policy.places import Places
from wmjax.policy.policy import Policy, load_policy
from wmjax.policy.policy_actor import PolicyActor
from wmjax.policy.saved import find_policy
from wmjax.reporting.caveats import timing
from wmjax.reporting.video.nearest_frames import Album, spread
from wmjax.rollout.protocol import Protocol
from wmjax.rollout.settings import EvaluateSettings

log = logging.getLogger("wmjax.evaluate")


def evaluate_checkpoint(
    path: Path,
    protocol: Protocol,
    out: Path,
    settings: EvaluateSettings,
    *,
    data: Location | None = None,
    places: Places | None = None,
) -> Summary:
    """Evaluates a run's newest checkpoint, or one checkpoint's folder.

    ``data`` is the run's training store for a shuffled memory, if it is not in the cache. ``places`` is what to use in
    place of folders that the run's settings name, as on another machine.

    Raises:
        UserError: no complete checkpoint there, for a shuffled memory no training store or none of the protocol's
            tasks in it, or see :func:`wmjax.pipeline.evaluate.evaluate`.

    """
    actor, header, album = load_actor(path, protocol, settings, data=data, places=places)
    return evaluate(actor, protocol, out, settings, header, records=records_folder(), album=album)


def load_actor(
    path: Path,
    protocol: Protocol,
    settings: EvaluateSettings,
    *,
    data: Location | None = None,
    places: Places | None = None,
) -> tuple[PolicyActor, dict[str, Any], Album | None]:
    """A checkpoint as an actor of a protocol, with the evaluation's header and, if there are videos, their album.

    Raises:
        UserError: see :func:`evaluate_checkpoint`.

    """
    enable_compilation_cache()
    require_devices()
    header = {**identity(path), "batch_size": settings.batch}
    policy = load_policy(
        path,
        batch_size=settings.batch,
        open_loop_horizon=protocol.open_loop_horizon,
        oracle=protocol.oracle,
        corruption=protocol.corruption,
        realtime=protocol.realtime,
        execution_delay=protocol.execution_delay,
        places=places,
    )
    header |= timing(policy, protocol)
    donors = _donors(policy, data) if protocol.corruption in SHUFFLED else None
    if donors is not None:
        for task in protocol.tasks:  # says now what is missing, not after the first tasks
            donors.choose(np.random.default_rng(0), protocol.corruption, protocol.suite, task)
        header["donors"] = {"store": donors.store.hash, "latents": donors.latents.hash}
    return PolicyActor(policy, protocol.seed, donors), header, _album(policy) if settings.videos else None


def _album(policy: Policy) -> Album | None:
    """Frames that a policy was trained on, by their latents, if they are at hand and its Prophet predicts such latents.

    Videos mean the same without them: nothing is made or downloaded for it.
    """
    if not policy.predicts:
        return None
    try:
        if (made := made_before(policy.experiment)) is None:
            return None
        store, latents = made
        _require_same(policy, store, latents)
    except UserError as error:  # replaced since
        log.info("videos do not show the nearest training frames: %s", error)
        return None
    frames = spread(len(store.frame_step), latents.spec.tokens_per_frame * latents.spec.dim)
    camera = store.spec.cameras.index(latents.spec.cameras[0])
    found = policy.prophet_latents(np.asarray(latents.latents[0, frames], np.float32))
    return Album(store.frames, frames, camera, found)


def _require_same(policy: Policy, store: TrainingStore, latents: LatentStore) -> None:
    """Refuses demonstrations or latents that are not of the kind that a policy was trained on."""
    assert policy.encoder_spec is not None
    latents.check(store)
    require_equal(store.spec, policy.observation_spec, "the training data", "the checkpoint")
    # The policy's statistics are those of its training episodes.
    require_equal(latents.spec, policy.encoder_spec, "the training data", "the checkpoint", ignore=("mean", "std"))


def _donors(policy: Policy, data: Location | None) -> Donors:
    """The demonstrations that a policy was trained on, with their latents.

    Raises:
        UserError: they are not in the cache and not given, or they are not the policy's.

    """
    experiment = policy.experiment
    assert policy.encoder_spec is not None
    store = find_store(experiment, data)
    latents = find_latents(experiment, store, to_dict(policy.encoder_spec))
    assert latents is not None
    _require_same(policy, store, latents)
    prompts = join_prompts([policy.prompt(task.instruction) for task in store.tasks])
    return Donors(store, latents, experiment.model.prophet.history, prompts)


def identity(path: Path, *, acts: bool = True) -> dict[str, Any]:
    """A policy in an evaluation's header: its checkpoint and its recipe, and in words what it was trained on.

    Args:
        path: of a run or policy.
        acts: whether a run that trained its Prophet alone is refused.

    Raises:
        UserError: no complete checkpoint there, or one that does not act.

    """
    found = find_policy(path, acts=acts)
    experiment = found.meta["experiment"]
    encoder = found.meta["specs"]["encoder"]  # with the hash of its weights
    names = {name: experiment[name] for name in ("recipe", "scale", "dataset")}
    # Only what a parameter depends on.
    trained = {
        k: v
        for k, v in dotted(saved_as_given(experiment)).items()
        if k not in RESUMABLE and not k.startswith("evaluation.")
    }
    return {
        "checkpoint": {"step": found.step, "hash": found.hash},
        "experiment": {**names, "seed": experiment["train"]["seed"]},
        "recipe_hash": hash_json([trained, encoder]),
        "training": _training(from_dict(experiment)),
    }


def _training(experiment: Experiment) -> dict[str, Any]:
    """The training in more detail than recipe and hash: settings that are not in the recipe's files, and tasks."""
    try:
        changed = changed_settings(experiment)
    except UserError as error:  # files that were renamed since
        log.info("the settings that differ from the recipe's files are unknown: %s", error)
        changed = {}
    own = (*RESUMABLE, "train.seed")
    found = {"changed": {k: v for k, v in changed.items() if k not in own and not k.startswith("evaluation.")}}
    data = experiment.data
    return found if data.places else found | {"suite": data.suite, "tasks": list(data.tasks)}
