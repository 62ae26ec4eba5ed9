"""A trace of some training steps by jax.profiler, which TensorBoard, XProf and Perfetto show."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

log = logging.getLogger("wmjax.train")


class StepTrace:
    """Traces the steps from ``first`` on. Use it as a context manager, which ends a trace that is cut short.

    Args:
        folder: where jax writes, below ``plugins/profile``.
        first: number of the first step.
        count: how many steps; 0 traces none.

    """

    def __init__(self, folder: Path, first: int, count: int) -> None:
        self._folder, self._first, self._last = folder, first, first + count - 1
        self._runs = False

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def before(self, step: int) -> None:
        """Begins the trace before its first step."""
        if step == self._first <= self._last:
            jax.profiler.start_trace(self._folder)
            self._runs = True

    def after(self, step: int, results: Any) -> None:
        """Ends the trace after its last step, when the results of the step are computed."""
        if self._runs and step == self._last:
            jax.block_until_ready(results)
            self._end()

    def _end(self) -> None:
        if self._runs:
            self._runs = False
            jax.profiler.stop_trace()
            log.info("traced from step %d on: tensorboard --logdir %s", self._first, self._folder)
