"""Frozen dataclasses from nested dictionaries, with errors that name the key and the nearest valid ones.

A dataclass whose fields depend on its ``kind`` (an action head, an encoder, a backbone) has a class method ``select``
that returns the dataclass to build from the given values.
"""

import dataclasses
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from wmjax.core.errors import UserError, unknown_name

T = TypeVar("T")


def build(kind: type[T], values: dict[str, Any], path: str = "") -> T:
    """Builds ``kind`` from what a TOML file or the command line said, defaults for the rest.

    Args:
        kind: a frozen dataclass, possibly of dataclasses.
        values: nested dictionaries of plain values.
        path: dotted prefix for errors.

    Raises:
        UserError: an unknown key (with near matches) or a value of the wrong type.

    """
    select = getattr(kind, "select", None)
    kind = kind if select is None else select(values)
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise unknown_name("setting", f"{path}{key}", [f"{path}{h}" for h in hints])
    return kind(**{k: convert(v, hints[k], f"{path}{k}") for k, v in values.items()})


def convert(value: Any, hint: Any, path: str) -> Any:
    """A plain value as the annotated type, or a UserError that names the setting."""
    if dataclasses.is_dataclass(hint):
        if isinstance(value, dict):
            return build(hint, value, f"{path}.")  # type: ignore[arg-type]
    elif get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise UserError(f"{path} is {value!r}; choose one of {', '.join(map(repr, get_args(hint)))}")
    elif get_origin(hint) in (Union, types.UnionType):
        return _convert_union(value, get_args(hint), path)
    elif get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            return tuple(convert(v, get_args(hint)[0], f"{path}[{i}]") for i, v in enumerate(value))
    elif get_origin(hint) is dict:
        if isinstance(value, dict):
            return {key: convert(v, get_args(hint)[1], f"{path}.{key}") for key, v in value.items()}
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    name = hint.__name__ if isinstance(hint, type) else hint
    raise UserError(f"{path} is {value!r}; expected {name}")


def _convert_union(value: Any, options: tuple[Any, ...], path: str) -> Any:
    if value is None and type(None) in options:
        return None
    for option in options:
        if option is not type(None):
            try:
                return convert(value, option, path)
            except UserError:
                continue
    raise UserError(f"{path} is {value!r}; expected {' or '.join(map(str, options))}")


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid on top, dictionaries merged key by key.

    A dictionary of another ``kind`` replaces the one below it: the settings of one kind mean nothing to another.
    """
    if "kind" in base and over.get("kind", base["kind"]) != base["kind"]:
        return dict(over)
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """``--model.head.kind flow --train.steps=10`` as nested dictionaries; values are TOML, else strings.

    Raises:
        UserError: an argument that is no setting, or a setting without a value.

    """
    out: dict[str, Any] = {}
    pending = list(arguments)
    while pending:
        word = pending.pop(0)
        if not word.startswith("--"):
            raise UserError(f"unexpected argument {word!r}; settings are written --name.of.setting VALUE")
        name, equals, text = word[2:].partition("=")
        if not equals:
            if not pending:
                raise UserError(f"--{name} has no value; write --{name} VALUE")
            text = pending.pop(0)
        nested: Any = _parse_value(text)
        for part in reversed(name.replace("-", "_").split(".")):
            nested = {part: nested}
        out = merge(out, nested)
    return out


def section(overrides: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings of one section, for a command that takes no others.

    Raises:
        UserError: a setting of another section.

    """
    for key in overrides:
        if key != name:
            raise UserError(f"unknown option --{key}; settings of this command are written --{name}.NAME VALUE")
    values = overrides.get(name, {})
    if not isinstance(values, dict):
        raise UserError(f"--{name} is {values!r} among the settings; write --{name}.NAME VALUE")
    return values


def _parse_value(text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
