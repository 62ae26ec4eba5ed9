"""What all stages share: sizes, the results file, the deadline. Imports no framework."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.accelerator import Results

ERROR = 400
"""Characters of an error's message that the results keep."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What differs between a run and its rehearsal.

    ``scale`` is one of ``train/scales`` and ``tight_tokens`` the prompt length that its data need (at 3b they use 163
    to 180 of 200 tokens, at mini 67 to 72 of 80). ``qwen`` is a size of ``benchmarks/qwen_3b.py``, with ``side``
    pixels and ``tokens`` per prompt. ``rounds`` is how many calls are timed, ``product`` the edge of a plain product.
    """

    scale: str
    tight_tokens: int
    step_batches: tuple[int, int, int, int]
    qwen: str
    side: int
    tokens: int
    vlm_batches: tuple[int, ...]
    decision_batches: tuple[int, ...]
    encoder: str
    clip_batches: tuple[int, ...]
    simulators: tuple[int, ...]
    simulator_seconds: float
    product: int
    rounds: int


REAL = Sizes(
    scale="3b",
    tight_tokens=184,
    step_batches=(32, 64, 128, 256),
    qwen="3b",
    side=224,
    tokens=200,
    vlm_batches=(16, 32, 64),
    decision_batches=(1, 8, 16),
    encoder="vitl",
    clip_batches=(16, 64),
    simulators=(1, 8, 16),
    simulator_seconds=6.0,
    product=8192,
    rounds=6,
)
TINY = Sizes(
    scale="mini_lora",
    tight_tokens=72,
    step_batches=(2, 2, 2, 2),
    qwen="tiny",
    side=56,
    tokens=40,
    vlm_batches=(2,),
    decision_batches=(2,),
    encoder="mini",
    clip_batches=(2,),
    simulators=(1,),
    simulator_seconds=1.0,
    product=256,
    rounds=1,
)


@dataclasses.dataclass(frozen=True)
class Session:
    """One stage's access to the results, and its deadline in seconds since the epoch."""

    stage: str
    results: Results
    scratch: Path
    deadline: float

    @property
    def sizes(self) -> Sizes:
        """Those of a run, or of its rehearsal."""
        return TINY if self.results.tiny else REAL

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    def record(self, **values: Any) -> None:
        """Appends a line to the results."""
        self.results.add(self.stage, **values)

    def attempt(self, work: Callable[[], dict[str, Any]], needs: float, **labels: Any) -> dict[str, Any] | None:
        """Records what ``work`` found, or its error, or that fewer than ``needs`` seconds were left for it.

        A batch that exhausts the memory or a missing package costs this line and nothing else.
        """
        if self.left < needs:
            self.record(**labels, skipped=f"{max(self.left, 0):.0f} s left, it needs {needs:.0f}")
            return None
        try:
            found = work()
        except Exception as error:
            self.record(**labels, error=f"{type(error).__name__}: {error}"[:ERROR])
            return None
        self.record(**labels, **found)
        return found
