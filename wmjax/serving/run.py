"""Serves a run's checkpoint until it is told to stop."""

import asyncio
import contextlib
import logging
import signal
from pathlib import Path
from typing import Any

from wmjax.core.paths import keep_compiled_programs
from wmjax.policy.policy import load_policy
from wmjax.rollout.policy_actor import Policy
from wmjax.serving.server import PolicyServer, Settings
from wmjax.trainer import checkpoint

log = logging.getLogger("wmjax.serve")


def serve_run(run: Path, settings: Settings, horizon: int | None = None) -> None:
    """Serves a run's newest checkpoint, or one checkpoint's folder, until SIGINT or SIGTERM.

    Args:
        run: its folder.
        settings: how to serve.
        horizon: control steps between two decisions of a client; the whole chunk when None.

    Raises:
        UserError: no complete checkpoint there, a horizon that is no multiple of its frame stride, or a port that is
            taken.

    """
    settings.listeners  # noqa: B018  (refuses what is wrong before anything is loaded)
    keep_compiled_programs()
    folder = checkpoint.find(run)
    policy = load_policy(folder, batch_size=settings.max_batch, open_loop_horizon=horizon)
    asyncio.run(_serve(policy, settings, _card(folder)))


def _card(folder: Path) -> dict[str, Any]:
    """Which policy it is."""
    experiment = checkpoint.read_meta(folder)["experiment"]
    return {"server": "wmjax", "recipe": experiment["recipe"], "step": int(folder.name)}


async def _serve(policy: Policy, settings: Settings, card: dict[str, Any]) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(signal_number, stop.set)
    async with PolicyServer(policy, settings, card) as server:
        for name, port in server.addresses:
            log.info("serving %s on %s:%d (health: /healthz)", name, settings.host, port)
        service = server.service
        log.info(
            "clients execute %d of %d actions and send %d frames of each camera per decision",
            service.horizon, service.action.chunk, service.frames_per_decision,
        )  # fmt: skip
        await stop.wait()
        log.info("stopping")
