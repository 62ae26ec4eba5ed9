"""Timing of a training: speed, the share of each part, and the time left."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

from wmjax.trainer.config import TrainConfig

Part = Literal["data", "validation", "save", "evaluation"]
"""What is timed beside the steps themselves: waiting for a batch, the validation, what a save costs the loop, and the
closed loop during training."""
Speed = Callable[[float], dict[str, float]]
"""Metrics that follow from samples/s, such as the share ``mfu`` of the devices' FLOP/s."""


class Clock:
    """Samples per second since the last tick, what follows from them, the parts of that time, and the time left."""

    def __init__(self, step: int, config: TrainConfig, speed: Speed) -> None:
        self._config, self._speed, self._step, self._time = config, speed, step, time.monotonic()
        self._parts: Counter[Part] = Counter()  # seconds since the last tick
        self._rate, self._text = 0.0, ""

    @contextlib.contextmanager
    def of(self, part: Part) -> Iterator[None]:
        """Counts the block's time as that of a part."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._parts[part] += time.monotonic() - start  # type: ignore[assignment]

    def tick(self, step: int) -> dict[str, float]:
        """Ends an interval; ``samples_per_second`` counts neither validation, nor saves, nor evaluations."""
        now = time.monotonic()
        total, parts = max(now - self._time, 1e-9), self._parts
        training = max(total - parts["validation"] - parts["save"] - parts["evaluation"], 1e-9)
        self._rate = (step - self._step) / training
        shares = {"data": parts["data"], "compute": training - parts["data"]}
        shares |= {name: parts[name] for name in ("save", "validation", "evaluation") if parts[name]}
        self._text = ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in shares.items())
        samples = self._rate * self._config.batch_size
        more = self._speed(samples)
        self._text += f", MFU {100 * more['mfu']:.1f} %" if "mfu" in more else ""
        self._step, self._time, self._parts = step, time.monotonic(), Counter()
        return {"samples_per_second": samples, **more}

    def left(self, step: int) -> str:
        """Speed, time left and where the last interval went, in words."""
        minutes = (self._config.steps - step) / max(self._rate, 1e-9) / 60
        return f"{self._rate * self._config.batch_size:.0f} samples/s  {minutes:.1f} min left  ({self._text})"
