"""Recording of demonstrations with several simulator processes, resumable after any interruption.

The parent hands out one slot (task, number) at a time and prefers to leave a worker on its task, whose environment is
already built. The content of a slot depends on its number only, not on which worker records it or when.
"""

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from wmjax.core import signals
from wmjax.core.errors import UserError
from wmjax.core.files import require_space, write_json
from wmjax.core.logs import bar
from wmjax.core.processes import without_main_module
from wmjax.core.reading import read_json
from wmjax.core.specs import ObservationSpec, to_dict
from wmjax.data.formats.lerobot.layout import load_layout
from wmjax.data.formats.lerobot.writer import write_lerobot_v30
from wmjax.data.store import TrainingStore, finalize, part_names, write_part
from wmjax.recording.demonstration import SLOTS_PER_ATTEMPT, DemonstrationConfig, demonstration_id, record_demonstration
from wmjax.sim.episode import RECORDING_VERSION, START_NOISE
from wmjax.sim.libero import ACTION_SPEC, simulator_version

LOG = logging.getLogger(__name__)
SETTINGS = "recording.json"
MAX_ATTEMPTS = 5
"""Random placements tried for a slot before it is dropped."""
MAX_CRASHES = 3
"""Worker processes that may die before recording stops."""
TYPICAL_STEPS = 160
"""Control steps of a demonstration, for the estimate of the disk space."""
THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "LP_NUM_THREADS")


class Slot(NamedTuple):
    """A demonstration that is to be recorded."""

    task_id: int
    number: int


class Outcome(NamedTuple):
    """The report of a worker; ``length`` is None when every attempt failed."""

    slot: Slot
    length: int | None
    perturbation: float
    failures: int


@dataclasses.dataclass
class Summary:
    """The counts of a recording per task id, of this call only."""

    recorded: Counter[int] = dataclasses.field(default_factory=Counter)
    failures: Counter[int] = dataclasses.field(default_factory=Counter)
    dropped: Counter[int] = dataclasses.field(default_factory=Counter)


def part_name(suite: str, slot: Slot) -> str:
    """For example ``libero_spatial-03-00017``."""
    return f"{suite}-{slot.task_id:02d}-{slot.number:05d}"


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
    _check_arguments(tasks, episodes_per_task, workers, config)
    folder, tasks = Path(folder), sorted(set(tasks))
    with _leaving_no_empty_folder(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _check_settings(folder, suite, spec, config)
        done = set(part_names(folder))
        _check_space(folder, spec, len(tasks) * episodes_per_task, len(done))
        slots = [Slot(task, number) for task in tasks for number in range(episodes_per_task)]
        missing = [slot for slot in slots if part_name(suite, slot) not in done]
        if missing:
            LOG.info("recording %d of %d demonstrations into %s", len(missing), len(slots), folder)
            _report(_Recorder(folder, suite, spec, config).run(missing, workers), suite)
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


def _check_space(folder: Path, spec: ObservationSpec, wanted: int, done: int) -> None:
    """Room for the missing parts, and for the merged store beside all parts."""
    episode = TYPICAL_STEPS // spec.frame_stride * len(spec.cameras) * spec.image_size**2 * 3
    require_space(folder, int(1.1 * episode * (max(wanted - done, 0) + max(wanted, done))))


def _check_arguments(tasks: Sequence[int], episodes: int, workers: int, config: DemonstrationConfig) -> None:
    for name, value in (("episodes", episodes), ("workers", workers), ("tasks", len(tasks))):
        if value < 1:
            raise UserError(f"{name} is {value}; at least 1 is needed")
    if episodes > SLOTS_PER_ATTEMPT:
        raise UserError(f"episodes is {episodes}; at most {SLOTS_PER_ATTEMPT} per task")
    if not 0.0 <= config.perturbed_fraction <= 1.0:
        raise UserError(f"perturbed is {config.perturbed_fraction}; choose a fraction between 0 and 1")
    if config.seed < 0:
        raise UserError(f"seed is {config.seed}; it must be 0 or more")


def _check_settings(folder: Path, suite: str, spec: ObservationSpec, config: DemonstrationConfig) -> None:
    """Refuses to mix demonstrations made in different ways; writes the settings of a new folder."""
    settings = {
        "suite": suite,
        "observation_spec": to_dict(spec),
        "demonstrations": dataclasses.asdict(config),
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
    """How demonstrations were made, for the store's manifest.

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


def _report(summary: Summary, suite: str) -> None:
    for task in sorted({*summary.recorded, *summary.dropped}):
        recorded, failures, dropped = summary.recorded[task], summary.failures[task], summary.dropped[task]
        LOG.info("%s task %d: %d recorded, %d failed attempts, %d dropped", suite, task, recorded, failures, dropped)


class _Recorder:
    """The parent's side: hands out slots, restarts workers, counts."""

    def __init__(self, folder: Path, suite: str, spec: ObservationSpec, config: DemonstrationConfig) -> None:
        self._arguments = (folder, suite, spec, config)
        self._suite = suite
        self._context = multiprocessing.get_context("spawn")
        self._summary = Summary()
        self._workers: dict[Connection, BaseProcess] = {}
        self._current: dict[Connection, Slot] = {}
        self._crashes = 0

    def run(self, slots: Sequence[Slot], workers: int) -> Summary:
        """Records all slots."""
        self._pending, self._total, self._started = list(slots), len(slots), time.monotonic()
        try:
            for _ in range(min(workers, len(slots))):
                self._start_worker()
            while self._current:
                for connection in wait(list(self._current)):
                    self._receive(connection)  # type: ignore[arg-type]
        finally:
            self._stop()
        return self._summary

    def _start_worker(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, *self._arguments), daemon=True)
        with _single_threaded(), without_main_module():
            process.start()
        theirs.close()
        self._workers[ours] = process
        self._assign(ours, task=None)

    def _assign(self, connection: Connection, task: int | None) -> None:
        """Sends the next slot: of the worker's task if any is left, else of the task with most left per worker."""
        if not self._pending:
            connection.send(None)
            return
        left = Counter(slot.task_id for slot in self._pending)
        if task not in left:
            busy = Counter(slot.task_id for slot in self._current.values())
            task = max(left, key=lambda t: left[t] / (1 + busy[t]))
        slot = next(slot for slot in self._pending if slot.task_id == task)
        self._pending.remove(slot)
        self._current[connection] = slot
        connection.send(slot)

    def _receive(self, connection: Connection) -> None:
        slot = self._current.pop(connection)
        try:
            message = connection.recv()
        except (EOFError, ConnectionError):
            self._replace(connection, slot)
            return
        if isinstance(message, UserError):
            raise message
        if isinstance(message, str):
            raise RuntimeError(f"recording {part_name(self._suite, slot)} failed:\n{message}")
        self._count(message)
        self._assign(connection, slot.task_id)

    def _replace(self, connection: Connection, slot: Slot) -> None:
        """A worker died: its slot goes back, another worker takes over."""
        process = self._workers.pop(connection)
        process.join()
        self._crashes += 1
        LOG.warning("a simulator process died (exit code %s); starting another one", process.exitcode)
        if self._crashes > MAX_CRASHES:
            raise RuntimeError(f"{self._crashes} simulator processes died; finished episodes are kept, run again")
        self._pending.insert(0, slot)
        self._start_worker()

    def _count(self, outcome: Outcome) -> None:
        task = outcome.slot.task_id
        self._summary.failures[task] += outcome.failures
        (self._summary.dropped if outcome.length is None else self._summary.recorded)[task] += 1
        finished = self._summary.recorded.total() + self._summary.dropped.total()
        left = (time.monotonic() - self._started) / finished * (self._total - finished)
        what = "dropped" if outcome.length is None else f"{outcome.length} steps, noise {outcome.perturbation:.2f}"
        name = part_name(self._suite, outcome.slot)
        failures = f", {outcome.failures} failed attempts" if outcome.failures else ""
        progress = f"{bar(finished, self._total)} {finished}/{self._total}"
        LOG.info("%s %s: %s%s; %.1f min left", progress, name, what, failures, left / 60)

    def _stop(self) -> None:
        for connection, process in self._workers.items():
            if connection in self._current:
                process.terminate()
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
            connection.close()


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Children started here use one thread each: the processes are the parallelism."""
    before = {name: os.environ.get(name) for name in THREAD_LIMITS}
    os.environ.update({name: "1" for name in THREAD_LIMITS if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def _work(connection: Connection, folder: Path, suite: str, spec: ObservationSpec, config: DemonstrationConfig) -> None:
    """A worker process: records slots until told to stop or the parent is gone."""
    signals.leave_to_parent()
    from wmjax.sim.env import LiberoEnv

    env: LiberoEnv | None = None
    try:
        while (slot := connection.recv()) is not None:
            if env is None or env.task_id != slot.task_id:
                if env is not None:
                    env.close()
                env = LiberoEnv(suite, slot.task_id, spec)
            connection.send(_record_slot(env, slot, folder, config))
    except UserError as error:
        connection.send(error)
    except (EOFError, ConnectionError):
        pass
    except Exception:
        connection.send(traceback.format_exc())
    finally:
        if env is not None:
            env.close()


def _record_slot(env: Any, slot: Slot, folder: Path, config: DemonstrationConfig) -> Outcome:
    """Tries placements until one succeeds, and writes it."""
    for attempt in range(MAX_ATTEMPTS):
        episode = demonstration_id(env.suite, slot.task_id, slot.number, attempt, config.seed)
        data = record_demonstration(env, episode, config)
        if data is not None:
            data.meta["failed_attempts"] = attempt
            write_part(folder, part_name(env.suite, slot), data, env.spec, ACTION_SPEC)
            return Outcome(slot, data.length, data.meta["perturbation"], attempt)
    return Outcome(slot, None, 0.0, MAX_ATTEMPTS)


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
