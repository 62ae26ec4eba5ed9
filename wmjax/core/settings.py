"""Typed values from plain ones: settings, and the content of external JSON and TOML files.

One function, :func:`convert`, reads a plain value as an annotated type. Which numbers a field may hold is declared
beside it, as ``Annotated[int, Range(1)]``, and checked here: when a value is read, and when a :class:`Settings` is
built. No field accepts NaN or infinity.

A dataclass whose fields depend on its ``kind`` (an action head, an encoder, a backbone) has a class method ``select``
that returns the dataclass to build from the given values.
"""

import contextlib
import dataclasses
import functools
import math
import re
import reprlib
import sys
import tomllib
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from wmjax.core.errors import UserError, unknown_name

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from ``min`` to ``max``; ``above`` and ``below`` leave out the ends themselves.

    What float32 rounds to such an end is left out too: programs compute in it, and 1 - b1 would be 0.
    """

    min: float = -math.inf
    max: float = math.inf
    above: bool = False
    below: bool = False

    def admits(self, value: float) -> bool:
        """Whether a number is in the range."""
        if not self.min <= value <= self.max:
            return False
        return not ((self.above and _single(value) <= self.min) or (self.below and _single(value) >= self.max))

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.min:g}"
        high = f"{'below' if self.below else 'at most'} {self.max:g}"
        return " and ".join([low] * (self.min > -math.inf) + [high] * (self.max < math.inf))


def _single(value: float) -> float:
    """A number as programs compute with it: in float32, where XLA flushes subnormal numbers to 0."""
    limits = np.finfo(np.float32)
    if not -limits.max <= value <= limits.max:
        return value
    return 0.0 if abs(value) < limits.tiny else float(np.float32(value))


Count = Annotated[int, Range(1, 1_000_000_000)]
"""How many steps, episodes or rows: at least one."""
Width = Annotated[int, Range(1, 1_000_000)]
"""A dimension of an array."""
Depth = Annotated[int, Range(1, 1_000)]
"""Layers of a network, heads of an attention, frames of a clip, worker processes."""
Fraction = Annotated[float, Range(0, 1)]
Rate = Annotated[float, Range(0, 1, below=True)]
"""A dropout probability or the decay of an average: 1 would leave nothing."""
Weight = Annotated[float, Range(0, 1_000_000)]
"""A factor of a loss, a rate or a noise; 0 switches it off."""
Seed = Annotated[int, Range(0, 2**31 - 1)]
"""A seed that JAX and NumPy both take: JAX folds larger ones without a word."""
Corruption = Literal["none", "zero", "noise", "shuffled", "shuffled_in_task", "closed"]
"""What an evaluation does to the world memory: nothing, or it replaces it by zeros (the mean latent), by unit noise, by
another episode's memory (of any task, or of the same task), or by an empty memory (the gate closed)."""
SHUFFLED: tuple[Corruption, ...] = ("shuffled", "shuffled_in_task")
"""The corruptions that show the memory of another episode and so need one (:mod:`wmjax.policy.interventions`)."""


class Settings:
    """Base of dataclasses whose declared ranges hold however they are built.

    ``class HeadConfig(Settings, section="head")`` names the fields ``head.draws`` in errors. A subclass with a
    ``__post_init__`` calls this one first.
    """

    _section = ""

    def __init_subclass__(cls, section: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if section:
            cls._section = f"{section}."

    def __post_init__(self) -> None:
        for name, hint in type_hints(type(self)).items():
            require_range(getattr(self, name), hint, f"{self._section}{name}")


def type_hints(kind: type) -> dict[str, Any]:
    """The annotations of a class with their ranges."""
    return _type_hints(kind)


@functools.cache
def _type_hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def require_range(value: Any, hint: Any, path: str) -> None:
    """Refuses a number outside the range that its annotation declares, also inside optional types and tuples.

    Raises:
        UserError: names the setting, its value and the range.

    """
    if get_origin(hint) is Annotated:
        for range_ in (extra for extra in hint.__metadata__ if isinstance(extra, Range)):
            if not is_number(value) or not range_.admits(value):
                raise UserError(f"{path} is {quoted(value)}; it must be {range_}")
    elif get_origin(hint) in (Union, types.UnionType):
        if value is not None:
            for option in (option for option in get_args(hint) if option is not type(None)):
                require_range(value, option, path)
    elif get_origin(hint) is tuple and isinstance(value, tuple):
        for number, item in enumerate(value):
            require_range(item, _item_hint(get_args(hint), number), f"{path}[{number}]")
    elif hint is float and not is_number(value):
        raise UserError(f"{path} is {quoted(value)}; it must be a finite number")


def is_number(value: Any) -> bool:
    """Whether a value is a number that a float can represent: JSON and TOML have integers of any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _item_hint(hints: tuple[Any, ...], number: int) -> Any:
    """The annotation of a tuple's item: ``tuple[X, ...]`` has one for all."""
    return hints[0] if len(hints) == 2 and hints[1] is Ellipsis else hints[min(number, len(hints) - 1)]


def parse_integer(text: str) -> int | None:
    """The integer that ``text`` spells in decimal digits; None for any other text.

    More than 18 digits also give None: no count is that large, and :class:`int` refuses thousands of digits.
    """
    digits = text.strip()
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 18 else None


def quoted(value: Any) -> str:
    """A value formatted for a message, shortened if it is large."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 120
    short.maxlist = short.maxtuple = short.maxdict = 8
    return short.repr(value)


def build(kind: type[T], values: dict[str, Any], path: str = "", *, surplus: bool = False) -> T:
    """Builds ``kind`` from values of a TOML or JSON file or of the command line, with defaults for the others.

    Args:
        kind: a dataclass, possibly of dataclasses.
        values: nested dictionaries of plain values.
        path: dotted prefix for errors.
        surplus: whether keys that ``kind`` does not have are ignored, as in external files, instead of refused.

    Raises:
        UserError: an unknown key (with near matches), a missing one, a value of the wrong type or outside its range.

    """
    select = getattr(kind, "select", None)
    kind = kind if select is None else select(values)
    hints = type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields and not surplus:
            raise unknown_name("setting", f"{path}{key}", [f"{path}{name}" for name in fields])
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"the key {f'{path}{name}'!r} is missing")
    chosen = {name: values[name] for name in fields if name in values}
    return kind(**{k: convert(v, hints[k], f"{path}{k}", surplus=surplus) for k, v in chosen.items()})


def convert(value: Any, hint: Any, path: str, *, surplus: bool = False) -> Any:
    """A plain value as the annotated type, or a UserError that names the setting."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        value = convert(value, arguments[0], path, surplus=surplus)
        require_range(value, hint, path)
        return value
    if dataclasses.is_dataclass(hint):
        if isinstance(value, dict):
            return build(hint, value, f"{path}." if path else "", surplus=surplus)  # type: ignore[arg-type]
    elif origin is Literal:
        if any(value == option and type(value) is type(option) for option in arguments):
            return value
        raise UserError(f"{path} is {quoted(value)}; choose one of {', '.join(map(repr, arguments))}")
    elif origin in (Union, types.UnionType):
        return _convert_union(value, arguments, path, surplus)
    elif origin in (tuple, list, dict):
        if (converted := _convert_items(value, origin, arguments, path, surplus)) is not None:
            return converted
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(value, path)
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    name = hint.__name__ if isinstance(hint, type) else hint
    raise UserError(f"{path or 'the file'} is {quoted(value)}; expected {name}")


def _finite(value: float, path: str) -> float:
    """A finite number as float; JSON and TOML also have integers that no float can represent, and NaN."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{path} is {quoted(value)}; it must be a finite number")
    return number


def _convert_items(value: Any, origin: type, hints: tuple[Any, ...], path: str, surplus: bool) -> Any:
    """The items of a tuple, list or dictionary as their types; None if the value is another kind of thing.

    Where names are expected, a text is one or several of them, separated by commas.
    """
    if origin is tuple and hints == (str, Ellipsis) and isinstance(value, str):
        value = _names(value, path)
    if origin is dict:
        if not isinstance(value, dict):
            return None
        return {k: convert(v, hints[1], f"{path}[{quoted(k)}]", surplus=surplus) for k, v in value.items()}
    if not isinstance(value, list | tuple):
        return None
    if origin is tuple and Ellipsis not in hints and len(hints) > 1 and len(value) != len(hints):
        return None
    items = (
        convert(item, _item_hint(hints, number), f"{path}[{number}]", surplus=surplus)
        for number, item in enumerate(value)
    )
    return origin(items)


def _names(text: str, path: str) -> list[str]:
    """The comma-separated names in a text.

    Raises:
        UserError: one of them is empty, or has a bracket or a quote of a list that TOML cannot read.

    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"{path} is {quoted(text)}, with an empty name; write names as in a,b, or [] for none")
    if text.strip().startswith("[") or any(name[0] in "\"'" for name in names):
        raise UserError(f'{path} is {quoted(text)}, not a list; write names as in a,b or ["a", "b"]')
    return names


def _convert_union(value: Any, options: tuple[Any, ...], path: str, surplus: bool) -> Any:
    if value is None and type(None) in options:
        return None
    kinds = [option for option in options if option is not type(None)]
    if len(kinds) == 1:
        return convert(value, kinds[0], path, surplus=surplus)
    for option in kinds:
        try:
            return convert(value, option, path, surplus=surplus)
        except UserError:
            continue
    raise UserError(f"{path} is {quoted(value)}; expected {' or '.join(map(str, options))}")


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


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one level of dotted names."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out.update(dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return out


class Layer(NamedTuple):
    """Settings from one source, and how to correct them there: "correct train/scales/mini.toml"."""

    values: Mapping[str, Any]
    fix: str


def with_origin(error: UserError, layers: Sequence[Layer]) -> UserError:
    """The error with a fix that refers to the source of the setting that the error names.

    Args:
        error: names a setting by the end of its dotted name, as in ``lora.rank is -1``.
        layers: from weak to strong.

    """
    for layer in reversed(layers):
        for name in dotted(layer.values):
            parts = name.split(".")
            # A last part alone, such as "layers", is a word that any message may hold.
            ends = [".".join(parts[start:]) for start in range(max(len(parts) - 1, 1))]
            if any(re.search(rf"(?<!\w){re.escape(end)}(?!\w)", str(error)) for end in ends):
                return UserError(f"{error}; {layer.fix}") if layer.fix else error
    return error


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """``--model.head.kind flow --train.steps=10`` as nested dictionaries; values are read by :func:`parse_value`.

    Raises:
        UserError: an argument that is not a setting, or a setting without a value.

    """
    out: dict[str, Any] = {}
    pending = list(arguments)
    while pending:
        word = pending.pop(0)
        if not word.startswith("--"):
            raise UserError(f"unexpected argument {word!r}; settings are written --name.of.setting VALUE")
        name, equals, text = word[2:].partition("=")
        if not all(name.split(".")):
            raise UserError(f"--{name} has an empty part; settings are written --name.of.setting VALUE")
        if not equals:
            if not pending:
                raise UserError(f"--{name} has no value; write --{name} VALUE")
            text = pending.pop(0)
        out = merge(out, nested(name.replace("-", "_"), parse_value(text)))
    return out


def nested(name: str, value: Any) -> dict[str, Any]:
    """A value under a dotted name, as nested dictionaries."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def parse_value(text: str) -> Any:
    """The value of a text of the command line: a TOML value, ``0,1`` for the list ``[0, 1]``, else the text itself."""
    for form in (text, f"[{text}]") if "," in text else (text,):
        with contextlib.suppress(ValueError, RecursionError):
            return tomllib.loads(f"value = {form}")["value"]
    return text
