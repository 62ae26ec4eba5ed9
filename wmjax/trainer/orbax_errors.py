"""Turns the errors of Orbax when a save fails into one line."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import orbax.checkpoint as ocp

from wmjax.core.errors import UserError
from wmjax.core.files import disk_errors


def is_not_of_orbax(record: logging.LogRecord) -> bool:
    """Drops the tracebacks that Orbax logs for errors that it also raises: these become one line."""
    return record.levelno < logging.ERROR or f"{os.sep}orbax{os.sep}" not in record.pathname


def end_of(writer: ocp.StandardCheckpointer) -> Exception | None:
    """Waits for a writer and returns the error that it ended with."""
    try:
        writer.wait_until_finished()
    except Exception as error:
        return error
    return None


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """Reports a full or read-only disk in one line; Orbax wraps such errors in others."""
    try:
        with disk_errors(root):
            yield
    except UserError:
        raise
    except Exception as error:
        reasons = {
            r"No space left|[Qq]uota exceeded": "no disk space left; free some space",
            r"Permission denied|Read-only file system|Operation not permitted": "not writable; make it writable",
        }
        found = next((fix for pattern, fix in reasons.items() if re.search(pattern, str(error))), None)
        if found is None:
            raise
        raise UserError(f"{root}: {found}, and run again: earlier checkpoints are whole") from error
