"""Starting worker processes that import only what they run."""

import contextlib
import sys
import threading
import types
from collections.abc import Iterator

_HIDING = threading.Lock()


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Keeps processes that are spawned inside this context from importing the parent's ``__main__`` module.

    ``multiprocessing`` imports the parent's main module in every spawned child. For a command that would be all of its
    imports, jax included, in each simulator process. The children's targets live in modules of their own.
    """
    with _HIDING:  # threads that start processes take turns
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
