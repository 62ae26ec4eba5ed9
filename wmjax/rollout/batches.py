"""Which episodes share a call of the policy: a batch is made when it is full, or when waiting longer is of no use."""

import math
import time
from collections.abc import Callable, Sequence


class Batches:
    """The slots that wait for a decision, in the order in which they began to wait.

    Which decisions come together changes no action, so the result of an evaluation does not depend on the waiting.

    Args:
        size: decisions of a full batch.
        max_wait: seconds that a slot waits for others.
        clock: the time in seconds.

    """

    def __init__(self, size: int, max_wait: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._size, self._max_wait, self._clock = size, max_wait, clock
        self._waiting: dict[int, float] = {}
        self._decisions = self._rows = 0

    def add(self, slot: int) -> None:
        """Notes that a slot waits from now on."""
        self._waiting[slot] = self._clock()

    def patience(self) -> float | None:
        """Seconds until the slot that has waited longest has waited long enough; None if no slot waits."""
        if not self._waiting:
            return None
        return max(0.0, min(self._waiting.values()) + self._max_wait - self._clock())

    def take(self, possible: int) -> list[int]:
        """Removes and returns the slots that are decided for now, which may be none.

        Args:
            possible: how many slots could wait soon, those that do included: a worker that resets takes seconds.

        """
        full = len(self._waiting) // self._size * self._size
        chosen = list(self._waiting)[:full]
        if not full and (len(self._waiting) >= possible or self.patience() == 0):
            chosen = list(self._waiting)
        for slot in chosen:
            del self._waiting[slot]
        return chosen

    def count(self, groups: Sequence[int]) -> None:
        """Counts decisions that were made, by groups that share no batch."""
        self._decisions += sum(groups)
        self._rows += sum(math.ceil(group / self._size) * self._size for group in groups)

    @property
    def fill(self) -> float | None:
        """The share of the batches' rows that held a decision, the others being padding; None for batches of one."""
        return self._decisions / self._rows if self._rows and self._size > 1 else None
