"""SIGINT, SIGTERM and SIGHUP: the one way in which every command stops early.

A signal raises :class:`Stopped` in the main thread, which ends the command by unwinding, so that whatever is finished
is kept. Where work of the last minutes would be lost that way, as in a training's loop, :func:`postponed` turns the
signal into a request that the code checks when it can save. Python delivers signals between two of its own
instructions; a compilation or a wait on a device is one instruction. So a thread watches as well, and ends a process
that has not ended :data:`GRACE` seconds after its signal, unless it was postponed.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; what ``kill``, Slurm and Kubernetes send; a terminal that was closed."""
GRACE = 3.5
"""Seconds from a signal until a process that does not react is ended."""
POLL = 0.1
"""Seconds between two looks at whether a signal is still postponed."""
RESUME = "run the same command again to resume"


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end; raised in the main thread.

    Attributes:
        number: of the signal.
        what: what had been done until then.

    """

    def __init__(self, number: int, what: str = "") -> None:
        self.number, self.what = number, what
        super().__init__(str(self))

    @property
    def status(self) -> int:
        """The exit status that shells use: 128 + the signal's number."""
        return 128 + self.number

    def __str__(self) -> str:
        done = f", {self.what}" if self.what else ""
        return f"stopped by {signal.Signals(self.number).name}{done}; {RESUME}"


class _State:
    """What the handler, the watching thread and the main thread share."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.postponed = 0
        self.since = 0.0
        """When the signal came, or when it was no longer postponed."""
        self.over = False
        """Whether the block has been left, so that nothing is left to watch."""
        self.printed = False
        """Whether the one line has been printed."""


_state = _State()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Turns the signals into :class:`Stopped` inside the block; outside the main thread nothing changes.

    A signal that was ignored before, as SIGHUP is under ``nohup``, stays ignored.
    """
    global _state
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state = state = _State()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    chosen = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _receive) for number in chosen}
    woken = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(ours, state), name="signals", daemon=True).start()
    try:
        yield
    finally:
        if state.received is None or not _is_command():  # otherwise the process ends now, and is watched until then
            state.over = True
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
            theirs.close()
            _state = _State()  # the signal that stopped this block must not stop a notebook's next cell


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Defers signals in the block; the caller of :func:`requested` must handle them."""
    stop_if_requested()
    _state.postponed += 1
    try:
        yield
    finally:
        _state.since = time.monotonic()
        _state.postponed -= 1


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Lets signals end the command again, in a block inside :func:`postponed`.

    Raises:
        Stopped: a signal has come already.

    """
    before, _state.postponed = _state.postponed, 0
    _state.since = time.monotonic()
    try:
        stop_if_requested()
        yield
    finally:
        _state.postponed = before


def requested() -> bool:
    """Whether a signal has come."""
    return _state.received is not None


def stop_if_requested(what: str = "") -> None:
    """Ends the command if a signal has come; ``what`` describes what has been saved.

    Raises:
        Stopped: a signal has come.

    """
    if _state.received is not None:
        raise Stopped(_state.received, what)


def stop(what: str) -> None:
    """Ends this process because one of the job's processes, perhaps another one, received a signal.

    Raises:
        Stopped: always.

    """
    raise Stopped(_state.received or signal.SIGTERM, what)


def print_end(stopped: Stopped) -> None:
    """Prints the line with which a command ends, once."""
    if not _state.printed:
        _state.printed = True
        print(stopped, file=sys.stderr, flush=True)


def leave_to_parent() -> None:
    """Makes a worker process ignore Ctrl-C, which the terminal sends to all processes and the parent handles.

    SIGTERM and SIGHUP still end a worker, because its files are whole or absent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_command() -> bool:
    """Whether this process is one of our commands, and not a notebook or a test that calls one."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.partition(".")[0] in ("wmjax", "encoders_export")


def _receive(number: int, frame: FrameType | None) -> None:
    """The handler, in the main thread."""
    again = _state.received is not None
    if not again:
        _state.received, _state.since = number, time.monotonic()
        if not _state.postponed:
            raise Stopped(number)
    elif number == signal.SIGINT and _state.postponed:  # Ctrl-C twice: the user does not want to wait for the save
        _end(signal.SIGINT, "without the save that was in progress; earlier checkpoints are whole")


def _watch(wake: socket.socket, state: _State) -> None:
    """Waits for the first signal and, if the process does not end by itself, ends it."""
    number = 0
    with wake:
        while number not in SIGNALS:  # other signals that Python handles wake the socket too
            data = wake.recv(1)
            if not data:
                return  # nothing came while the block ran
            number = data[0]
    since = time.monotonic()
    while not state.over:
        time.sleep(POLL)
        if state.postponed:
            since = time.monotonic()
        elif time.monotonic() - max(since, state.since) > GRACE:
            _end(number, "in the middle of something; what was finished is kept")


def _end(number: int, what: str) -> None:
    """Ends the process and its workers at once."""
    with contextlib.suppress(Exception):
        for child in multiprocessing.active_children():
            child.kill()
    with contextlib.suppress(Exception):
        print_end(Stopped(number, what))
        sys.stdout.flush()
    os._exit(128 + number)
