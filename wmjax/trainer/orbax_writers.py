"""Orbax's writers of a checkpoint's items, in one folder that all processes share or in one per process."""

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from wmjax.core.errors import UserError
from wmjax.core.files import disk_errors

Tree = Any
_preparing = threading.Lock()
"""Held while Orbax prepares a save: it mixes up what several threads prepare at a time, such as the folders of seeds
that are trained side by side."""
_copies = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


class Writers:
    """Writes items in the background. There is one writer per item, so that all are copied out of the way at once.

    All processes call everything, and each writes its own shards.

    Args:
        apart: whether each process has a folder of its own. Its items can then be restored only after :func:`join`.

    """

    def __init__(self, *, apart: bool) -> None:
        self._apart = apart
        self._writers: dict[str, ocp.AsyncCheckpointer] = {}
        logging.getLogger("absl").addFilter(_is_news)

    def save(self, folder: Path, items: dict[str, Tree]) -> None:
        """Begins to write pytrees of :func:`stable` arrays by name; returns when arrays of a device are copied."""
        for name, tree in items.items():
            if name not in self._writers:
                self._writers[name] = _writer(name, apart=self._apart)
            with _preparing:
                self._writers[name].save(folder / name, args=ocp.args.PyTreeSave(tree))

    def wait(self) -> None:
        """Returns when all of them have ended, so that none writes into a folder that is going to be removed.

        Raises:
            Exception: of the first one that failed.

        """
        failed = [error for writer in self._writers.values() if (error := _end_of(writer)) is not None]
        if failed:
            raise failed[0]

    def close(self) -> None:
        """Ends the writers' threads."""
        for writer in self._writers.values():
            writer.close()


def own_files(folder: Path, process: int) -> list[str]:
    """What a process wrote of a checkpoint into its own folder and no other process did, relative to the folder."""
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [name for name in names if {f"ocdbt.process_{process}", f"process_{process}"} & {*name.split("/")}]


def join(folder: Path) -> None:
    """Makes items of which every process wrote a part restorable, once all parts are in one folder.

    Raises:
        ValueError: an array of an item has no data in any part.

    """
    for item in (path for path in folder.iterdir() if path.is_dir()):
        ocp.StandardCheckpointHandler().finalize(item)


def _writer(name: str, *, apart: bool) -> ocp.AsyncCheckpointer:
    """The writer of an item.

    With a folder for each process every one of them makes folders and writes metadata (``primary_host=None``), and
    Orbax must not check what it wrote for arrays without data: these are on the other processes.
    """
    options = ocp.options.MultiprocessingOptions(primary_host=None if apart else 0, barrier_sync_key_prefix=name)
    trees = ocp.BasePyTreeCheckpointHandler(multiprocessing_options=options, enable_post_merge_validation=not apart)
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options, handler_impl=trees)
    return ocp.AsyncCheckpointer(handler, multiprocessing_options=options)


def stable(items: dict[str, Tree]) -> dict[str, Tree]:
    """Arrays that stay as they are while they are written in the background.

    Orbax copies those of an accelerator before a save returns. On a CPU it writes from their own memory, which the next
    step, to which they are donated, may overwrite.
    """
    return _copies(items) if jax.default_backend() == "cpu" else items


def any_thread_may_save() -> bool:
    """Whether :meth:`Writers.save` need not be called where the training loop runs.

    It must be where stable arrays are no copies, and where it waits for other processes by a program on the devices,
    which has to come between the same two steps in all of them.
    """
    return jax.default_backend() == "cpu" and jax.process_count() == 1


def _is_news(record: logging.LogRecord) -> bool:
    """Drops the tracebacks that Orbax logs for errors that it also raises, which become one line, and its warning at
    every save that it logs no sizes without a primary host.
    """
    if f"{os.sep}orbax{os.sep}" not in record.pathname:
        return True
    return record.levelno < logging.ERROR and "Global object size logging disabled" not in record.getMessage()


def _end_of(writer: ocp.AsyncCheckpointer) -> Exception | None:
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
