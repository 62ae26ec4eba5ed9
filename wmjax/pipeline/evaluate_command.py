"""The implementation of the evaluate command: the closed-loop evaluation of a trained policy or of a scripted actor."""

import functools
from pathlib import Path
from typing import Any

from wmjax.core.errors import UserError
from wmjax.core.location import Location
from wmjax.pipeline.evaluate_checkpoint import evaluate_checkpoint, identity
from wmjax.pipeline.evaluate_list import evaluate_list
from wmjax.pipeline.evaluate_scripted import evaluate_scripted, replay_status
from wmjax.pipeline.evaluate_served import check_served, evaluate_served, is_served, require_served
from wmjax.policy.places import Places
from wmjax.policy.saved import find_policy
from wmjax.rollout.protocol import load_protocol, protocol_folder
from wmjax.rollout.protocol_list import ProtocolList, load_protocol_list
from wmjax.rollout.settings import EvaluateSettings


def run_evaluation(
    settings: EvaluateSettings,
    changes: dict[str, Any],
    foreign: dict[str, Any],
    *,
    run: Path | None,
    policy: str | None,
    protocol: str,
    out: Path | None,
    data: Location | None,
    dialect: str,
    check: int | None,
    places: Places,
) -> int:
    """Evaluates, prints the table, and returns the exit status: 1 if too few replays succeeded, else 0.

    Args:
        settings: how it is run.
        changes: fields of the protocol that differ from its file.
        foreign: conventions of a served policy.
        run: a trained run or policy; None for a scripted actor.
        policy: the scripted actor's name, or a server's URL.
        protocol: a name of a protocol or of a list of them, or a path ending in ``.toml``.
        out: folder of the results; None names one by the actor, the protocol and its changes.
        data: the training store to replay, to check with, or of the run.
        dialect: of a served policy.
        check: the number of observations for a check of a served policy, instead of an evaluation.
        places: what to use in place of folders that the run's settings name, as on another machine.

    Raises:
        UserError: see what evaluates; conventions without a served policy, places without a trained one.

    """
    require_served(foreign, policy)
    if check is not None:
        print(check_served(policy, dialect, foreign, data, check))
        return 0
    if run is None and places:
        raise UserError(f"settings of {', '.join(places)} are of a trained policy; leave them out with --policy")
    cells = load_protocol_list(protocol, **changes)
    if cells is not None:
        return _run_list(cells, settings, run, policy, out, data, places)
    chosen, unchanged = load_protocol(protocol, **changes), load_protocol(protocol)
    if policy is not None and is_served(policy):
        summary, out = evaluate_served(policy, dialect, foreign, chosen, unchanged, settings, out=out)
    elif run is None:
        assert policy is not None
        out = out or protocol_folder(Path("runs") / policy, chosen, unchanged)
        summary = evaluate_scripted(policy, chosen, out, settings, data=data)
    else:
        found = find_policy(run)  # once: a run that is still training saves others meanwhile
        out = out or protocol_folder(found.evaluations, chosen, unchanged)
        summary = evaluate_checkpoint(found.folder, chosen, out, settings, data=data, places=places)
    print(summary.table())
    print(f"results: {out}")
    return replay_status(summary) if policy == "replay" else 0


def _run_list(
    cells: ProtocolList,
    settings: EvaluateSettings,
    run: Location | None,
    policy: str | None,
    out: Path | None,
    data: Location | None,
    places: Places,
) -> int:
    """Evaluates a list of protocols and prints its table; returns the exit status.

    Raises:
        UserError: the actor acts on one protocol only, or see :func:`wmjax.pipeline.evaluate_list.evaluate_list`.

    """
    if run is not None:
        found = find_policy(run)
        root = out or found.evaluations
        who = {**identity(found.folder), "batch_size": settings.batch}
        evaluate_cell = functools.partial(
            evaluate_checkpoint, found.folder, settings=settings, data=data, places=places
        )
    else:
        assert policy is not None
        if is_served(policy) or policy == "replay":
            raise UserError(
                f"--protocol {cells.name} is a list, which runs a --run or a scripted actor, not {policy}; name one of "
                f"its protocols, such as {cells.cells[0].protocol.name}"
            )
        root, who = out or Path("runs") / policy, {"actor": policy}
        evaluate_cell = functools.partial(evaluate_scripted, policy, settings=settings, data=data)
    table = evaluate_list(cells, root, who, evaluate_cell)
    print(table.text())
    print(f"results: {root / cells.label}.txt, .md and .json")
    return 0
