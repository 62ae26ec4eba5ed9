"""The closed-loop evaluation of a policy that another program serves, and the check of its conventions."""

import argparse
import dataclasses
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmjax.analysis.summary import Summary
from wmjax.core.command import whole_number
from wmjax.core.errors import UserError
from wmjax.core.location import Location
from wmjax.data.store import TrainingStore
from wmjax.pipeline.evaluate import evaluate
from wmjax.pipeline.evaluate_scripted import SCRIPTED
from wmjax.rollout.protocol import Protocol, protocol_folder
from wmjax.rollout.settings import EvaluateSettings

if TYPE_CHECKING:
    from wmjax.serving.clients.client import Client
    from wmjax.serving.clients.conventions import Conventions

log = logging.getLogger("wmjax.evaluate")
SCHEMES = ("ws://", "wss://")
CHECKED = 64
"""Recorded observations that ``--check`` shows under each preset."""


def is_served(policy: str | None) -> bool:
    """Whether ``--policy`` names a server."""
    return policy is not None and policy.startswith(SCHEMES)


def policy_name(text: str) -> str:
    """The argparse type of ``--policy``.

    Raises:
        ArgumentTypeError: neither a scripted actor nor a server.

    """
    if text in SCRIPTED or is_served(text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(SCRIPTED)}, and no URL such as ws://HOST:PORT")


def add_served_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a served policy to the command's."""
    served = parser.add_argument_group(
        "a policy that another program serves (--policy ws://HOST:PORT)",
        "Its conventions are --foreign.NAME VALUE, such as --foreign.image_size 256; --foreign.preset names where they "
        "begin: openpi, starvla, vla-eval or openvla.",
    )
    served.add_argument("--dialect", default="openpi", help="its protocol: openpi (default), starvla or vla-eval")
    served.add_argument(
        "--check", type=whole_number("check", 1), nargs="?", const=CHECKED, metavar="N",
        help=f"show it N ({CHECKED}) observations of --data under each preset, and print which one fits",
    )  # fmt: skip


def require_served(foreign: Mapping[str, Any], policy: str | None) -> None:
    """Refuses conventions without a served policy.

    Raises:
        UserError: names one of them.

    """
    if foreign and not is_served(policy):
        raise UserError(f"foreign.{next(iter(foreign))} is set, but no served policy; give --policy ws://HOST:PORT")


def evaluate_served(
    url: str,
    dialect: str,
    foreign: Mapping[str, Any],
    protocol: Protocol,
    unchanged: Protocol,
    settings: EvaluateSettings,
    *,
    out: Path | None = None,
) -> tuple[Summary, Path]:
    """Evaluates the policy behind a URL; returns the verdict and the results' folder.

    Args:
        url: such as ``ws://127.0.0.1:8000``.
        dialect: of :data:`wmjax.serving.clients.client.CLIENTS`.
        foreign: settings of :class:`wmjax.serving.clients.conventions.Conventions`.
        protocol: what is run; its open-loop horizon only if it differs from that of ``unchanged``.
        unchanged: the protocol as its file has it.
        settings: how it is run.
        out: the results' folder; ``runs/NAME/PROTOCOL`` when None.

    Raises:
        UserError: no such server, conventions that do not fit, or see :func:`wmjax.pipeline.evaluate.evaluate`.

    """
    from wmjax.serving.clients.conventions import drawn_spec
    from wmjax.serving.clients.served_policy import ServedPolicy, own_spec

    client, chosen = open_client(url, dialect, foreign)
    protocol = _served_protocol(client, chosen, protocol, unchanged)
    horizon = protocol.open_loop_horizon
    spec = own_spec(client) if client.own else drawn_spec(chosen, protocol.environment.observation_spec, horizon)
    name = chosen.name or _own_name(client) or url.partition("://")[2].rstrip("/")
    actor = ServedPolicy(client, chosen, spec, name)
    fields = ("recipe", "step", "hash", "realtime")
    about = {key: client.card[key] for key in fields if client.own and client.card.get(key, "none") != "none"}
    used = {key: value for key, value in dataclasses.asdict(chosen).items() if key not in ("timeout_s", "name")}
    header: dict[str, Any] = {"served": {"dialect": dialect, **about}, "foreign": used}
    out = out or protocol_folder(Path("runs") / re.sub(r"[^\w.-]", "-", name), protocol, unchanged)
    try:
        return evaluate(actor, protocol, out, settings, header), out
    finally:
        actor.close()


def open_client(url: str, dialect: str, foreign: Mapping[str, Any]) -> "tuple[Client, Conventions]":
    """A connection to a server, and the conventions of its policy.

    Raises:
        UserError: a package is missing, no such server or dialect, or settings that do not fit.

    """
    try:
        from wmjax.serving.clients.client import CLIENTS
        from wmjax.serving.clients.served_policy import connected, resolved
    except ModuleNotFoundError as error:
        if error.name not in ("websockets", "msgpack"):
            raise
        raise UserError(f"{error.name} is not installed; run pip install 'wmjax[serve]'") from None
    kind, timeout_s = CLIENTS.resolve(dialect), foreign.get("timeout_s", 600.0)
    client = connected(kind, url, float(timeout_s) if isinstance(timeout_s, int | float) else 600.0)
    try:
        return client, resolved(client, foreign)
    except UserError:
        client.close()
        raise


def _served_protocol(client: "Client", chosen: "Conventions", protocol: Protocol, unchanged: Protocol) -> Protocol:
    """The protocol with the policy's own horizon, unless another one was requested, and with time for the wait.

    Raises:
        UserError: a server of wmjax has another horizon or seed, or the wait is not a multiple of the horizon.

    """
    asked = protocol.open_loop_horizon if protocol.open_loop_horizon != unchanged.open_loop_horizon else None
    if client.own and asked not in (None, chosen.horizon):
        raise UserError(
            f"open_loop_horizon is {asked}, {client.url} decides every {chosen.horizon} control steps; serve it with "
            f"--horizon {asked}, or leave --horizon out"
        )
    if client.own and client.card.get("seed", protocol.seed) != protocol.seed:
        raise UserError(
            f"seed is {protocol.seed}, the noise of {client.url} has the seed {client.card['seed']}; give --seed "
            f"{client.card['seed']}, or serve it with --seed {protocol.seed}"
        )
    served_delay, realtime = client.card.get("execution_delay", 0), client.card.get("realtime", "none") != "none"
    timed = realtime or client.card.get("pending_steps", 0)
    if client.own and timed and served_delay != protocol.execution_delay:
        other = f", or serve it with --delay {protocol.execution_delay}" if realtime else ", for which it was trained"
        raise UserError(
            f"execution_delay is {protocol.execution_delay}, {client.url} serves for {served_delay} control steps; "
            f"give --delay {served_delay}{other}"
        )
    horizon = asked or chosen.horizon or protocol.open_loop_horizon
    wait = chosen.wait_steps
    if wait % horizon or (wait and client.own):
        raise UserError(
            f"foreign.wait_steps is {wait}; give a multiple of the {horizon} control steps between two decisions, and "
            "0 for a server of wmjax"
        )
    if horizon != protocol.open_loop_horizon:
        log.info("open_loop_horizon is %d, from the policy's conventions", horizon)
    return dataclasses.replace(protocol, open_loop_horizon=horizon, max_steps=protocol.max_steps + wait)


def _own_name(client: "Client") -> str:
    return f"{client.card['recipe']}-served" if client.own and "recipe" in client.card else ""


def check_served(url: str | None, dialect: str, foreign: Mapping[str, Any], data: Location | None, count: int) -> str:
    """The table of ``--check``, see :mod:`wmjax.serving.clients.check`.

    Raises:
        UserError: no data, or see :func:`open_client`.

    """
    if url is None or not is_served(url):
        raise UserError(f"--check is given, but --policy is {url}; name a server, such as ws://127.0.0.1:8000")
    if data is None:
        raise UserError("--data is missing; --check needs the training store whose observations it shows")
    client, chosen = open_client(url, dialect, foreign)
    from wmjax.serving.clients.check import check_conventions

    changes = {key: value for key, value in foreign.items() if key not in ("preset", "timeout_s", "name")}
    return check_conventions(client, chosen, changes, TrainingStore(data), count).table()
