"""A pool of simulator processes: commands over pipes, frames in shared memory, faulty workers replaced.

A worker that dies, hangs or raises is killed and replaced, and the caller gets a :class:`Fault` for the command
it was running. What to do about the episode is the caller's decision (:mod:`wmjax.rollout.runner` retries it).
"""

import contextlib
import dataclasses
import multiprocessing
import time
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.shared_memory import SharedMemory
from types import TracebackType
from typing import Literal, Self

import numpy as np
from jaxtyping import UInt8

from wmjax.core.errors import UserError
from wmjax.core.processes import without_main_module
from wmjax.sim.preparation import require_shared_memory
from wmjax.sim.worker import Command, Failure, Reply, WorkerSettings, worker_main


@dataclasses.dataclass(frozen=True)
class Fault:
    """A command that never finished: the worker died or raised (``crash``) or did not answer (``timeout``)."""

    kind: Literal["crash", "timeout"]
    message: str


Event = tuple[int, Reply | Fault]
"""A slot, and what its command came to."""


@dataclasses.dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    memory: SharedMemory
    fresh: bool = True
    deadline: float | None = None

    @property
    def busy(self) -> bool:
        return self.deadline is not None


class Pool:
    """``workers`` spawned simulator processes, addressed by slot 0..workers-1. Use it as a context manager.

    Args:
        settings: what each worker hosts.
        workers: number of processes.
        timeout: seconds a command may take.
        startup: seconds that a new worker's first command may take in addition: it imports the simulator, builds
            the task and, on a fresh machine, compiles numba kernels.

    """

    def __init__(
        self, settings: WorkerSettings, workers: int = 2, timeout: float = 120.0, startup: float = 480.0
    ) -> None:
        if workers < 1:
            raise UserError(f"workers is {workers}; give at least 1")
        self._settings = settings
        self._timeout, self._startup = timeout, startup
        self._context = multiprocessing.get_context("spawn")
        size = int(np.prod(settings.frames_shape))
        require_shared_memory(size * workers)
        self._workers: list[_Worker] = []
        try:
            for _ in range(workers):
                memory = SharedMemory(create=True, size=size)
                self._workers.append(_Worker(*self._spawn(memory), memory))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Number of slots."""
        return len(self._workers)

    @property
    def process_ids(self) -> list[int]:
        """Process id of each slot's current worker."""
        return [worker.process.pid or 0 for worker in self._workers]

    def send(self, slot: int, command: Command) -> None:
        """Gives an idle worker a command; its end arrives through :meth:`wait`."""
        worker = self._workers[slot]
        if worker.busy:
            raise RuntimeError(f"worker {slot} is still busy")
        worker.deadline = time.monotonic() + self._timeout + (self._startup if worker.fresh else 0.0)
        worker.fresh = False
        with contextlib.suppress(OSError):  # a dead worker: its pipe reads as ended, and wait() reports the fault
            worker.connection.send(command)

    def wait(self) -> list[Event]:
        """Blocks until at least one busy worker is done, and returns all that are, in slot order.

        Raises:
            UserError: a worker reported bad input.

        """
        events: list[Event] = []
        while not events:
            busy = {slot: worker for slot, worker in enumerate(self._workers) if worker.busy}
            if not busy:
                raise RuntimeError("no worker is busy")
            nearest = min(worker.deadline or 0.0 for worker in busy.values())
            ready = wait([worker.connection for worker in busy.values()], max(0.0, nearest - time.monotonic()))
            now = time.monotonic()
            for slot, worker in busy.items():
                if worker.connection in ready:
                    events.append((slot, self._receive(slot)))
                elif worker.deadline is not None and worker.deadline <= now:
                    self._replace(slot)
                    events.append((slot, Fault("timeout", f"no answer for {self._timeout:.0f} s or more")))
        return events

    def frames(self, slot: int, count: int) -> UInt8[np.ndarray, "count cameras height width 3"]:
        """A copy of the first ``count`` frames that the slot's last command rendered."""
        memory = self._workers[slot].memory
        return np.ndarray(self._settings.frames_shape, np.uint8, buffer=memory.buf)[:count].copy()

    def close(self) -> None:
        """Ends all workers and frees the shared memory."""
        for worker in self._workers:
            worker.connection.close()  # an idle worker sees the end of its pipe and closes its environment
        for worker in self._workers:
            worker.process.join(timeout=0.0 if worker.busy else 5.0)
            _end(worker.process)
            worker.memory.close()
            worker.memory.unlink()
        self._workers = []

    def _receive(self, slot: int) -> Reply | Fault:
        worker = self._workers[slot]
        worker.deadline = None
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(timeout=5.0)
            code = worker.process.exitcode
            self._replace(slot)
            return Fault("crash", f"the worker died (exit code {code})")
        if isinstance(answer, Failure):
            if answer.user_error:
                raise UserError(answer.message)
            self._replace(slot)
            return Fault("crash", answer.message)
        return answer

    def _replace(self, slot: int) -> None:
        old = self._workers[slot]
        old.connection.close()
        _end(old.process)
        self._workers[slot] = _Worker(*self._spawn(old.memory), old.memory)

    def _spawn(self, memory: SharedMemory) -> tuple[SpawnProcess, Connection]:
        ours, theirs = self._context.Pipe()
        arguments = (theirs, memory.name, self._settings)
        process = self._context.Process(target=worker_main, args=arguments, daemon=True)
        with without_main_module():
            process.start()
        theirs.close()
        return process, ours


def _end(process: SpawnProcess) -> None:
    """Kills a process (a stopped one does not react to anything gentler) and collects it."""
    if process.is_alive():
        process.kill()
    process.join()
