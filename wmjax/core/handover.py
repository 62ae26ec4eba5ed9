"""The hand-over from one action chunk to the next, when the robot moves on while a chunk is computed.

Imports no jax, so that protocols can use it.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32

from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec

Realtime = Literal["none", "rtc", "blend"]
"""What a policy does about the actions that are executed before its own: nothing, real-time chunking (the flow head
completes a chunk that begins with them), or a weighted mean of the previous chunk and the new one."""

Array = Any
"""A numpy or jax array."""


@dataclasses.dataclass(frozen=True)
class Handover:
    """The steps that a chunk shares with earlier chunks. All numbers are control steps.

    A chunk that is decided on the observation of step t holds the actions of the steps from ``t + trained_delay`` on,
    because so the policy was trained, and replaces the previous chunk from step ``t + delay`` on. Chunks of ``chunk``
    actions are decided every ``horizon`` steps.

    Attributes:
        method: how the chunk is made to continue the previous one.
        chunk: actions of a chunk.
        horizon: steps between two decisions.
        delay: steps between an observation and the execution of the actions chosen on it.
        trained_delay: steps between an observation and the first action of its chunk.

    Raises:
        UserError: no delay, or one for which the chunk is too short.

    """

    method: Literal["rtc", "blend"]
    chunk: int
    horizon: int
    delay: int
    trained_delay: int = 0

    def __post_init__(self) -> None:
        require_delay(self.method, self.delay)
        if self.trained_delay > self.delay:
            raise UserError(
                f"realtime is {self.method!r} with an execution delay of {self.delay}, but the policy's chunks begin "
                f"{self.trained_delay} control steps after the observation (train.delay); choose a delay of at least "
                f"{self.trained_delay}, or realtime 'none'"
            )
        if self.overlap == 0 or self.committed > self.overlap:
            raise UserError(
                f"realtime is {self.method!r} with an execution delay of {self.delay}, but chunks of {self.chunk} "
                f"actions that begin {self.trained_delay} control steps after the observation (train.delay) overlap "
                f"for {self.overlap} at open_loop_horizon {self.horizon}; lower the delay or the horizon, or choose "
                "realtime 'none'"
            )

    @property
    def committed(self) -> int:
        """The number of a chunk's first rows whose steps execute the actions of earlier chunks."""
        return self.delay - self.trained_delay

    @property
    def overlap(self) -> int:
        """The number of a chunk's first rows for which the previous chunk has predictions."""
        return self.chunk - self.horizon

    @property
    def pending(self) -> int:
        """The steps from a decision on for which earlier chunks have actions, see :attr:`Decision.pending`."""
        return self.trained_delay + self.overlap

    def weights(self) -> Float32[np.ndarray, " chunk"]:
        """The weight of the previous chunk's action in each row.

        1 for the committed rows and 0 behind the overlap. Between them, for row i, ``c = (overlap - i) / (overlap -
        committed + 1)`` when blending, and ``c (exp(c) - 1) / (e - 1)`` with real-time chunking (the soft mask of
        Black, Galliker and Levine 2025, "Real-Time Execution of Action Chunking Flow Policies", equation 5).
        """
        rows = np.arange(self.chunk)
        ramp = np.clip((self.overlap - rows) / (self.overlap - self.committed + 1), 0.0, 1.0)
        weights = ramp * np.expm1(ramp) / np.expm1(1.0) if self.method == "rtc" else ramp
        return weights.astype(np.float32)

    def previous(self, pending: Float[Array, "batch pending action"]) -> Float[Array, "batch overlap action"]:
        """The previous chunk's actions of the overlap."""
        return pending[:, self.trained_delay :]

    def blend(
        self,
        chunk: Float[Array, "batch chunk action"],
        previous: Float[Array, "batch overlap action"],
        spec: ActionSpec,
    ) -> Float[Array, "batch chunk action"]:
        """The weighted mean of both chunks' actions, raw; numpy or jax.

        Gripper commands have no mean: they are the previous chunk's while committed, else the new chunk's.
        """
        weights = np.tile(self.weights()[: self.overlap, None], spec.dim)
        weights[self.committed :, list(spec.grippers)] = 0.0
        mixed = weights * previous + (1.0 - weights) * chunk[:, : self.overlap]
        xp = chunk.__array_namespace__()
        return xp.concat([mixed, chunk[:, self.overlap :]], axis=1)


def require_delay(realtime: Realtime, delay: int) -> None:
    """Refuses real-time execution without a delay.

    Raises:
        UserError: names both.

    """
    if realtime != "none" and not delay:
        raise UserError(
            f"realtime is {realtime!r}, but execution_delay is 0, so no action is executed before a chunk exists; "
            "set execution_delay, or realtime to 'none'"
        )


def make_handover(
    realtime: Realtime, *, chunk: int, horizon: int, delay: int, trained_delay: int = 0
) -> Handover | None:
    """The hand-over of a policy; None for none.

    Raises:
        UserError: see :class:`Handover`.

    """
    return None if realtime == "none" else Handover(realtime, chunk, horizon, delay, trained_delay)
