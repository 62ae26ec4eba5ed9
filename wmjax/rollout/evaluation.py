"""An evaluation from start to verdict: episodes, results on disk, table, provenance."""

import dataclasses
import datetime
import json
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmjax.data.files import write_json
from wmjax.rollout.actors import Actor
from wmjax.rollout.protocol import Protocol
from wmjax.rollout.report import write_report
from wmjax.rollout.results import Results, Summary, summarize
from wmjax.rollout.runner import Runner
from wmjax.rollout.videos import Videos
from wmjax.sim.episode import EpisodeId
from wmjax.sim.pool import Pool
from wmjax.sim.worker import WorkerSettings
from wmjax.specs import to_dict

log = logging.getLogger("wmjax.rollout")


def evaluate(
    actor: Actor,
    protocol: Protocol,
    out: Path,
    workers: int = 2,
    videos: int = 0,
    header: Mapping[str, Any] | None = None,
    *,
    episodes: Sequence[EpisodeId] | None = None,
    records: Path | None = None,
    env_factory: str = "wmjax.sim.env:LiberoEnv",
    timeout: float = 120.0,
) -> Summary:
    """Runs what is left of an evaluation and returns the verdict on all of it.

    Args:
        actor: who acts.
        protocol: what is run.
        out: folder of the results; an interrupted evaluation in it goes on where it stopped.
        workers: simulator processes.
        videos: successes and failures per task to keep as videos.
        header: what else defines the evaluation, such as ``checkpoint`` and ``recipe_hash``.
        episodes: the episodes, if not the protocol's own (replays run recorded ones).
        records: where a run of the benchmark leaves its record; ``out/results`` when None.
        env_factory: ``"module:attribute"`` of the environment.
        timeout: seconds after which a worker's command counts as hung (a new worker's first has longer).

    Raises:
        UserError: ``out`` holds another evaluation, the actor does not fit the protocol, bad input in the simulator.

    """
    out, header = Path(out), dict(header or {})
    spec = actor.observation_spec
    everything = {"actor": actor.name, "protocol": dataclasses.asdict(protocol), "observation": to_dict(spec), **header}
    results = Results(out, everything)
    wanted = protocol.episodes() if episodes is None else list(episodes)
    left = [episode for episode in wanted if episode.key not in results.finished]
    log.info("%s: %d of %d episodes to run, results in %s", protocol.name, len(left), len(wanted), out)
    if left:
        started = time.monotonic()
        keep = Videos(out / "videos", videos, spec.control_hz / spec.frame_stride)
        frames = protocol.open_loop_horizon // spec.frame_stride + 2
        settings = WorkerSettings(spec, frames, env_factory)
        with Pool(settings, min(workers, len(left)), timeout) as pool:
            runner = Runner(pool, actor, protocol, results, keep, str(header.get("recipe_hash", "")))
            runner.run(left)
        content = _save(results, time.monotonic() - started, runner.control_steps)
        if protocol.init == "benchmark":
            keep_record(records or out / "results", protocol.name, content)
        log.info("report: %s", write_report(out))
    return summarize(results.records)


def _save(results: Results, seconds: float, control_steps: int) -> dict[str, Any]:
    """Writes ``summary.json`` and returns its content."""
    summary = summarize(results.records)
    content = {
        **provenance(),
        "header": results.header,
        "seconds": round(seconds, 1),
        "control_steps_per_second": round(control_steps / seconds, 2),
        **summary.as_dict(),
    }
    write_json(results.folder / "summary.json", content)
    return content


def keep_record(folder: Path, protocol: str, content: Mapping[str, Any]) -> Path:
    """Adds a benchmark run to an append-only log: one numbered file each, none is ever overwritten.

    A recipe that has a record already is run again at one's own risk of selecting on the benchmark: that is logged.
    """
    recipe = content["header"].get("recipe_hash", "")
    folder.mkdir(parents=True, exist_ok=True)
    earlier = sorted(folder.glob(f"{protocol}-*.json"))
    same = [path.name for path in earlier if json.loads(path.read_text())["header"].get("recipe_hash", "") == recipe]
    if recipe and same:
        log.warning("recipe %s ran %s before (%s); report all of these runs", recipe, protocol, ", ".join(same))
    path = folder / f"{protocol}-{len(earlier):03d}.json"
    with path.open("x") as file:
        file.write(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def provenance() -> dict[str, str]:
    """The command, the commit it ran at (``-dirty`` with uncommitted changes) and the time."""
    return {
        "command": shlex.join(["python", "-m", "wmjax." + Path(sys.argv[0]).stem, *sys.argv[1:]]),
        "commit": _commit(),
        "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str:
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():  # an installed package, perhaps inside a stranger's repository
        return "unknown"
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
