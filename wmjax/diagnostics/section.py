"""Sections of a diagnosis: each can print itself as plain text and be written as JSON."""

import dataclasses
import math
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
    """A part that does not apply to this variant, with the reason."""

    skipped: str

    def table(self) -> str:
        """The reason."""
        return f"skipped: {self.skipped}"


def plain(value: Any) -> Any:
    """Dataclasses, arrays and numpy scalars as JSON types; numbers that are not finite become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
