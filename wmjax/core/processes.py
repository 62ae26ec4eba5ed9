"""Starts worker processes that import only what they run, with one thread each."""

import contextlib
import os
import sys
import threading
import types
from collections.abc import Iterator

THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "LP_NUM_THREADS")
"""The environment variables from which numerical libraries, and Mesa's software renderer, read their threads."""
_HIDING = threading.Lock()


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Keeps processes that are spawned inside this context from importing the parent's ``__main__`` module.

    ``multiprocessing`` imports the parent's main module in every spawned child. For a command that would be all of its
    imports, jax included, in each simulator process. The children's targets are in separate modules.
    """
    with _HIDING:  # threads that start processes take turns
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Processes that are started inside this context use one thread each, because they are the parallelism.

    A variable of :data:`THREAD_LIMITS` that is set already keeps its value.
    """
    missing = [name for name in THREAD_LIMITS if name not in os.environ]
    os.environ.update(dict.fromkeys(missing, "1"))
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
