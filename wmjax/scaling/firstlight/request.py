"""The request for a first light, and the result of a check. Imports no jax."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from wmjax.core.errors import unknown_name

Status = Literal["pass", "fail", "skip"]
NAMES = (
    "weights", "tokenizer", "latents", "bfloat16", "attention", "torch", "donation", "checkpoint", "step", "overfit",
    "decision", "export", "render", "simulator", "replay", "rollouts",
)  # fmt: skip
"""The checks in their order. What each does is in the docstring of its function (:data:`.checks.CHECKS`)."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A training, and the checks to run of it.

    Attributes:
        recipe: a variant and a head.
        scale: a file of ``train/scales``.
        settings: nested settings, laid over the files.
        weights: the folder of the backbone's published weights; None for noise.
        checks: names, in order.

    """

    recipe: str
    scale: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str | None = None
    checks: tuple[str, ...] = NAMES


@dataclasses.dataclass(frozen=True)
class Finding:
    """The answer of a check: in words, and as JSON-able figures."""

    status: Status
    text: str
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Row:
    """A check's line in the report; ``seconds`` is the time that it took."""

    check: str
    finding: Finding
    seconds: float

    def line(self) -> str:
        """The line as it is printed."""
        return f"{self.finding.status:<5}{self.check:<11}{self.finding.text}  [{self.seconds:.0f} s]"

    def as_dict(self) -> dict[str, Any]:
        """The row as it is written."""
        return {"check": self.check, **dataclasses.asdict(self.finding), "seconds": round(self.seconds, 2)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Row":
        """The inverse of :meth:`as_dict`."""
        return cls(values["check"], Finding(values["status"], values["text"], values["figures"]), values["seconds"])


class MissingPieceError(Exception):
    """A resource that a check needs is missing; the check is skipped with this reason."""


def judged(good: bool, text: str, **figures: Any) -> Finding:
    """A finding that passes if ``good``."""
    return Finding("pass" if good else "fail", text, figures)


def chosen(only: Sequence[str] = (), skip: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of the checks to run: all, or ``only`` some, without those to ``skip``.

    Raises:
        UserError: no such check.

    """
    for name in (*only, *skip):
        if name not in NAMES:
            raise unknown_name("check", name, NAMES)
    return tuple(name for name in NAMES if name in (only or NAMES) and name not in skip)
