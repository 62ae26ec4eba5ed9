"""Numbers that cannot mislead, and the files they go to."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from tensorboardX import SummaryWriter

NO_VARIANCE = 1e-8
"""Variance below which R² is undefined: nothing moves."""


def r2_over_steps(
    predicted: Float[np.ndarray, "samples chunk dim"],
    actual: Float[np.ndarray, "samples chunk dim"],
    mask: Bool[np.ndarray, "samples chunk"],
) -> Float[np.ndarray, "dim"]:
    """R² per action dimension over the unmasked steps; NaN where nothing varies.

    0 is what their mean scores, 1 is perfect; one MSE over all dimensions hides that an arm does not move.
    """
    guess, truth = predicted[mask].astype(np.float64), actual[mask].astype(np.float64)
    residual = np.square(guess - truth).sum(0)
    total = np.square(truth - truth.mean(0)).sum(0) if len(truth) else residual
    return np.where(total > NO_VARIANCE * len(truth), 1.0 - residual / np.maximum(total, 1e-30), np.nan)


def mean_r2(r2: Float[np.ndarray, "dim"]) -> float:
    """Mean over the dimensions that vary."""
    known = r2[np.isfinite(r2)]
    return float(known.mean()) if len(known) else float("nan")


class MetricsWriter:
    """Appends one JSON object per call to ``metrics.jsonl`` and the same scalars to TensorBoard.

    Every line has ``step``, ``split`` ("train" or "val"), ``time`` (Unix seconds) and the metrics. With several
    processes one of them writes to disk; all check, so that they stop at the same step.
    """

    def __init__(self, run: Path, *, to_disk: bool = True):
        run.mkdir(parents=True, exist_ok=True)
        self._file = (run / "metrics.jsonl" if to_disk else Path(os.devnull)).open("a")
        self._board = SummaryWriter(str(run / "tensorboard"), write_to_disk=to_disk)

    def write(self, step: int, split: str, metrics: dict[str, Any]) -> dict[str, float]:
        """Writes scalars and returns them as floats.

        Raises:
            FloatingPointError: a training metric is not finite: going on would only waste time.

        """
        values = {name: float(value) for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, "split": split, "time": time.time(), **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)
        if split == "train" and not np.isfinite(values["loss"]):
            raise FloatingPointError(f"loss is {values['loss']} at step {step}; lower optimizer.learning_rate")
        return values

    def close(self) -> None:
        """Flushes and closes both files."""
        self._file.close()
        self._board.close()
