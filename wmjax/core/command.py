"""Helpers of the commands: one-line errors and exit statuses, progress with the remaining time."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable

from wmjax.core import signals
from wmjax.core.errors import UserError
from wmjax.core.logs import bar


def run_command(body: Callable[[], int]) -> int:
    """Runs a command's body.

    Returns:
        Its exit status; 2 after a :class:`UserError`, which is printed as one line; 128 + the signal's number after
        one of :data:`wmjax.core.signals.SIGNALS`: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.

    """
    try:
        with signals.handled():
            return body()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, signals.Stopped) else signals.Stopped(signal.SIGINT)
        signals.say(stopped)
        return stopped.status


def use_huge_pages(module: str) -> None:
    """Restarts a command once with huge pages for malloc, which XLA on CPU allocates a gigabyte from at every step.

    glibc reads the setting only when a process starts. On other systems, or if it is set already, nothing happens.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


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
