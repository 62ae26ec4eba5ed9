"""The pool of worker processes that run simulators: commands and answers over pipes, faulty workers replaced.

Rollouts, demonstrations and random motion run in it, each with a :class:`Worker` of its own. A worker that dies, hangs
or raises is killed and replaced, and the caller gets a :class:`Fault` for the command it was running. What to do about
that is the caller's decision. This module imports neither jax nor a simulator.
"""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

from wmjax.core import signals
from wmjax.core.errors import UserError
from wmjax.core.processes import single_threaded, without_main_module
from wmjax.sim.preparation import render_variables

STARTUP = 480.0
"""Seconds that a new worker's first command may take in addition: it imports the simulator, builds the task and, on a
fresh machine, compiles numba kernels."""
C = TypeVar("C", contravariant=True)
A = TypeVar("A", covariant=True)
Command = TypeVar("Command")
Answer = TypeVar("Answer")


class Worker(Protocol[C, A]):
    """The interface of a worker process: one answer for each command."""

    def run(self, command: C) -> A:
        """Runs one command.

        Raises:
            UserError: bad input, which no retry will cure; :meth:`Pool.wait` raises it in the parent.
            Exception: anything else; the parent gets a fault and replaces this process.

        """

    def close(self) -> None:
        """Frees what the worker holds; the process ends."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """A command that never finished: the worker died or raised (``crash``) or did not answer (``timeout``).

    ``raised`` tells an exception, whose traceback is the message, from a process that died.
    """

    kind: Literal["crash", "timeout"]
    message: str
    raised: bool = False


@dataclasses.dataclass(frozen=True)
class _Failure:
    """An exception inside the worker, as it is sent to the parent."""

    message: str
    user_error: bool


@dataclasses.dataclass
class _Process:
    process: SpawnProcess
    connection: Connection
    fresh: bool = True
    deadline: float | None = None

    @property
    def busy(self) -> bool:
        return self.deadline is not None


class Pool(Generic[Command, Answer]):
    """Spawned worker processes, addressed by slot. Use it as a context manager.

    Args:
        makers: what makes each slot's worker, once in each process, at the first command. They are pickled: a class, a
            function of a module, or a partial of one.
        timeout: seconds a command may take.
        startup: see :data:`STARTUP`.
        render_devices: the GPUs on which they draw, see :func:`wmjax.sim.preparation.render_variables`.

    """

    def __init__(
        self,
        makers: Sequence[Callable[[], Worker[Command, Answer]]],
        timeout: float,
        startup: float = STARTUP,
        render_devices: Sequence[int] = (),
    ) -> None:
        if not makers:
            raise UserError("workers is 0; give at least 1")
        self._makers = list(makers)
        self._timeout, self._startup, self._render_devices = timeout, startup, tuple(render_devices)
        self._context = multiprocessing.get_context("spawn")  # a fork after creating a GL context deadlocks
        self._workers: list[_Process] = []
        try:
            for slot in range(len(makers)):
                self._workers.append(self._spawn(slot))
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
        worker = self._idle(slot)
        worker.deadline = time.monotonic() + self._timeout + (self._startup if worker.fresh else 0.0)
        worker.fresh = False
        with contextlib.suppress(OSError):  # a dead worker: its pipe reads as ended, and wait() reports the fault
            worker.connection.send(command)

    def wait(self, patience: float | None = None) -> list[tuple[int, Answer | Fault]]:
        """Blocks until at least one busy worker is done, and returns all that are, in slot order.

        Args:
            patience: seconds after which it returns without any; None waits for as long as it takes.

        Raises:
            UserError: a worker reported bad input.

        """
        events: list[tuple[int, Answer | Fault]] = []
        until = math.inf if patience is None else time.monotonic() + patience
        while not events:
            busy = {slot: worker for slot, worker in enumerate(self._workers) if worker.busy}
            if not busy:
                raise RuntimeError("no worker is busy")
            nearest = min(until, *(worker.deadline or 0.0 for worker in busy.values()))
            ready = wait([worker.connection for worker in busy.values()], max(0.0, nearest - time.monotonic()))
            now = time.monotonic()
            for slot, worker in busy.items():
                if worker.connection in ready:
                    events.append((slot, self._receive(slot)))
                elif worker.deadline is not None and worker.deadline <= now:
                    self._replace(slot)
                    events.append((slot, Fault("timeout", f"no answer for {self._timeout:.0f} s or more")))
            if until <= now:
                break
        return events

    def restart(self, slot: int) -> None:
        """Replaces an idle worker by a new process, which frees what its environments leaked."""
        worker = self._idle(slot)
        worker.connection.close()
        worker.process.join(timeout=5.0)
        self._replace(slot)

    def close(self) -> None:
        """Ends all workers."""
        for worker in self._workers:
            worker.connection.close()  # an idle worker sees the end of its pipe and closes its environment
        for worker in self._workers:
            worker.process.join(timeout=0.0 if worker.busy else 5.0)
            _end(worker.process)
        self._workers = []

    def _idle(self, slot: int) -> _Process:
        if self._workers[slot].busy:
            raise RuntimeError(f"worker {slot} is still busy")
        return self._workers[slot]

    def _receive(self, slot: int) -> Answer | Fault:
        worker = self._workers[slot]
        worker.deadline = None
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(timeout=5.0)
            code = worker.process.exitcode
            self._replace(slot)
            return Fault("crash", f"the worker died (exit code {code})")
        if isinstance(answer, _Failure):
            if answer.user_error:
                raise UserError(answer.message)
            self._replace(slot)
            return Fault("crash", answer.message, raised=True)
        return answer

    def _replace(self, slot: int) -> None:
        old = self._workers[slot]
        old.connection.close()
        _end(old.process)
        self._workers[slot] = self._spawn(slot)

    def _spawn(self, slot: int) -> _Process:
        ours, theirs = self._context.Pipe()
        given = theirs, self._makers[slot], render_variables(slot, self._render_devices)
        process = self._context.Process(target=_main, args=given, daemon=True)
        with single_threaded(), without_main_module():
            process.start()
        theirs.close()
        return _Process(process, ours)


def _end(process: SpawnProcess) -> None:
    """Kills a process (a stopped one does not react to anything gentler) and collects it."""
    if process.is_alive():
        process.kill()
    process.join()


def _main(connection: Connection, make: Callable[[], Worker[Any, Any]], variables: Mapping[str, str]) -> None:
    """The worker process, with environment variables of its own: answers commands until the parent closes the pipe or
    dies.
    """
    signals.leave_to_parent()
    os.environ.update(variables)
    worker: Worker[Any, Any] | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            command = connection.recv()
            try:
                worker = worker or make()
                answer = worker.run(command)
            except UserError as error:
                answer = _Failure(str(error), user_error=True)
            except Exception:
                answer = _Failure(traceback.format_exc(), user_error=False)
            connection.send(answer)
    with contextlib.suppress(Exception):
        if worker is not None:
            worker.close()
    os._exit(0)  # skips the simulator's destructors, which print ignored exceptions after GL is gone
