"""An evaluation: it runs the episodes, writes the results and the table, and records their provenance."""

import dataclasses
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wmjax.analysis.summary import Summary, summarize
from wmjax.core.files import only_one, owned, write_json
from wmjax.core.provenance import provenance
from wmjax.core.specs import to_dict
from wmjax.reporting.evaluation_page import REPORT, write_report
from wmjax.reporting.video.clips import Videos
from wmjax.reporting.video.nearest_frames import Album
from wmjax.rollout.actors import Actor
from wmjax.rollout.benchmark_log import write_record
from wmjax.rollout.evaluation_shards import gather, merge, part, shard_folder, shard_folders
from wmjax.rollout.protocol import Protocol
from wmjax.rollout.results import EpisodeRecord, Results, read_records, read_summary
from wmjax.rollout.runner import Runner, Watched, video_name
from wmjax.rollout.settings import EvaluateSettings
from wmjax.sim.episode import EpisodeId
from wmjax.sim.rollout_pool import RolloutPool
from wmjax.sim.worker import Watcher, WorkerSettings

log = logging.getLogger("wmjax.rollout")


def evaluate(
    actor: Actor,
    protocol: Protocol,
    out: Path,
    settings: EvaluateSettings,
    header: Mapping[str, Any] | None = None,
    *,
    episodes: Sequence[EpisodeId] | None = None,
    records: Path | None = None,
    album: Album | None = None,
) -> Summary:
    """Runs the remaining episodes of an evaluation and returns the verdict on all of them.

    Args:
        actor: the policy or other actor.
        protocol: what is run.
        out: folder of the results; an interrupted evaluation in it continues where it stopped.
        settings: how it is run; the verdict is on what all shards have finished so far.
        header: what else defines the evaluation, such as ``checkpoint`` and ``recipe_hash``.
        episodes: the episodes, if not the protocol's own (replays run recorded ones).
        records: where a run of the benchmark leaves its record; ``out/results`` when None.
        album: shows in the videos what was imagined in training frames.

    Raises:
        UserError: ``out`` holds another evaluation, or another process is at work there; the actor does not fit the
            protocol, bad input in the simulator.

    """
    out, header = Path(out), _identity(actor, protocol) | dict(header or {})
    results = Results(shard_folder(out, settings.shard), header)
    wanted = protocol.episodes() if episodes is None else list(episodes)
    finished = gather(out, results.header)
    left = [episode for episode in part(wanted, settings.shard) if episode.key not in finished]
    log.info("%s: %d of %d episodes to run, results in %s", protocol.name, len(left), len(wanted), results.folder)
    if left:
        with owned(results.folder, "evaluation", "choose another folder with --out"):
            results = Results(results.folder, header)  # another process may have ended meanwhile
            left = [episode for episode in left if episode.key not in results.finished]
            started = time.monotonic()
            recorder = _videos(actor, protocol, out, settings.videos, album, left)
            runner = run_episodes(actor, protocol, left, results, recorder, settings)
            seconds = time.monotonic() - started
            speed = {"seconds": seconds, "control_steps_per_second": runner.control_steps / seconds}
            _save(results, protocol, speed | ({} if runner.fill is None else {"batch_fill": runner.fill}))
        finished = gather(out, results.header)
    missing = sum(episode.key not in finished for episode in wanted)
    if missing:
        log.info("shard %d/%d is done; %d episodes of other shards are missing", *settings.shard, missing)
    elif finished and (left or set(finished) != _keys(out) or not (out / REPORT).is_file()):
        _conclude(out, results.header, finished, wanted, records or out / "results", protocol)
    return summarize(finished.values())


def _videos(
    actor: Actor, protocol: Protocol, out: Path, count: int, album: Album | None, left: Sequence[EpisodeId]
) -> Videos:
    """The videos of an evaluation, without those of episodes that are still to be run."""
    spec, action_spec = actor.observation_spec, protocol.environment.action_spec
    videos = Videos(out / "videos", count, spec.control_hz / spec.frame_stride, action_spec, album)
    videos.forget((episode.suite, episode.task_id, video_name(episode)) for episode in left)
    return videos


def _identity(actor: Actor, protocol: Protocol) -> dict[str, Any]:
    """The actor, the protocol and the specs, for the header."""
    specs = {"observation": to_dict(actor.observation_spec), "action": to_dict(protocol.environment.action_spec)}
    return {"actor": actor.name, "protocol": dataclasses.asdict(protocol), **specs}


def watch(
    actor: Actor,
    protocol: Protocol,
    episodes: Sequence[EpisodeId],
    watcher: Callable[[Any], Watcher],
    watched: Watched,
    *,
    workers: int = 2,
) -> None:
    """Runs episodes of which only a watcher's readings are stored.

    Args:
        actor: the policy or other actor.
        protocol: what is run.
        episodes: which of it.
        watcher: makes a watcher of each episode's environment, in the worker.
        watched: called with the watcher's readings as soon as an episode ends.
        workers: simulator processes.

    Raises:
        UserError: see :func:`evaluate`.

    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        videos = Videos(folder, 0, actor.observation_spec.control_hz, protocol.environment.action_spec)
        settings = EvaluateSettings(workers=workers, videos=0)
        run_episodes(actor, protocol, episodes, Results(folder, {}), videos, settings, watcher=watcher, watched=watched)


def run_episodes(
    actor: Actor,
    protocol: Protocol,
    episodes: Sequence[EpisodeId],
    results: Results,
    videos: Videos,
    settings: EvaluateSettings,
    *,
    watcher: Callable[[Any], Watcher] | None = None,
    watched: Watched | None = None,
) -> Runner:
    """Runs episodes in simulator processes; returns what ran them, with its counts."""
    spec = actor.observation_spec
    frames = max(protocol.open_loop_horizon // spec.frame_stride + 2, actor.future_frames)
    hosted = WorkerSettings(spec, frames, protocol.env, watcher, settings.render_devices)
    with RolloutPool(hosted, min(settings.workers, max(1, len(episodes))), settings.timeout) as pool:
        recipe = str(results.header.get("recipe_hash", ""))
        runner = Runner(pool, actor, protocol, results, videos, settings, recipe, watched)
        runner.run(episodes)
    return runner


def _keys(out: Path) -> set[str]:
    return {record.key for record in read_records(out)}


def _conclude(
    out: Path,
    header: Mapping[str, Any],
    finished: Mapping[str, EpisodeRecord],
    wanted: Sequence[EpisodeId],
    records: Path,
    protocol: Protocol,
) -> None:
    """Leaves the table, the benchmark's record and, last, the report of a whole evaluation.

    Killed on the way and called again, it does what is missing. Shards that end at the same moment take turns.
    """
    with only_one(out / ".lock"):
        sharded = (out / "shards").is_dir()
        results = Results(out, header)
        if results.finished != set(finished):
            merge(results, finished, wanted)
        if not _is_current(results):
            _save(results, protocol, _speed_of_shards(out) if sharded else {})
        if protocol.init == "benchmark":
            write_record(records, protocol.name, read_summary(out))
        log.info("report: %s", write_report(out))


def _is_current(results: Results) -> bool:
    """Whether a summary exists and counts all of these episodes."""
    written = read_summary(results.folder)
    counted = json.loads(json.dumps(summarize(results.records).as_dict()))
    return all(written.get(name) == value for name, value in counted.items())


def _speed_of_shards(out: Path) -> dict[str, float]:
    """The numbers of all shards as if they had run side by side; a killed shard has none."""
    written = [read_summary(folder) for folder in (out, *shard_folders(out))]
    parts = [part for part in written if part and "shards" not in part]  # that one is the summary of all
    return {
        "seconds": max((float(part.get("seconds") or 0.0) for part in parts), default=0.0),
        "control_steps_per_second": sum(float(part.get("control_steps_per_second") or 0.0) for part in parts),
        **_mean_fill(parts),
        "shards": len(shard_folders(out)),
    }


def _mean_fill(parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean over the shards that have one of how full their batches were; empty if none has."""
    fills = [float(part["batch_fill"]) for part in parts if part.get("batch_fill") is not None]
    return {"batch_fill": sum(fills) / len(fills)} if fills else {}


def _save(results: Results, protocol: Protocol, speed: Mapping[str, float]) -> None:
    """Writes ``summary.json``; ``speed`` says how long it took and how fast that was, if that is known."""
    content = {
        **provenance(),
        "simulator": protocol.environment.simulator(),
        "header": results.header,
        **{name: round(value, 2) for name, value in speed.items()},
        **summarize(results.records).as_dict(),
    }
    write_json(results.folder / "summary.json", content)
