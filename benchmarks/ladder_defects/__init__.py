"""The faults of the PyTorch predecessor that wmjax refuses or cannot express, put back for ``benchmarks/ladder.py``.

Nothing of ``wmjax`` imports this package. A fault is a context manager of :data:`PATCHES`; it is in place while the
context is open and gone afterwards.
"""

from contextlib import AbstractContextManager
from typing import Protocol

from benchmarks.ladder_defects.inputs import clips_see_ahead, empty_instruction
from benchmarks.ladder_defects.learning import adapters_left_out, bfloat16_parameters, true_futures_in_memory


class Patch(Protocol):
    """A fault that is in place while its context is open."""

    def __call__(self) -> AbstractContextManager[None]:
        """Opens it."""


PATCHES: dict[str, Patch] = {
    "adapters_left_out": adapters_left_out,
    "bfloat16_parameters": bfloat16_parameters,
    "true_futures_in_memory": true_futures_in_memory,
    "clips_see_ahead": clips_see_ahead,
    "empty_instruction": empty_instruction,
}
"""The faults by the name that ``eval/plans/ladder.toml`` and :mod:`benchmarks.ladder_defects.__main__` use."""
