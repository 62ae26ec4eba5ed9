"""Sections of a diagnosis: each can print itself as plain text and be written as JSON."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Section(Protocol):
    """One part of a diagnosis: a dataclass of numbers."""

    def table(self) -> str:
        """Its numbers as plain text."""
        ...


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A part that does not apply to this variant, and why."""

    skipped: str

    def table(self) -> str:
        """The reason."""
        return f"skipped: {self.skipped}"


def text_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned columns, the first to the left; floats with three decimals, missing values as a dash."""
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = []
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *padded[1:]]).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)


def plain(value: Any) -> Any:
    """Dataclasses, arrays and numpy scalars as JSON types; what is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
