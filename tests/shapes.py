"""The check of annotated shapes in tests: what jaxtyping's import hook wraps around every function of wmjax."""

import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import beartype
import jax
import numpy as np
from jaxtyping import AbstractArray

ROOT = Path(__file__).parents[1]
REFUSING = {"wmjax.data.episode"}
"""Modules whose functions refuse arrays of a wrong shape in words, which tests try."""

# An int may stand for a float, as PEP 484 says.
_check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def annotated_modules() -> list[str]:
    """The modules of wmjax that annotate arrays; the others are left as they are."""
    paths = {path: path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "wmjax").rglob("*.py"))}
    names = {path: ".".join(part.parts).removesuffix(".__init__") for path, part in paths.items()}
    annotated = [name for path, name in names.items() if "from jaxtyping import" in path.read_text(encoding="utf-8")]
    return [name for name in annotated if name not in REFUSING]


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Has beartype check those annotations of a function that name an array's type and shape, and no others.

    Other annotations are mypy's: tests hand stand-ins to functions, and wrong types to functions that refuse them.
    """
    hints = getattr(function, "__annotations__", {})
    arrays = {name: widened(hint) for name, hint in hints.items() if names_array(hint)}
    if not arrays:
        return function
    function.__annotations__ = arrays
    return _check(function)


def names_array(hint: Any) -> bool:
    """Whether an annotation is, or contains, one of jaxtyping's."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(names_array(part) for part in typing.get_args(hint))


def widened(hint: Any) -> Any:
    """An annotation that takes NumPy's arrays where it asks for JAX's, as JAX does."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return typing.Union[tuple(widened(part) for part in typing.get_args(hint))]  # noqa: UP007
    if isinstance(hint, type) and issubclass(hint, AbstractArray) and hint.array_type is jax.Array:
        return hint | hint.dtype[np.ndarray, hint.dim_str]
    return hint
