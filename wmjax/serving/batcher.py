"""Decisions of several clients in one call of the policy."""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec
from wmjax.data.observation import Prompt
from wmjax.rollout.actors import Decision, Plan

log = logging.getLogger("wmjax.serve")
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
    waited long enough.

    Args:
        actor: makes the decisions; it is called from one thread only.
        size: decisions of a full batch.
        max_wait: seconds that a decision waits for others.
        clients: how many there are now.

    """

    def __init__(self, actor: Proposer, size: int, max_wait: float, clients: Callable[[], int]) -> None:
        self._actor, self._size, self._max_wait, self._clients = actor, size, max_wait, clients
        self._waiting: list[tuple[Decision, asyncio.Future[Plan]]] = []
        self._arrived, self._enough = asyncio.Event(), asyncio.Event()
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
        future: asyncio.Future[Plan] = asyncio.get_running_loop().create_future()
        self._waiting.append((decision, future))
        self._arrived.set()
        if self._is_enough():
            self._enough.set()
        return await future

    async def run(self) -> None:
        """Makes batches until it is cancelled."""
        try:
            while True:
                await self._arrived.wait()
                if not self._is_enough():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._max_wait):
                            await self._enough.wait()
                batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
                self._enough.clear()
                if not self._waiting:
                    self._arrived.clear()
                await self._make(batch)
        finally:
            self._thread.shutdown(wait=False)

    def _is_enough(self) -> bool:
        return len(self._waiting) >= min(self._size, self._clients())

    async def _make(self, batch: Sequence[tuple[Decision, asyncio.Future[Plan]]]) -> None:
        decisions = [decision for decision, _ in batch]
        futures = [future for _, future in batch]
        self.batches += 1
        try:
            plans = await asyncio.get_running_loop().run_in_executor(self._thread, self._propose, decisions)
        except Exception:  # whatever it was, later batches are made
            log.exception("a batch of %d decisions failed", len(batch))
            for future in futures:
                if not future.done():
                    future.set_exception(UserError("the policy failed; see the server's log, and connect again"))
            return
        for future, plan in zip(futures, plans, strict=True):
            if not future.done():
                future.set_result(plan)

    def _propose(self, decisions: Sequence[Decision]) -> list[Plan]:
        """The plans, with the time that they took; called in the policy's thread."""
        began = time.perf_counter()
        plans = self._actor.propose(decisions)
        took = {POLICY_MS: 1e3 * (time.perf_counter() - began)}
        return [dataclasses.replace(plan, info={**plan.info, **took}) for plan in plans]
