"""Decisions of several clients in one call of the policy."""

import asyncio
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec
from wmjax.data.observation import Prompt
from wmjax.rollout.actors import Decision, Plan

log = logging.getLogger("wmjax.serve")
Waiting = tuple[Decision, asyncio.Future[Plan]]
"""A decision, and where its plan is waited for."""
QUICK_S = 0.1
"""Seconds of a batch below which the next one of an only client is made in the loop's thread. That saves two changes of
threads, each of which may wait for a core; whoever connects meanwhile waits for this decision."""
POLICY_MS = "policy_ms"
"""What :attr:`wmjax.rollout.actors.Plan.info` calls the milliseconds that the policy took for the plan's batch."""


@runtime_checkable
class Proposer(Protocol):
    """The interface that :class:`wmjax.policy.policy_actor.PolicyActor` implements."""

    prompt: Callable[[str], Prompt]

    def prepare(self, slots: int, horizon: int, action_spec: ActionSpec) -> None:
        """Allocates rows for this number of episodes and compiles the policy."""

    def propose(self, decisions: Sequence[Decision]) -> list[Plan]:
        """One plan per decision; a row's actions may not be finite."""


class Batcher:
    """Collects decisions and computes them in a separate thread, so that connections are served meanwhile.

    A batch is made when it is full, when every client that could still ask has asked, or when its first decision has
    waited long enough. A quick policy (:data:`QUICK_S`) with one client decides in the loop's own thread.

    Args:
        actor: makes the decisions, one batch at a time.
        size: decisions of a full batch.
        max_wait: seconds that a decision waits for others.
        clients: how many there are now.

    """

    def __init__(self, actor: Proposer, size: int, max_wait: float, clients: Callable[[], int]) -> None:
        self._actor, self._size, self._max_wait, self._clients = actor, size, max_wait, clients
        self._waiting: list[Waiting] = []
        self._busy = False
        self._took = math.inf
        self._deadline: asyncio.TimerHandle | None = None
        self._thread = ThreadPoolExecutor(1, "policy")
        self.batches = 0

    async def prepare(self, slots: int, horizon: int, action_spec: ActionSpec) -> None:
        """Compiles the policy.

        Raises:
            UserError: it does not serve this horizon.

        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._actor.prepare, slots, horizon, action_spec)

    async def decide(self, decision: Decision) -> Plan:
        """The plan for one decision, computed together with others; its numbers include :data:`POLICY_MS`.

        Raises:
            UserError: an instruction that the policy cannot read, or the policy failed.

        """
        self._actor.prompt(decision.instruction)  # refused here, it does not stop other clients
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Plan] = loop.create_future()
        self._waiting.append((decision, future))
        self._begin_if_due(loop)
        return await future

    def close(self) -> None:
        """Makes no more batches."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin_if_due(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins a batch if one is due and the policy is free, or sets the time at which one is."""
        if self._busy or not self._waiting:
            return
        if len(self._waiting) >= min(self._size, self._clients()):
            self._begin(loop)
        elif self._deadline is None:
            self._deadline = loop.call_later(self._max_wait, self._begin, loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hands the first decisions that wait to the policy's thread."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
        self._busy = True
        self.batches += 1
        if self._clients() == 1 and self._took < QUICK_S:
            self._finish(loop, batch, self._make(batch))
        else:
            self._thread.submit(self._make_aside, loop, batch)

    def _make_aside(self, loop: asyncio.AbstractEventLoop, batch: Sequence[Waiting]) -> None:
        """Makes a batch in the policy's thread."""
        loop.call_soon_threadsafe(self._finish, loop, batch, self._make(batch))

    def _make(self, batch: Sequence[Waiting]) -> list[Plan] | None:
        """The plans of a batch, with the time that they took; None if the policy failed."""
        began = time.perf_counter()
        try:
            plans = self._actor.propose([decision for decision, _ in batch])
        except Exception:  # whatever it was, later batches are made
            log.exception("a batch of %d decisions failed", len(batch))
            return None
        self._took = time.perf_counter() - began
        return [dataclasses.replace(plan, info={**plan.info, POLICY_MS: 1e3 * self._took}) for plan in plans]

    def _finish(self, loop: asyncio.AbstractEventLoop, batch: Sequence[Waiting], plans: Sequence[Plan] | None) -> None:
        """Answers the decisions of a batch, and begins the next one."""
        self._busy = False
        for row, (_, future) in enumerate(batch):
            if future.done():  # its client is gone
                continue
            if plans is None:
                future.set_exception(UserError("the policy failed; see the server's log, and connect again"))
            else:
                future.set_result(plans[row])
        self._begin_if_due(loop)
