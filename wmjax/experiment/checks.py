"""Checks for settings that contradict each other, before anything is recorded, encoded or trained.

Without them each contradiction would appear only later: after the recording, or after the whole training.
"""

from collections.abc import Iterator
from pathlib import Path

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.handover import make_handover
from wmjax.core.location import location
from wmjax.core.shards import UNSHARDED
from wmjax.data.labels import check_branches, check_labels, require_branches, require_labels
from wmjax.data.motion import find_motion
from wmjax.data.shift import require_shift
from wmjax.data.split import SPLIT_SEED, split_episodes
from wmjax.data.statistics import delta_indices
from wmjax.data.store import TrainingStore
from wmjax.data.union import join_stores
from wmjax.encoders.base import ENCODERS
from wmjax.experiment.config import Experiment
from wmjax.models.backbones.frozen_vision import frozen_tower
from wmjax.models.heads.base import require_inpainting
from wmjax.models.prompts import make_prepare
from wmjax.models.world.config import intervention_error
from wmjax.models.world_model import require_world_objective
from wmjax.rollout.protocol import Protocol, load_protocol
from wmjax.rollout.protocol_list import Cell
from wmjax.sim.libero import ACTION_SPEC, SUITES, task_instructions


def require_consistent(
    experiment: Experiment, store: TrainingStore | None = None, *, evaluates: bool = True
) -> Cell | None:
    """Refuses an experiment that could not be trained and evaluated to its end.

    Returns the protocol of its evaluation, see :func:`final_protocol`; None if the closed loop does not follow.

    Args:
        experiment: all settings.
        store: the demonstrations of ``data.path`` or ``data.paths``; None if they are still to be recorded. With one of
            these but no store (a dry run on another machine) what depends on the data is left out.
        evaluates: whether the closed loop follows; its protocol does not matter otherwise.

    Raises:
        UserError: the first setting that does not fit, its value and a value that does.

    """
    _require_validation(experiment, store)
    _require_precision(experiment)
    _require_latents(experiment)
    if store is not None:
        stride: int | None = store.spec.frame_stride
    else:
        stride = None if experiment.data.places else experiment.data.observation.frame_stride
    _require_tasks(experiment)
    _require_labels(experiment, store)
    _require_deltas(experiment, store)
    _require_shift(experiment, store)
    _require_prompts(experiment, store)
    _require_trained_prophet(experiment)
    _require_cached_vision(experiment, store)
    if experiment.train.objective == "world":
        require_world_objective(experiment.model)
    _require_memory(experiment, stride)
    _require_pending(experiment, store)
    if not evaluates:
        return None
    evaluation = final_protocol(experiment, store)
    _require_protocol(experiment, evaluation.protocol, stride)
    return evaluation


def require_side_by_side(experiment: Experiment) -> None:
    """Refuses evaluations during a training of several seeds in one program, and a trace of it.

    Raises:
        UserError: they are requested.

    """
    seeds, every, traced = experiment.train.seeds, experiment.evaluation.every, experiment.train.profile_steps
    if every:
        raise UserError(
            f"train.seeds is {seeds} with evaluation.every {every}; seeds that are trained side by side are evaluated "
            "at the end, set evaluation.every to 0"
        )
    if traced:
        raise UserError(f"train.profile_steps is {traced} with train.seeds {seeds}; trace one seed, or set it to 0")


def final_protocol(experiment: Experiment, store: TrainingStore | None) -> Cell:
    """The protocol of the evaluation after training, on the tasks that are trained on, and as its file has it.

    Args:
        experiment: all settings.
        store: the demonstrations, if settings name them. Published ones number their tasks in their own way:
            then all tasks of the protocol are run.

    Raises:
        UserError: no such protocol, one that has not these tasks or episodes, or a part of the episodes only.

    """
    settings, data = experiment.evaluation, experiment.data
    if settings.shard != UNSHARDED:
        raise UserError(
            f"evaluation.shard is {list(settings.shard)}, but a training runs all episodes in as many parts as it has "
            "processes; leave it out"
        )
    origins = {"tasks": "data.tasks", "episodes_per_task": "evaluation.episodes_per_task"}
    unchanged = load_protocol(settings.protocol)
    tasks: tuple[int, ...] | None = data.tasks
    if data.places:
        # LIBERO-PRO's suites have the tasks of the suite whose name they begin with.
        known, recorded = unchanged.environment.suites, store.tasks if store else ()
        own = {t.task_id for t in recorded if t.suite in known and unchanged.suite.startswith(t.suite)}
        tasks = tuple(sorted(own)) or None
    oracle = 0.0 if experiment.model.memory.needs_future else None
    changes = {"tasks": tasks, "episodes_per_task": settings.episodes_per_task, "oracle": oracle}
    return Cell(load_protocol(settings.protocol, origins, **changes), unchanged)


def given_store(experiment: Experiment, *, needed: bool = True) -> TrainingStore | None:
    """The demonstrations that ``data.path`` or ``data.paths`` name, as one store.

    None if they name none, or if they are not ``needed`` and not here.

    Raises:
        UserError: they are needed and not there, or damaged, or do not belong together.

    """
    places = [location(path) for path in experiment.data.places]
    # A dry run must not need a network.
    here = all(isinstance(place, Path) and place.is_dir() for place in places)
    return join_stores([TrainingStore(place) for place in places]) if places and (needed or here) else None


def _require_validation(experiment: Experiment, store: TrainingStore | None) -> None:
    """Requires at least one validation episode, of a task that also has a training episode."""
    fraction, data = experiment.train.validation_fraction, experiment.data
    if not data.places and data.episodes_per_task < 2:
        raise UserError(
            f"data.episodes_per_task is {data.episodes_per_task}; give at least 2: one to train on, one to validate on"
        )
    if store is not None and not len(split_episodes(store.episodes, fraction, SPLIT_SEED)[1]):
        raise UserError(
            f"data.path is {', '.join(data.places)}, where no task has 2 episodes, one to train on and one to validate "
            "on; record or convert more"
        )


def _require_tasks(experiment: Experiment) -> None:
    """What is recorded exists: the suite, and the tasks in it."""
    data = experiment.data
    if data.places:
        return
    if data.suite not in SUITES:
        raise unknown_name("data.suite", data.suite, SUITES)
    if not data.tasks or len(set(data.tasks)) != len(data.tasks) or max(data.tasks) >= SUITES[data.suite]:
        raise UserError(
            f"data.tasks is {list(data.tasks)}; name tasks of {data.suite}, 0..{SUITES[data.suite] - 1}, and each once"
        )


def _require_labels(experiment: Experiment, store: TrainingStore | None) -> None:
    """The chunk's actions and the target's frames are in the labels that there are, or that will be recorded."""
    chunk, delay, data = experiment.model.chunk, experiment.train.delay, experiment.data
    if store is not None:
        check_labels(store, chunk, delay)
    elif not data.places and (steps := data.demonstrations.label_steps):
        stride = data.observation.frame_stride
        require_labels(steps, stride, chunk, delay, "the chunk labels of data.demonstrations.label_steps")
    if experiment.model.memory.target != "branch":
        return
    future = experiment.model.prophet.future
    if store is not None:
        check_branches(store, future, delay)
    elif not data.places:
        branch, stride = data.demonstrations.branch_frames, data.observation.frame_stride
        require_branches(branch, stride, future, delay, "the branches of data.demonstrations.branch_frames")


def _require_deltas(experiment: Experiment, store: TrainingStore | None) -> None:
    """The actions that are learned as differences have a value of the state that they can be differences to."""
    names = experiment.train.delta_actions
    if names and experiment.model.roll_state:
        raise UserError(
            f"train.delta_actions is {', '.join(names)}, but model.roll_state gives the network another state than the "
            "differences are to; leave one of them out"
        )
    if store is not None:
        delta_indices(names, store.spec, store.action_spec)
    elif not experiment.data.places:
        delta_indices(names, experiment.data.observation, ACTION_SPEC)


def _require_shift(experiment: Experiment, store: TrainingStore | None) -> None:
    """A shift leaves something of the image."""
    if store is not None or not experiment.data.places:
        spec = experiment.data.observation if store is None else store.spec
        require_shift(experiment.encoder.max_shift, spec.image_size, "encoder.max_shift")


def _require_prompts(experiment: Experiment, store: TrainingStore | None) -> None:
    """The prompts of all tasks can be made: tokenizer, image size, cameras and length fit the model.

    Without demonstrations the instructions are those that the names of LIBERO's task files spell. With a tokenizer of
    the hub it is left to the plan, which downloads it.
    """
    name, data = experiment.prompt.tokenizer, experiment.data
    if (name != "mini" and not Path(name).is_dir()) or (data.places and store is None):
        return
    builder = make_prepare(experiment.prompt, experiment.model, store.spec if store else data.observation)
    known = [task.instruction for task in store.tasks] if store else task_instructions(data.suite)
    for instruction in known or ["do it"]:
        builder(instruction)


def _require_precision(experiment: Experiment) -> None:
    """Trained weights must be float32: the spacing of bfloat16 values exceeds most of AdamW's updates."""
    dtype = experiment.model.backbone.param_dtype
    if experiment.train.trainable == "all" and dtype != "float32":
        raise UserError(
            f"model.backbone.param_dtype is {dtype} with train.trainable all, so most updates would be rounded away; "
            "set model.backbone.param_dtype to float32, or train.trainable to adapters"
        )


def _require_latents(experiment: Experiment) -> None:
    """Requires a Prophet of the encoder's tokens and channels, as far as they are known without a download."""
    # How many tokens there are does not depend on which camera it is.
    encoder, prophet = (
        experiment.encoder.with_default_camera(experiment.data.observation.cameras),
        experiment.model.prophet,
    )
    if not experiment.model.memory.reads_latents:
        return
    tokens, dim = ENCODERS.resolve(encoder.kind).shape(encoder)
    if tokens and prophet.tokens not in (1, tokens):
        raise UserError(
            f"model.prophet.tokens is {prophet.tokens}, but the settings encoder.* ({encoder.kind}) make "
            f"{tokens} tokens per frame; set model.prophet.tokens to {tokens}, or to 1 to pool them"
        )
    if dim and prophet.latent_dim != dim:
        raise UserError(
            f"model.prophet.latent_dim is {prophet.latent_dim}, but the settings encoder.* ({encoder.kind}) make "
            f"latents of {dim} channels; set model.prophet.latent_dim to {dim}"
        )


def _require_trained_prophet(experiment: Experiment) -> None:
    """Requires a loss that trains the Prophet."""
    memory = experiment.model.memory
    if memory.has_prophet and not memory.world_loss and not (memory.inject and memory.action_gradient):
        missing = "action_gradient" if memory.inject else "inject"
        raise UserError(
            f"model.memory.world_loss is 0 and model.memory.{missing} false, so nothing would train the Prophet; "
            "change one of them, or set model.memory.input to copy"
        )


def _require_cached_vision(experiment: Experiment, store: TrainingStore | None) -> None:
    """Requires that frame and view determine what the vision tower makes of an image, if that is stored."""
    train, encoder, model = experiment.train, experiment.encoder, experiment.model
    if train.cached_vision == "none":
        return
    known = store is not None or not experiment.data.places
    cameras = (experiment.data.observation if store is None else store.spec).cameras if known else ()
    fixed = cameras if train.same_shift or not encoder.max_shift else encoder.with_default_camera(cameras).cameras
    loose = [camera for camera in cameras[: model.cameras] if camera not in fixed]
    reasons = {
        "train.objective is world, which reads no images": train.objective == "world",
        "train.trainable is all, which trains the vision tower; set it to adapters": train.trainable == "all",
        f"train.crop is {train.crop:g}, a part of the image at random; set it to 1": train.crop < 1,
        "train.colours changes the images at random; set all of it to 0": train.colours.changes,
        "model.use_images is false, so the images are not seen; set it to true": not model.use_images,
        f"images of {', '.join(loose)} are shifted at random; set train.same_shift to true, or encoder.max_shift to 0":
            bool(loose),
        f"train.seeds is {train.seeds} with random weights, of which each seed has its own; set train.seeds to 1":
            train.seeds > 1 and train.published is None,
    }  # fmt: skip
    for reason in (text for text, holds in reasons.items() if holds):
        raise UserError(
            f"train.cached_vision is {train.cached_vision}, but {reason}; or set train.cached_vision to none"
        )
    frozen_tower(model.backbone)


def _require_memory(experiment: Experiment, stride: int | None) -> None:
    """Requires a memory, or a prediction target, that reaches to the end of the actions, also after a delay."""
    model, delay = experiment.model, experiment.train.delay
    if not (stride and (model.memory.inject or model.memory.world_loss)):
        return
    reaches, ends = model.prophet.future * stride, delay + model.chunk
    if reaches < ends:
        raise UserError(
            f"train.delay is {delay}, so the actions (model.chunk {model.chunk}) end {ends} control steps after the "
            f"observation, but the memory (model.prophet.future {model.prophet.future}, a frame every {stride} steps) "
            f"ends after {reaches}; set model.prophet.future to {-(-ends // stride)} or more"
        )


def _require_pending(experiment: Experiment, store: TrainingStore | None) -> None:
    """Requires as many pending actions in the network as there are, and a state that can be rolled forward.

    Without a delay nothing is pending, so a rolled state is the state.
    """
    model, delay = experiment.model, experiment.train.delay
    if model.pending not in (0, delay):
        raise UserError(
            f"model.pending is {model.pending}, but with train.delay {delay} there are {delay} pending actions; set "
            f"model.pending to {delay}, or to 0 for a network without them"
        )
    if model.roll_state and (store is not None or not experiment.data.places):
        observation = experiment.data.observation if store is None else store.spec
        find_motion(observation, ACTION_SPEC if store is None else store.action_spec)


def _require_protocol(experiment: Experiment, protocol: Protocol, stride: int | None) -> None:
    """Refuses what the closed loop would refuse. A delay does not shorten the chunk: its first action waits."""
    for reason in _misfits(experiment, protocol, stride):
        raise UserError(f"evaluation.protocol {protocol.name}: {reason}, or choose another protocol")


def _misfits(experiment: Experiment, protocol: Protocol, stride: int | None) -> Iterator[str]:
    horizon, chunk, memory = protocol.open_loop_horizon, experiment.model.chunk, experiment.model.memory
    if horizon > chunk:
        yield f"open_loop_horizon is {horizon}, but model.chunk is {chunk}; set model.chunk to {horizon} or more"
    if stride and horizon % stride:
        where = "of the demonstrations" if experiment.data.places else "data.observation.frame_stride"
        yield f"open_loop_horizon is {horizon}, not a multiple of the frame stride ({where}), {stride}; change it"
    if protocol.ensemble and horizon == chunk:
        yield (
            f"ensemble is {protocol.ensemble:g}, but chunks of model.chunk {chunk} actions do not overlap at "
            f"open_loop_horizon {horizon}; raise model.chunk"
        )
    if reason := intervention_error(memory, protocol.oracle, protocol.corruption):
        yield reason
    delay = experiment.pending_steps
    if delay and protocol.realtime == "none" and protocol.execution_delay != delay:
        yield (
            f"execution_delay is {protocol.execution_delay}, but the policy takes the actions that are executed in the "
            f"{delay} control steps (train.delay) before its own; set train.delay to {protocol.execution_delay}"
        )
    try:
        require_inpainting(experiment.model.head.kind, protocol.realtime)
        make_handover(
            protocol.realtime, chunk=chunk, horizon=horizon, delay=protocol.execution_delay,
            trained_delay=experiment.train.delay,
        )  # fmt: skip
    except UserError as error:
        yield str(error)
