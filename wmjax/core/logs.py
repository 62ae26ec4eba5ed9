"""Logging: readable lines on stderr, and the same lines in a run's ``log.txt``."""

import contextlib
import logging
import sys
from pathlib import Path

from wmjax.core.files import disk_errors

LINE = "%(asctime)s %(levelname).1s %(message)s"


class StderrHandler(logging.Handler):
    """Writes to the ``sys.stderr`` of the moment when a line is logged, not of when logging was set up."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line."""
        print(self.format(record), file=sys.stderr, flush=True)


class LogFile(logging.FileHandler):
    """Appends to a file. If that fails, as on a full disk, it says so once, and the log goes on without the file."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, a method of logging
        """Drops the file; :mod:`logging` itself would print a traceback for every line."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logger = logging.getLogger("wmjax")
        logger.removeHandler(self)
        with contextlib.suppress(OSError):
            self.close()
        logger.warning("%s: %s; the log goes on without this file", self.baseFilename, error.strerror)


def set_up(file: Path | None = None, level: int = logging.INFO) -> logging.Logger:
    """Configures the ``wmjax`` logger once per process and returns it.

    Args:
        file: also append to this file.
        level: the least level shown.

    """
    logger = logging.getLogger("wmjax")
    logger.setLevel(level)
    logger.propagate = False
    if not any(isinstance(h, StderrHandler) for h in logger.handlers):
        _add(logger, StderrHandler())
    if file is not None and not any(getattr(h, "baseFilename", None) == str(file.resolve()) for h in logger.handlers):
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            _add(logger, LogFile(file, encoding="utf-8"))
    return logger


def bar(done: int, total: int, width: int = 16) -> str:
    """A progress bar for the beginning of a line, which a log file can hold as well as a terminal."""
    full = width * min(done, total) // max(total, 1)
    return f"[{'#' * full}{'.' * (width - full)}]"


def _add(logger: logging.Logger, handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter(LINE, "%H:%M:%S"))
    logger.addHandler(handler)
