"""Recording of demonstrations with several simulator processes, resumable after any interruption.

The processes are those of :mod:`wmjax.recording.slots`. A demonstration depends on its slot only, not on which worker
records it or when.
"""

import contextlib
import dataclasses
import functools
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wmjax.core.errors import UserError
from wmjax.core.files import require_space, write_json
from wmjax.core.logs import bar
from wmjax.core.reading import read_json
from wmjax.core.specs import ObservationSpec, to_dict
from wmjax.data.formats.lerobot.layout import load_layout
from wmjax.data.formats.lerobot.writer import write_lerobot_v30
from wmjax.data.store import TrainingStore, finalize, part_names, write_part
from wmjax.recording.demonstration import SLOTS_PER_ATTEMPT, DemonstrationConfig, demonstration_id, record_demonstration
from wmjax.recording.slots import Slot, record_slots
from wmjax.sim.episode import RECORDING_VERSION, START_NOISE
from wmjax.sim.libero import ACTION_SPEC, simulator_version
from wmjax.sim.pool import Fault
from wmjax.sim.schedule import Task

LOG = logging.getLogger(__name__)
SETTINGS = "recording.json"
MAX_ATTEMPTS = 5
"""Random placements tried for a slot before it is dropped."""
MAX_CRASHES = 3
"""Worker processes that may die or hang before recording stops."""
SECONDS_PER_STEP = 1.0
"""The time that a simulated control step may take, with its image and its share of everything else, before a worker
counts as hung. On two cores it takes about 0.02 s."""
TYPICAL_STEPS = 160
"""Control steps of a demonstration, for the estimate of the disk space."""


class Outcome(NamedTuple):
    """The report of a worker; ``length`` is None when every attempt failed."""

    length: int | None
    perturbation: float
    failures: int


def part_name(slot: Slot) -> str:
    """For example ``libero_spatial-03-00017``."""
    return f"{slot.suite}-{slot.task_id:02d}-{slot.number:05d}"


def record(
    folder: Path,
    suite: str,
    tasks: Sequence[int],
    episodes_per_task: int,
    spec: ObservationSpec,
    *,
    workers: int = 2,
    config: DemonstrationConfig | None = None,
) -> TrainingStore:
    """Records demonstrations into a training store; run again to resume or to extend.

    Args:
        folder: the store; finished episodes in it are kept.
        suite: for example ``libero_spatial``.
        tasks: task ids.
        episodes_per_task: demonstrations wanted of each task.
        spec: the observation conventions; ``simulator`` is filled in.
        workers: simulator processes.
        config: how to act; the default when None.

    Raises:
        UserError: bad arguments, other settings than the folder's, missing simulator, no disk space, a task in
            which the expert never succeeds.

    """
    config = config or DemonstrationConfig()
    spec = dataclasses.replace(spec, simulator=simulator_version())
    _check_arguments(tasks, episodes_per_task, workers)
    folder, tasks = Path(folder), sorted(set(tasks))
    with _leaving_no_empty_folder(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _check_settings(folder, suite, spec, config)
        done = set(part_names(folder))
        _check_space(folder, spec, len(tasks) * episodes_per_task, len(done), config.branch_frames)
        slots = [Slot(suite, task, number) for task in tasks for number in range(episodes_per_task)]
        missing = [slot for slot in slots if part_name(slot) not in done]
        if missing:
            LOG.info("recording %d of %d demonstrations into %s", len(missing), len(slots), folder)
            _record_missing(folder, missing, spec, workers, config)
    return _finalize(folder, suite, tasks, spec)


@contextlib.contextmanager
def _leaving_no_empty_folder(folder: Path) -> Iterator[None]:
    """Removes a folder without a single episode when recording fails."""
    try:
        yield
    except BaseException:
        if folder.is_dir() and not part_names(folder):
            (folder / SETTINGS).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _check_space(folder: Path, spec: ObservationSpec, wanted: int, done: int, branch_frames: int) -> None:
    """Requires disk space for the missing parts, and for the merged store beside all parts."""
    images = TYPICAL_STEPS // spec.frame_stride * (1 + branch_frames)
    episode = images * len(spec.cameras) * spec.image_size**2 * 3
    require_space(folder, int(1.1 * episode * (max(wanted - done, 0) + max(wanted, done))))


def _check_arguments(tasks: Sequence[int], episodes: int, workers: int) -> None:
    for name, value in (("episodes", episodes), ("workers", workers), ("tasks", len(tasks))):
        if value < 1:
            raise UserError(f"{name} is {value}; at least 1 is needed")
    if episodes > SLOTS_PER_ATTEMPT:
        raise UserError(f"episodes is {episodes}; at most {SLOTS_PER_ATTEMPT} per task")


def _check_settings(folder: Path, suite: str, spec: ObservationSpec, config: DemonstrationConfig) -> None:
    """Refuses to mix demonstrations made in different ways; writes the settings of a new folder."""
    settings = {
        "suite": suite,
        "observation_spec": to_dict(spec),
        "demonstrations": config.identity(),
        "start_noise": START_NOISE,
        "version": RECORDING_VERSION,
    }
    path = folder / SETTINGS
    if not path.exists():
        if part_names(folder):
            raise UserError(f"{folder}: episodes of unknown origin ({SETTINGS} is missing); choose another folder")
        write_json(path, settings)
        return
    before = read_json(path, dict[str, Any], "choose another folder")
    for name, old, new in _differences(before, settings):
        raise UserError(f"{name} is {new!r}, {folder} was recorded with {old!r}; use that, or choose another folder")


def _differences(before: Any, after: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Leaves in which two nested dicts differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from _differences(before.get(key), after.get(key), f"{name}.{key}".lstrip("."))
    elif before != after:
        yield name, before, after


def _finalize(folder: Path, suite: str, tasks: Sequence[int], spec: ObservationSpec) -> TrainingStore:
    """Merges the parts unless the store already holds them all."""
    names = part_names(folder)
    for task in tasks:
        if not any(name.startswith(f"{suite}-{task:02d}-") for name in names):
            raise UserError(f"{suite} task {task}: the expert never succeeded; leave the task out")
    with contextlib.suppress(UserError):
        store = TrainingStore(folder)
        if [episode.get("part") for episode in store.episodes] == names:
            return store
    LOG.info("merging %d episodes into %s", len(names), folder)
    return finalize(folder, spec, ACTION_SPEC, describe=describe)


def describe(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarises how demonstrations were made, for the store's manifest.

    Args:
        episodes: the manifest's table of episodes.

    Returns:
        ``shares``: the share of the episodes with noise (``noise``), with nothing disturbed (``undisturbed``), and
        with at least one failure of each kind. ``grasps``: by task, how many episodes used each grasp.

    """
    kinds: Counter[str] = Counter()
    grasps: dict[str, Counter[str]] = {}
    for episode in episodes:
        happened = set(episode.get("failures", ())) | ({"noise"} if episode["perturbation"] else set())
        kinds.update(happened or {"undisturbed"})
        if grasp := episode.get("grasp"):
            name = f"angle {grasp['angle']}, sign {grasp['sign']}, tilt {grasp['tilt']}"
            grasps.setdefault(f"{episode['suite']} {episode['task_id']}", Counter())[name] += 1
    shares = {kind: round(count / len(episodes), 4) for kind, count in sorted(kinds.items())}
    return {"shares": shares, "grasps": {task: dict(found) for task, found in sorted(grasps.items())}}


def _record_missing(
    folder: Path, slots: Sequence[Slot], spec: ObservationSpec, workers: int, config: DemonstrationConfig
) -> None:
    """Records slots into parts and logs a report per task."""
    tally = _Tally(len(slots))
    job = functools.partial(record_slot, folder=folder, config=config)
    branch = max(config.label_steps / spec.frame_stride, config.branch_frames)
    most = MAX_ATTEMPTS * config.max_steps * (1 + branch)
    record_slots(job, spec, slots, workers, SECONDS_PER_STEP * most, tally.count, tally.retry)
    tally.report()


def record_slot(env: Any, slot: Slot, folder: Path, config: DemonstrationConfig) -> Outcome:
    """Tries placements until the expert succeeds, and writes that episode; the job of a worker process."""
    for attempt in range(MAX_ATTEMPTS):
        episode = demonstration_id(slot.suite, slot.task_id, slot.number, attempt, config.seed)
        data = record_demonstration(env, episode, config)
        if data is not None:
            data.meta["failed_attempts"] = attempt
            write_part(folder, part_name(slot), data, env.spec, ACTION_SPEC)
            return Outcome(data.length, data.meta["perturbation"], attempt)
    return Outcome(None, 0.0, MAX_ATTEMPTS)


class _Tally:
    """Counts the reports of this call's slots, and decides which slots are tried again."""

    def __init__(self, total: int) -> None:
        self._total, self._started = total, time.monotonic()
        self._recorded, self._failures, self._dropped = Counter[Task](), Counter[Task](), Counter[Task]()
        self._faults = 0

    def count(self, slot: Slot, outcome: Outcome) -> None:
        """Notes a finished slot."""
        task = (slot.suite, slot.task_id)
        self._failures[task] += outcome.failures
        (self._dropped if outcome.length is None else self._recorded)[task] += 1
        finished = self._recorded.total() + self._dropped.total()
        left = (time.monotonic() - self._started) / finished * (self._total - finished)
        what = "dropped" if outcome.length is None else f"{outcome.length} steps, noise {outcome.perturbation:.2f}"
        failures = f", {outcome.failures} failed attempts" if outcome.failures else ""
        progress = f"{bar(finished, self._total)} {finished}/{self._total}"
        LOG.info("%s %s: %s%s; %.1f min left", progress, part_name(slot), what, failures, left / 60)

    def retry(self, slot: Slot, fault: Fault) -> bool:
        """Returns True if the slot of a worker that died or hung is to be tried again.

        Raises:
            RuntimeError: the worker raised, or too many have died.

        """
        if fault.raised:
            raise RuntimeError(f"recording {part_name(slot)} failed:\n{fault.message}")
        self._faults += 1
        LOG.warning("%s: %s, %s; starting another process", part_name(slot), fault.kind, fault.message)
        if self._faults > MAX_CRASHES:
            raise RuntimeError(f"{self._faults} simulator processes died; finished episodes are kept, run again")
        return True

    def report(self) -> None:
        """One line per task."""
        for task in sorted({*self._recorded, *self._dropped}):
            counts = self._recorded[task], self._failures[task], self._dropped[task]
            LOG.info("%s task %d: %d recorded, %d failed attempts, %d dropped", *task, *counts)


def record_dataset(
    out: Path,
    suite: str,
    tasks: Sequence[int],
    episodes_per_task: int,
    spec: ObservationSpec,
    *,
    workers: int = 2,
    config: DemonstrationConfig | None = None,
) -> TrainingStore:
    """Records demonstrations as a LeRobot v3.0 dataset with an image at every control step.

    Keys and conventions are those of ``HuggingFaceVLA/libero``; the actions are the expert's labels. An interrupted
    recording resumes from ``<out>.recording``.

    Raises:
        UserError: ``out`` exists, or see :func:`record`.

    """
    if out.exists():
        raise UserError(f"--out {out} exists already, nothing was overwritten; choose a new folder or delete it")
    folder = out.with_name(f"{out.name}.recording")
    store = record(folder, suite, tasks, episodes_per_task, spec, workers=workers, config=config)
    episodes = (store.episode(index) for index in range(len(store.episodes)))
    layout = load_layout("HuggingFaceVLA/libero")
    write_lerobot_v30(out, episodes, store.spec, store.action_spec, layout=layout, robot_type="panda")
    shutil.rmtree(folder)
    return store
