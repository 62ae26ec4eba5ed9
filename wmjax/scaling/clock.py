"""Timing of calls whose results are computed while the caller continues. Imports no framework."""

import time
from collections.abc import Callable
from typing import Any


def timed(
    call: Callable[[], Any], wait: Callable[[Any], Any], rounds: int = 10, warm_up: int = 2
) -> tuple[float, float]:
    """Seconds per call with one wait at the end, and the part of them until the calls had returned (dispatch)."""
    for _ in range(warm_up):
        result = call()
        wait(result)
    started = time.perf_counter()
    for _ in range(rounds):
        result = call()
    dispatched = time.perf_counter() - started
    wait(result)
    return (time.perf_counter() - started) / rounds, dispatched / rounds


def clocked(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of some work, and its seconds."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started
