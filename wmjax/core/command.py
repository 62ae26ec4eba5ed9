"""Helpers of the commands: one-line errors and exit statuses, progress with the remaining time."""

import errno
import io
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from wmjax.core import signals
from wmjax.core.errors import UserError
from wmjax.core.logs import bar

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (
    *FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP, errno.ENOENT,
)  # fmt: skip
"""What the system says of a place that cannot be used, as opposed to a bug or a broken disk."""

N = TypeVar("N", int, float)


def run_command(body: Callable[[], int]) -> int:
    """Runs a command's body.

    Returns:
        Its exit status; 2 after a :class:`UserError`, a file that cannot be read or written, or an output on a full
        disk, which is printed as one line; 128 + the signal's number after one of
        :data:`wmjax.core.signals.SIGNALS`: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP. A reader of the
        output that has gone (``| head -1``) ends it with 0.

    """
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:  # it was closed before the start, as some daemons do
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115, open to the end
        elif isinstance(stream, io.TextIOWrapper):  # unencodable characters are written as \\u...
            stream.reconfigure(errors="backslashreplace")
    try:
        with signals.handled():
            status = body()
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        return 0
    except OSError as error:
        if (reason := _refused(error)) is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        _empty_output()
        return 2
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, signals.Stopped) else signals.Stopped(signal.SIGINT)
        signals.print_end(stopped)
        return stopped.status


def _refused(error: OSError) -> str | None:
    """Describes why a path was refused, and the fix; None for a bug or a broken disk."""
    if error.filename is not None:
        place = f"{error.filename}: {error.strerror}; choose another place, or change its permissions"
        return place if error.errno in REFUSED else None
    if error.errno in FULL:  # a write says no name, and may be that of the output
        return f"the output, or a file: {error.strerror}; free some space"
    if "temporary directory" in str(error):
        return f"{error.strerror}; set TMPDIR to a folder that can be written to"
    return None


def _reader_has_gone() -> bool:
    """Whether the output's reader has closed it; if so, the rest of the output is dropped."""
    poller = select.poll()
    poller.register(sys.stdout.fileno(), select.POLLOUT)
    gone = any(flags & (select.POLLERR | select.POLLHUP) for _, flags in poller.poll(0))
    if gone:
        _drop_output()
    return gone


def _empty_output() -> None:
    """Discards unwritten output, so that the interpreter does not fail again at exit when the disk is full."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def whole_number(name: str, least: int, most: int = 1_000_000) -> Callable[[str], int]:
    """An argparse type: an integer in a range.

    Args:
        name: of the option, for the error.
        least: the smallest that is allowed.
        most: the largest.

    """
    return _in_range(name, int, "whole number", least, most)


def number(name: str, least: float, most: float = 1_000_000) -> Callable[[str], float]:
    """An argparse type: a number in a range, see :func:`whole_number`."""
    return _in_range(name, float, "number", least, most)


def _in_range(name: str, kind: Callable[[str], N], words: str, least: float, most: float) -> Callable[[str], N]:
    def read(text: str) -> N:
        value: N | None
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise UserError(f"--{name} is {text!r}; give a {words} from {least} to {most}")
        return value

    return read


def use_huge_pages(module: str) -> None:
    """Restarts a command once with huge pages for malloc, which XLA on CPU allocates a gigabyte from at every step.

    glibc reads the setting only when a process starts. On other systems, if it is set already, or under a profiler or
    debugger, which would be gone, nothing happens. The interpreter's own options, such as ``-X dev``, are kept.
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ or sys.gettrace() or sys.getprofile():
        return
    if _runs_alone(module, sys.orig_argv):
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _runs_alone(module: str, words: list[str]) -> bool:
    """Whether the interpreter was started for this command and nothing else, by ``-m`` or by the script ``wmjax``.

    Otherwise a tool runs it: ``python -m cProfile -m wmjax.train``, or an editor's launcher.
    """
    if "-m" in words:
        place = words.index("-m") + 1
        return words[place : place + 1] == [module]
    return any(Path(word).name == "wmjax" for word in words[1:])


def print_progress(done: int, total: int) -> None:
    """Prints one line of progress per ten episodes."""
    if done % 10 == 0 or done == total:
        print(f"episode {done} of {total}", file=sys.stderr)


class Progress:
    """Reports how much of a stage is done and how long the rest takes, at most every ``interval`` seconds."""

    def __init__(self, what: str, unit: str, interval: float = 10.0):
        self._what, self._unit, self._interval = what, unit, interval
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Reports that ``done`` of ``total`` are finished."""
        now = time.monotonic()
        if done < total and now - self._last < self._interval:
            return
        self._last = now
        left = (now - self._start) / max(done, 1) * (total - done) / 60
        line = f"{bar(done, total)} {self._what} {done}/{total} {self._unit}  {left:.1f} min left"
        logging.getLogger("wmjax").info("%s", line)
