"""A model's parameters: which of them are trained, and their names in a checkpoint."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from flax import nnx

from wmjax.core.errors import UserError
from wmjax.models.nn.lora import ADAPTER

Trainable = Literal["all", "adapters"]

RANDOM = "random"
"""The name of a backbone's weights that are its initial values, drawn from the run's seed."""


def trainable_filter(trainable: Trainable) -> Callable[[tuple[Any, ...], Any], bool]:
    """The NNX filter of the trained parameters: all, or all but the backbone's base (its adapters train)."""

    def trains(path: tuple[Any, ...], value: Any) -> bool:
        base = path[0] == "backbone" and not isinstance(value, ADAPTER)
        return isinstance(value, nnx.Param) and not (trainable == "adapters" and base)

    return trains


def split_model(model: nnx.Module, trainable: Any) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Structure, trainable state and frozen state of a model, by an NNX filter.

    Raises:
        UserError: nothing is trainable.

    """
    parts: Any = nnx.split(model, trainable, ...)
    graph, params, frozen = parts
    if not jax.tree.leaves(params):
        raise UserError(
            "model: no parameter is trainable; set train.trainable to 'all' or model.backbone.lora.rank above 0"
        )
    return graph, params, frozen


def to_named(tree: Any) -> dict[str, Any]:
    """A pytree as a flat dictionary ``path -> leaf``: what checkpoints store, independent of class names."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def from_named(like: Any, named: dict[str, Any]) -> Any:
    """The inverse of :func:`to_named` for a tree of the structure of ``like``.

    Raises:
        UserError: a path is missing or surplus.

    """
    paths = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(like)[0]]
    differing = sorted(set(paths) ^ set(named))
    if differing:
        raise UserError(f"checkpoint: {differing[0]} and {len(differing) - 1} other paths do not match this model")
    return jax.tree.unflatten(jax.tree.structure(like), [named[p] for p in paths])


def path_name(path: tuple[Any, ...]) -> str:
    """``a/b/0`` for a pytree path."""
    parts = [str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path]
    return "/".join(p for p in parts if p not in (".value", ""))


def count(tree: Any) -> int:
    """Number of scalars in a pytree of arrays or ShapeDtypeStructs."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
