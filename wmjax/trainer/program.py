"""Jitted steps as the loop calls them: one at a time where necessary, with a warning if one compiles twice."""

import logging
from typing import Any

import jax

from wmjax.models.parameters import path_name

log = logging.getLogger("wmjax.train")


def takes_turns() -> bool:
    """Whether programs must not run side by side.

    Collectives of simulated or several processes' CPU devices wait for each other in XLA's one thread pool: those of
    two programs at a time occupy all threads, and none of them comes to an end. Accelerators have queues.
    """
    return jax.default_backend() == "cpu" and (jax.local_device_count() > 1 or jax.process_count() > 1)


class Program:
    """A jitted function that is called again and again with arguments of the same shapes.

    Args:
        name: for the warning.
        function: from :func:`jax.jit`.
        given: its first arguments, which are the same at every call.

    """

    def __init__(self, name: str, function: Any, *given: Any) -> None:
        self._name, self._function, self._given, self._alone = name, function, given, takes_turns()
        self._compiled = 0
        self._shapes: dict[str, Any] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function; the results may still be computing when it returns."""
        out = self._function(*self._given, *arguments)
        if self._alone:
            jax.block_until_ready(out)
        if (compiled := self._function._cache_size()) > self._compiled:
            self._note(_shapes(arguments))
            self._compiled = compiled
        return out

    def _note(self, shapes: dict[str, str]) -> None:
        """Warns if a shape changed, because every change may compile the program again."""
        before, self._shapes = self._shapes, shapes
        changed = [name for name in before.keys() | shapes.keys() if before.get(name) != shapes.get(name)]
        if before and changed:
            name = min(changed)
            log.warning(
                "%s was compiled again: %s was %s, now it is %s (%d of %d arrays changed)",
                self._name, name, before.get(name, "not there"), shapes.get(name, "not there"), len(changed),
                len(shapes),
            )  # fmt: skip


def _shapes(arguments: tuple[Any, ...]) -> dict[str, str]:
    """Type, shape and layout by path, which donated arrays still have."""
    leaves = jax.tree_util.tree_flatten_with_path(arguments)[0]
    return {path_name(path): f"{_type(leaf)}{list(leaf.shape)}{_layout(leaf)}" for path, leaf in leaves}


def _type(leaf: Any) -> str:
    """An array's type; the weak type of a Python number is a different type to the compiler."""
    return f"weak {leaf.dtype}" if getattr(leaf, "weak_type", False) else str(leaf.dtype)


def _layout(leaf: Any) -> str:
    """An array's sharding; all replicated arrays are alike, even if their specs name axes of one device."""
    sharding = getattr(leaf, "sharding", None)
    spec = getattr(sharding, "spec", None)
    return f" {spec}" if sharding is not None and spec and not sharding.is_fully_replicated else ""
