"""Serves a policy until a signal stops it."""

import asyncio
import logging
from pathlib import Path
from typing import Any

from wmjax.core.paths import enable_compilation_cache
from wmjax.policy.policy import load_policy
from wmjax.policy.policy_actor import Policy
from wmjax.policy.saved import find_policy
from wmjax.serving.server import PolicyServer
from wmjax.serving.settings import ServeSettings

log = logging.getLogger("wmjax.serve")


def serve_run(run: str | Path, settings: ServeSettings) -> None:
    """Serves a policy until a signal ends the command.

    Args:
        run: a run, one of its checkpoints, or a policy's folder or name, see :func:`wmjax.policy.saved.find_policy`.
        settings: how to serve.

    Raises:
        UserError: no policy there, a horizon that is not a multiple of its frame stride, real-time execution that does
            not fit its chunk or its head, or a port that is taken.

    """
    enable_compilation_cache()
    found = find_policy(run)
    policy = load_policy(
        found.folder,
        batch_size=settings.max_batch,
        open_loop_horizon=settings.horizon,
        realtime=settings.realtime,
        execution_delay=settings.execution_delay,
    )
    card = {"recipe": found.experiment.recipe, "step": found.step, "hash": found.hash}
    asyncio.run(_serve(policy, settings, card))


async def _serve(policy: Policy, settings: ServeSettings, card: dict[str, Any]) -> None:
    async with PolicyServer(policy, settings, card) as server:
        for name, port in server.addresses:
            log.info("serving %s on %s:%d", name, settings.host, port)
        service = server.service
        log.info(
            "clients execute %d of %d actions and send %d frames of each camera per decision",
            service.horizon, service.action.chunk, service.frames_per_decision,
        )  # fmt: skip
        await asyncio.Event().wait()  # signals.Stopped ends it
