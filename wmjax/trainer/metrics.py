"""Metrics of training and validation, and the files that they are written to."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from wmjax.core.files import atomic_path, disk_errors
from wmjax.trainer.trackers import Trackers

NO_VARIANCE = 1e-8
"""Variance below which R² is undefined: nothing moves."""


def r2_over_steps(
    predicted: Float[np.ndarray, "samples chunk dim"],
    actual: Float[np.ndarray, "samples chunk dim"],
    mask: Bool[np.ndarray, "samples chunk"],
) -> Float[np.ndarray, " dim"]:
    """R² per action dimension over the unmasked steps; NaN where nothing varies.

    0 is what their mean scores, 1 is perfect; one MSE over all dimensions hides that an arm does not move.
    """
    guess, truth = predicted[mask].astype(np.float64), actual[mask].astype(np.float64)
    residual = np.square(guess - truth).sum(0)
    total = np.square(truth - truth.mean(0)).sum(0) if len(truth) else residual
    return np.where(total > NO_VARIANCE * len(truth), 1.0 - residual / np.maximum(total, 1e-30), np.nan)


def mean_r2(r2: Float[np.ndarray, " dim"]) -> float:
    """Mean over the dimensions that vary."""
    known = r2[np.isfinite(r2)]
    return float(known.mean()) if len(known) else float("nan")


class MetricsWriter:
    """Appends one JSON object per call to ``metrics.jsonl`` and gives it to trackers. Close it at the end.

    Every line has ``step``, ``split`` ("train" or "val"), ``time`` (Unix seconds) and those metrics that are finite.
    With several processes one of them writes to disk; all may call it.

    Args:
        run: the run's folder.
        step: where the run goes on: what is there of later steps was lost with them and is removed, from both.
        to_disk: whether this process writes.
        trackers: names of :data:`wmjax.trainer.trackers.TRACKERS`.

    Attributes:
        run: the run's folder.

    """

    def __init__(
        self, run: Path, step: int = 0, *, to_disk: bool = True, trackers: Sequence[str] = ("tensorboard",)
    ) -> None:
        self.run = run
        run.mkdir(parents=True, exist_ok=True)
        path = run / "metrics.jsonl"
        lines = _cut(path, step) if to_disk else []
        self._trackers = Trackers(trackers if to_disk else (), run, step, lines)
        self._written = {(line["step"], line["split"]) for line in lines or []}
        # Without a buffer: what a full disk refuses would be written again when the file is closed.
        self._file = (path if to_disk else Path(os.devnull)).open("ab", buffering=0)

    def has(self, step: int, split: str) -> bool:
        """Whether there is a line of that step; only the process that writes knows."""
        return (step, split) in self._written

    def write(self, step: int, split: str, metrics: dict[str, Any]) -> dict[str, float]:
        """Writes scalars and returns them as floats; those that are not finite are left out.

        Raises:
            UserError: the disk is full or cannot be written to.

        """
        values = {name: float(value) for name, value in metrics.items()}
        values = {name: value for name, value in values.items() if np.isfinite(value)}
        line = {"step": step, "split": split, "time": time.time(), **values}
        with disk_errors(self.run):
            self._file.write(f"{json.dumps(line)}\n".encode())
        self._trackers.add(line)
        return values

    def close(self) -> None:
        """Flushes and closes the file and the trackers."""
        self._file.close()
        self._trackers.close()


def _cut(path: Path, step: int) -> list[dict[str, Any]] | None:
    """Truncates a file to the lines up to a step, one per step and split, and returns them; None without a file.

    Incomplete lines are dropped, because the process may have been killed while it wrote.
    """
    if not path.is_file():
        return None
    lines: dict[tuple[int, str], dict[str, Any]] = {}
    text = path.read_bytes()
    for row in text.splitlines():
        try:
            line = json.loads(row)
            if line["step"] <= step:
                lines[line["step"], line["split"]] = line
        except (ValueError, KeyError, TypeError):
            continue
    whole = "".join(json.dumps(line) + "\n" for line in lines.values())
    if whole.encode() != text:
        with atomic_path(path) as temporary:
            temporary.write_text(whole, encoding="utf-8")
    return list(lines.values())
