"""Explains why a policy with a low loss does not succeed: the evidence on one page, the likely causes first."""

import dataclasses
import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from wmjax.core.errors import UserError
from wmjax.core.files import atomic_path, write_json
from wmjax.core.location import Location
from wmjax.core.paths import enable_compilation_cache
from wmjax.data.statistics import action_spec, clip_action
from wmjax.data.store import TrainingStore
from wmjax.diagnostics.actions import action_section
from wmjax.diagnostics.conditions import InputSection, input_section
from wmjax.diagnostics.likely_causes import Cause, Evidence, Replay, likely_causes
from wmjax.diagnostics.passes import PLAIN, Network, Outcome, Split, batches, input_conditions, observe
from wmjax.diagnostics.phases import PhaseSection, phase_section, phases_of
from wmjax.diagnostics.samples import ActionWindows, action_windows
from wmjax.diagnostics.section import Section, Skipped, plain
from wmjax.experiment.config import Experiment
from wmjax.models.heads.flow import FlowHead
from wmjax.models.vla import VLA
from wmjax.pipeline.diagnose import load
from wmjax.pipeline.evaluate import evaluate
from wmjax.pipeline.failures import Watched, failed_episodes, text, watch_policy
from wmjax.policy.saved import SETTINGS, SavedPolicy, find_policy
from wmjax.rollout import actors
from wmjax.rollout.protocol import Protocol
from wmjax.rollout.results import read_header, read_records
from wmjax.rollout.settings import EvaluateSettings
from wmjax.sim.episode import EpisodeId
from wmjax.trainer.config import Inputs

log = logging.getLogger("wmjax.why")
BATCH, BATCHES = 32, 16
"""Samples of a batch, and batches of each side of the split at most."""
PAGE = "why.txt"


@dataclasses.dataclass(frozen=True)
class OpenLoop:
    """The policy on recorded observations of the validation side: scores by phase, inputs, and other noise."""

    phases: PhaseSection
    inputs: InputSection
    training: float
    validation: float
    draws: dict[str, float]
    gripper: float | None


def explain(
    run: str,
    *,
    evaluation: Path | None = None,
    tasks: Sequence[int] = (),
    per_task: int = 10,
    data: Location | None = None,
    workers: int = 2,
) -> list[Cause]:
    """Gathers the evidence, prints the page and writes it beside the run; returns the likely causes.

    Args:
        run: a run, one of its checkpoints or a policy.
        evaluation: results of that policy, whose failed episodes are run again; its newest when None.
        tasks: only these; all when empty.
        per_task: failed episodes that are run again of each task, at most.
        data: the run's training store, if it is not in the cache.
        workers: simulator processes.

    Raises:
        UserError: no policy or no evaluation there.

    """
    enable_compilation_cache()
    found = find_policy(run)
    evaluation = evaluation or newest(found)
    if (read_header(evaluation).get("checkpoint") or {}).get("hash") != found.hash:
        log.warning("%s is of another policy; its failed episodes are run with %s", evaluation, run)
    protocol, episodes = failed_episodes(evaluation, tasks)
    records = [r for r in read_records(evaluation) if not tasks or r.task_id in tasks]
    chosen = _first_of_each_task(episodes, per_task)
    out = found.evaluations.parent.parent / "why" / found.evaluations.name
    watched = watch_policy(found.folder, protocol, chosen, out, workers=workers) if chosen else []
    evidence = Evidence(
        run=run,
        recipe=found.experiment.recipe,
        rate=sum(record.success for record in records) / max(len(records), 1),
        failures=Counter(entry.failure.kind for entry in watched if entry.failure),
    )
    sections = [_closed_loop(evaluation, len(records), len(episodes), watched)]
    evidence, recorded = _recorded(found, evidence, data, protocol, workers)
    return _publish(evidence, sections + recorded, out)


def _first_of_each_task(episodes: Sequence[EpisodeId], count: int) -> list[EpisodeId]:
    by_task: dict[int, list[EpisodeId]] = {}
    for episode in episodes:
        by_task.setdefault(episode.task_id, []).append(episode)
    return [episode for mine in by_task.values() for episode in mine[:count]]


def newest(found: SavedPolicy) -> Path:
    """The evaluation of a policy that ended last.

    Raises:
        UserError: there is none.

    """
    paths = sorted(found.evaluations.glob("*/episodes.jsonl"), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise UserError(
            f"{found.evaluations}: no evaluation of this policy; run python -m wmjax.evaluate --run {found.folder} "
            "first, or name one with --evaluation"
        )
    return paths[-1].parent


def _closed_loop(evaluation: Path, episodes: int, failed: int, watched: Sequence[Watched]) -> str:
    title = f"== Closed loop: {episodes - failed} of {episodes} episodes succeed ({evaluation}) =="
    return f"{title}\n{len(watched)} failed episodes were run again:\n{text(watched)}" if watched else title


def _recorded(
    found: SavedPolicy, evidence: Evidence, data: Location | None, protocol: Protocol, workers: int
) -> tuple[Evidence, list[str]]:
    """The evidence that needs the run's demonstrations; without them it stays what it was."""
    if (found.folder / SETTINGS).is_file():
        reason = "a policy's folder has no training run, name the run"
        return evidence, [f"== Recorded observations ==\n{Skipped(reason).table()}"]
    try:
        experiment, model, inputs = load(found.folder, data)
    except UserError as error:
        return evidence, [f"== Recorded observations ==\n{Skipped(str(error)).table()}"]
    opened = open_loop(experiment, model, inputs)
    evidence = dataclasses.replace(
        evidence,
        replay=replay(inputs.store, protocol, workers),
        training=opened.training,
        validation=opened.validation,
        draws=opened.draws,
        unused=tuple(name for name, effect in opened.inputs.effects.items() if _is_unused(name, opened.inputs)),
        gripper=opened.gripper,
        worst_phase=opened.phases.worst,
    )
    return evidence, [_replayed(evidence.replay), *_open_loop_text(opened)]


def _is_unused(name: str, section: InputSection) -> bool:
    return any(f": {name} moves" in alarm for alarm in section.alarms)


def open_loop(experiment: Experiment, model: VLA, inputs: Inputs) -> OpenLoop:
    """Scores the policy on recorded observations, with other inputs, on the training side, and without noise."""
    seed, config = experiment.train.seed, model.config
    input_changes = input_conditions(config, len(inputs.store.tasks))
    outcome = _observe(model, inputs, "val", seed, input_changes)
    windows = action_windows(inputs, outcome.frames)
    chunks = outcome.raw_chunks(inputs)
    acted = clip_action(chunks[PLAIN], windows.spec)
    section = action_section(acted, windows, {})
    draws = {"one draw": section.r2_arm["all"]}
    quiet: VLA = nnx.merge(*nnx.split(model))
    if isinstance(quiet.head, FlowHead):
        quiet.head.config = dataclasses.replace(quiet.head.config, noise_scale=0.0)
        draws["no noise"] = _arm(_observe(quiet, inputs, "val", seed, []), inputs)
    return OpenLoop(
        phases=phase_section(acted, windows, phases_of(inputs.store, outcome.frames)),
        inputs=input_section(chunks, input_changes, windows, outcome),
        training=_arm(_observe(model, inputs, "train", seed, []), inputs),
        validation=section.r2_arm["all"],
        draws=draws,
        gripper=section.gripper["model"][1] if section.gripper else None,
    )


def _observe(model: VLA, inputs: Inputs, split: Split, seed: int, conditions: list[Any]) -> Outcome:
    return observe(Network(model, inputs, seed), batches(inputs, split, BATCHES, BATCH, seed), conditions)


def _arm(outcome: Outcome, inputs: Inputs) -> float:
    """R² of the arm's clipped actions."""
    windows: ActionWindows = action_windows(inputs, outcome.frames)
    chunk = outcome.raw_chunks(inputs)[PLAIN]
    return action_section(clip_action(chunk, windows.spec), windows, {}).r2_arm["all"]


def replay(store: TrainingStore, protocol: Protocol, workers: int, per_task: int = 1) -> Replay | None:
    """Replays recorded episodes and compares the observations; None if the store was not recorded in LIBERO."""
    spec = action_spec(store, np.arange(len(store.episodes)), protocol.open_loop_horizon, "mean_std")
    try:
        actor = actors.Replay(store, spec, watch=True)
        tasks = sorted({task.task_id for task in store.tasks if task.suite == protocol.suite})
        episodes = actor.choose(protocol.suite, tasks, per_task)
        recorded = actor.as_recorded(protocol, episodes)
    except UserError as error:
        log.info("nothing is replayed: %s", error)
        return None
    plainly = dataclasses.replace(
        recorded, execution_delay=0, camera_dropout=0.0, oracle=None, corruption="none", ensemble=0.0
    )
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        evaluate(actor, plainly, out, EvaluateSettings(workers=workers, videos=0), episodes=episodes, records=out)
        records = read_records(out)
    largest = {name: max(r.info.get(f"replay/{name}", 0.0) for r in records) for name in ("pixels", "state")}
    return Replay(len(records), sum(record.success for record in records), **largest)


def _replayed(found: Replay | None) -> str:
    title = "== Replay of demonstrations =="
    if found is None:
        return f"{title}\n{Skipped('the training store has no recordings to replay in this protocol').table()}"
    return (
        f"{title}\n{found.successes} of {found.episodes} succeed; in the recorded states pixels differ by "
        f"{found.pixels:.1f} of 255 and the robot's state by {found.state:.4f} from the recording"
    )


def _open_loop_text(found: OpenLoop) -> list[str]:
    sections: dict[str, Section] = {"Open loop, by phase": found.phases, "Effect of the inputs": found.inputs}
    draws = ", ".join(f"{name} {value:.3f}" for name, value in found.draws.items())
    scores = f"R2 of the arm: training {found.training:.3f}, validation {found.validation:.3f}; {draws}"
    return [f"== {title} ==\n{section.table()}" for title, section in sections.items()] + [scores]


def _publish(evidence: Evidence, sections: Sequence[str], out: Path) -> list[Cause]:
    causes = likely_causes(evidence)
    first = [f"{number}. {cause.text}\n   {cause.command}" for number, cause in enumerate(causes, 1)]
    page = "\n\n".join(["== Likely causes ==", *(first or ["Nothing stands out."]), *sections])
    print(page)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / PAGE) as temporary:
        temporary.write_text(page + "\n", encoding="utf-8")
    write_json(out / "why.json", plain(evidence) | {"causes": plain(causes)})
    print(f"\nwritten: {out / PAGE}")
    return causes
