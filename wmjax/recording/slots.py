"""Worker processes of recordings. A worker records one slot after another by calling the recording's job function."""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from wmjax.core.specs import ObservationSpec
from wmjax.sim.environment import CurrentTask
from wmjax.sim.pool import Fault, Pool
from wmjax.sim.schedule import Schedule

LOG = logging.getLogger(__name__)
TASKS_PER_PROCESS = 3
"""The environments that a process builds before a new one takes its place, because the simulator leaks."""
Outcome = TypeVar("Outcome")


class Slot(NamedTuple):
    """An episode to record. Its content depends on its task and its number only."""

    suite: str
    task_id: int
    number: int


Job = Callable[[Any, Slot], Outcome]
"""Records a slot in its task's environment, writes it and returns a report."""


class Recorder(Generic[Outcome]):
    """A recording's worker: the environment of its slot's task, and the job to do in it."""

    def __init__(self, job: Job[Outcome], spec: ObservationSpec, env: str = "libero") -> None:
        self._job, self._task = job, CurrentTask(spec, env)

    def run(self, command: Slot) -> Outcome:
        """Records one slot."""
        return self._job(self._task.enter(command.suite, command.task_id), command)

    def close(self) -> None:
        """Closes the environment."""
        self._task.close()


def record_slots(
    job: Job[Outcome],
    spec: ObservationSpec,
    slots: Sequence[Slot],
    workers: int,
    timeout: float,
    done: Callable[[Slot, Outcome], None],
    failed: Callable[[Slot, Fault], bool],
    env: str = "libero",
) -> None:
    """Records slots in spawned processes.

    Args:
        job: records one slot; it is pickled, and runs in the workers.
        spec: what the environments show.
        slots: the episodes.
        workers: simulator processes.
        timeout: seconds that one slot may take, beside building its environment in a new process.
        done: called with each slot that was recorded, and what the job returned.
        failed: called with each slot whose worker died, hung or raised; returns whether it is tried again.
        env: the environment, see :data:`wmjax.sim.environment.ENVIRONMENTS`.

    Raises:
        UserError: the job raised it: bad input, which no retry will cure.

    """
    maker = functools.partial(Recorder, job, spec, env)
    with Pool[Slot, Outcome]([maker] * min(workers, len(slots)), timeout) as pool:
        _Lanes(pool, Schedule(slots)).run(done, failed)


class _Lanes(Generic[Outcome]):
    """The slot that each worker records, and how many tasks its process has entered."""

    def __init__(self, pool: Pool[Slot, Outcome], schedule: Schedule[Slot]) -> None:
        self._pool, self._schedule = pool, schedule
        self._running: dict[int, Slot] = {}
        self._task: dict[int, tuple[str, int]] = {}
        self._entered: Counter[int] = Counter()

    def run(self, done: Callable[[Slot, Outcome], None], failed: Callable[[Slot, Fault], bool]) -> None:
        """Records all slots, see :func:`record_slots`."""
        for worker in range(self._pool.size):
            self._start(worker)
        while self._running:
            for worker, event in self._pool.wait():
                slot = self._running.pop(worker)
                if isinstance(event, Fault):
                    self._forget(worker)
                    if failed(slot, event):
                        self._schedule.put_back(slot)
                else:
                    done(slot, event)
                self._start(worker)

    def _start(self, worker: int) -> None:
        """Gives an idle worker its next slot."""
        slot = self._schedule.take(worker)
        if slot is None:
            return
        task = (slot.suite, slot.task_id)
        if self._task.get(worker) != task:
            if self._entered[worker] == TASKS_PER_PROCESS:
                self._pool.restart(worker)
                self._forget(worker)
            self._task[worker] = task
            self._entered[worker] += 1
        self._running[worker] = slot
        self._pool.send(worker, slot)

    def _forget(self, worker: int) -> None:
        """Another process has taken the worker's place."""
        self._task.pop(worker, None)
        self._entered[worker] = 0
