"""Sessions: the episode that a connection is in, its row of the policy's memory, and the names of its noise."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np

from wmjax.core.errors import UserError
from wmjax.rollout.actors import Chunk, Decision
from wmjax.rollout.execution import Execution
from wmjax.serving.batcher import POLICY_MS, Batcher
from wmjax.serving.request import Request, Service
from wmjax.sim.episode import EpisodeId


@dataclasses.dataclass(frozen=True)
class Reply:
    """The answer to a client.

    Attributes:
        actions: raw, within their bounds; the first one is for the control step that the decision takes effect at.
        history: whether the policy remembered the ``episode``, or was shown the ``newest frame`` as all of the past.
        policy_ms: how long the policy took, for all decisions that shared its call.

    """

    actions: Chunk
    history: Literal["episode", "newest frame"]
    policy_ms: float


class Session:
    """One connection. It is in one episode at a time, and waits for one decision at a time.

    Attributes:
        name: of the connection, for episodes that a client does not name.

    """

    def __init__(self, batcher: Batcher, service: Service, row: int, number: int) -> None:
        self._batcher, self._service, self._row = batcher, service, row
        self.name = f"connection-{number}"
        self._identity: tuple[str | None, str | None] | None = None
        self._episode = named_episode(self.name)
        self._decisions = self._requests = 0
        self._execution: Execution | None = None

    async def decide(self, request: Request) -> Reply:
        """The actions for a client's observation.

        A client that names neither its episode nor its session could be in any episode at every request: each of its
        requests is one by itself, whose past is the newest frame. So is the past of a request that shows one frame of
        several that fell due: what the policy remembers would have gaps that it was not trained on.

        Raises:
            UserError: another time between two decisions than the policy is served for, an instruction that it cannot
                read, or actions that are not finite.

        """
        self._requests += 1
        named = self._enter(request)
        needed, frames, number = self._service.frames_per_decision, request.frames, self._decisions
        remembers = named and (number == 0 or len(frames) == needed)
        if not named:
            frames = frames[-1:]
        if len(frames) != needed:
            frames = np.repeat(frames, needed, axis=0)
        known = self._pending()
        decision = Decision(
            self._row, self._episode, number, number * self._service.horizon, frames, request.state,
            request.instruction, pending=known if request.pending is None else request.pending, forget=not remembers,
        )  # fmt: skip
        plan = await self._batcher.decide(decision)
        self._decisions += 1
        if not np.isfinite(plan.actions).all():
            raise UserError("the policy's actions are not finite for this observation; check state and images")
        if self._execution is not None:
            self._execution.add(plan.actions)
            self._execution.take(self._service.horizon)
        return Reply(plan.actions, "episode" if remembers else "newest frame", plan.info[POLICY_MS])

    def _pending(self) -> Chunk | None:
        """The pending actions, assuming that the client executes each answer from the step at which it takes effect."""
        service = self._service
        if not service.pending_steps:
            return None
        if self._decisions == 0 or self._execution is None:
            self._execution = Execution(service.horizon, service.delay, spec=service.action)
            return None
        return self._execution.planned(service.pending_steps)

    def _enter(self, request: Request) -> bool:
        """Begins a new episode if the request belongs to one; returns whether the client names its episode."""
        identity = (request.session, request.episode)
        if identity == (None, None):
            self._identity, self._decisions = None, 0
            self._episode = named_episode(f"{self.name}-{self._requests}")
            return False
        if identity != self._identity or request.step == 0:
            self._identity, self._decisions = identity, 0
            self._episode = named_episode(request.episode or request.session or "")
        expected = self._decisions * self._service.horizon
        if request.step and not self._decisions:
            raise UserError(
                f"the step is {request.step}, but this connection has not begun the episode; begin it at step 0"
            )
        if request.step is not None and request.step != expected:
            raise UserError(
                f"the step is {request.step}, decision {self._decisions} of this episode is due at step {expected}; "
                f"execute {self._service.horizon} actions of each chunk, or serve with another --horizon"
            )
        return True


class Sessions:
    """All open sessions, each with its own row.

    Args:
        batcher: makes the decisions.
        service: what is served.
        rows: how many there may be at once.

    """

    def __init__(self, batcher: Batcher, service: Service, rows: int) -> None:
        self._batcher, self._service = batcher, service
        self._free = list(range(rows))
        self._rows = rows
        self._opened = 0

    @property
    def count(self) -> int:
        """The number of open sessions."""
        return self._rows - len(self._free)

    @contextlib.contextmanager
    def open(self) -> Iterator[Session]:
        """Opens a session, whose row is freed at the end of the block.

        Raises:
            UserError: there are as many as there may be.

        """
        if not self._free:
            raise UserError(f"all {self._rows} sessions are in use; try again later, or serve with --max-sessions")
        row, self._opened = self._free.pop(), self._opened + 1
        try:
            yield Session(self._batcher, self._service, row, self._opened)
        finally:
            self._free.append(row)


def named_episode(name: str) -> EpisodeId:
    """The episode whose key a client names, such as ``libero_spatial/3/random/17``.

    Any other name is that of a suite, with the key ``NAME/0/random/0``: noise follows from keys alone.
    """
    with contextlib.suppress(UserError):
        return EpisodeId.parse(name)
    return EpisodeId(name, 0, "random", 0)
