"""The limits of an evaluation's verdict, as sentences of the report."""

from collections.abc import Iterator, Mapping
from typing import Any

from wmjax.analysis.summary import TaskSummary
from wmjax.core.errors import UserError
from wmjax.core.specs import PUBLISHED
from wmjax.rollout.protocol import Protocol, load_protocol, protocol_names
from wmjax.sim.environment import ENVIRONMENTS

SCRIPTED = {
    "expert": "The scripted expert sees the simulator's state: a ceiling for what can be expected, not a policy.",
    "noop": "Nothing acted: the floor, what a robot that holds still scores.",
    "random": "Random actions: the floor.",
    "replay": "Recorded actions were replayed from recorded states: a check of the simulator, not a policy.",
}

REGIMES = ("execution_delay", "target_velocity", "camera_dropout")
"""Protocol settings that the benchmark does not have; 0 is off."""


def caveats(
    header: Mapping[str, Any], overall: TaskSummary, finished: Mapping[str, Any], recorded_runs: int
) -> list[str]:
    """The caveats that a reader must know before quoting the success rate.

    Args:
        header: of the evaluation.
        overall: outcome counts of all tasks together.
        finished: ``summary.json``, empty if there is none.
        recorded_runs: how often this recipe was run on the benchmark, as far as is on record.

    """
    settings = header.get("protocol")
    settings = settings if isinstance(settings, Mapping) else {}
    return [
        *_about_episodes(settings, overall, finished, recorded_runs),
        *_about_tasks(header.get("training"), settings),
        *_about_faults(overall),
        *_about_actor(header),
        *_about_memory(settings),
        *_about_sentence(settings),
        *_about_timing(header.get("timing"), settings),
        *_about_simulator(header.get("observation")),
        *_about_commit(finished),
    ]


def _about_episodes(
    settings: Mapping[str, Any], overall: TaskSummary, finished: Mapping[str, Any], recorded_runs: int
) -> Iterator[str]:
    total = overall.finished + overall.timeouts + overall.crashes
    names, each = settings.get("tasks") or (), settings.get("episodes_per_task") or 0
    if not finished:
        wanted = f" of {len(names) * each}" if names and each else ""
        yield f"Interrupted after {total}{wanted} episodes; the first to end are not a fair sample of all of them."
    elif finished.get("overall", {}).get("successes") != overall.successes:
        yield "summary.json and episodes.jsonl disagree; this report counts the episodes."
    if settings.get("init") == "random":
        yield "Random resets are for development; do not set this rate beside published benchmark numbers."
    if settings.get("init") == "benchmark":
        known, states = _benchmark(settings)
        if len(names) < known or each < states:
            yield (
                f"Part of the benchmark: {len(names)} of {known} tasks, {each} of {states} initial states; "
                "do not set this rate beside published numbers."
            )
        limit, published = settings.get("max_steps"), _published_limit(str(settings.get("suite")))
        if published and limit != published:
            yield f"Not the published benchmark: a step limit of {limit}, not {published}."
        changed = [name.replace("_", " ") for name in REGIMES if settings.get(name)]
        if changed:
            yield f"Harder than the published benchmark: {', '.join(changed)}."
        if recorded_runs > 1:
            yield f"This recipe ran the benchmark {recorded_runs} times; all runs are on record, quote them all."


def _benchmark(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Tasks of the suite and initial states of each task; 0 if the environment is not installed."""
    try:
        environment = ENVIRONMENTS.resolve(str(settings.get("env", "libero")))
    except UserError:
        return 0, 0
    return environment.suites.get(str(settings.get("suite")), 0), environment.initial_states


def _published_limit(suite: str) -> int | None:
    """Control steps that the benchmark gives an episode of a suite."""
    return load_protocol(suite).max_steps if suite in protocol_names() else None


def _about_tasks(training: Any, settings: Mapping[str, Any]) -> Iterator[str]:
    """A caveat about tasks that the policy was not trained on, as far as is known."""
    trained = (training.get("tasks") or ()) if isinstance(training, Mapping) else ()
    if not trained or "suite" not in training or not settings.get("tasks"):
        return
    # LIBERO-PRO's suites have the tasks of the suite whose name they begin with.
    known = trained if str(settings.get("suite")).startswith(str(training["suite"])) else ()
    new = [task for task in settings["tasks"] if task not in known]
    if new:
        yield (
            f"Not trained on {len(new)} of {len(settings['tasks'])} tasks ({', '.join(map(str, new))}): "
            f"trained on {', '.join(map(str, trained))} of {training['suite']}."
        )


def _about_faults(overall: TaskSummary) -> Iterator[str]:
    faults = overall.timeouts + overall.crashes
    if faults:
        worst = 100 * overall.successes / (overall.finished + faults)
        yield (
            f"{faults} episodes timed out or crashed in every attempt and are left out of the rate; "
            f"counted as failures, it would be {worst:.1f} %."
        )


def _about_actor(header: Mapping[str, Any]) -> Iterator[str]:
    actor = str(header.get("actor", ""))
    if actor in SCRIPTED:
        yield SCRIPTED[actor]
    elif "experiment" in header:
        yield "One training seed: the interval covers the choice of episodes, not of seeds."


def _about_memory(settings: Mapping[str, Any]) -> Iterator[str]:
    oracle = settings.get("oracle")
    if oracle is not None and oracle < 1:
        yield "The memory held the simulator's future: an upper bound for predictions, not a policy's success."
    corruption = settings.get("corruption", "none")
    if corruption != "none":
        yield f"The world memory was replaced ({corruption}): a test of what the policy uses, not its success."


SENTENCES = {"neutral": "a sentence that names no task", "other": "the sentence of another task of the suite"}


def _about_sentence(settings: Mapping[str, Any]) -> Iterator[str]:
    given = SENTENCES.get(str(settings.get("sentence")))
    if given:
        yield f"The instruction was {given}, to test whether the policy follows it. Success is its own task's goal."


def timing(policy: Any, protocol: Protocol) -> dict[str, Any]:
    """The timing of a policy for an evaluation's header, in control steps after an observation.

    ``trained_delay`` is where the policy learned to begin its chunks, ``actions_end`` where the chunks of this protocol
    end, and ``memory_ends`` the last frame that its memory predicts (None without a predicted memory).

    Args:
        policy: a :class:`wmjax.policy.policy.Policy`.
        protocol: of the evaluation.

    """
    experiment, delay = policy.experiment, protocol.execution_delay
    memory, trained = experiment.model.memory, experiment.train.delay
    predicts = memory.inject and memory.input == "latents"
    reaches = experiment.model.prophet.future * policy.observation_spec.frame_stride if predicts else None
    on_time = protocol.realtime != "none" or trained == delay
    ends = (trained if on_time else delay) + policy.action_spec.chunk
    if on_time and (reaches is None or reaches >= ends):
        return {}
    return {"timing": {"trained_delay": trained, "actions_end": ends, "memory_ends": reaches}}


def _about_timing(found: Any, settings: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(found, Mapping):
        return
    trained, delay = found.get("trained_delay"), settings.get("execution_delay")
    if trained != delay and settings.get("realtime", "none") == "none":
        yield (
            f"Trained for a delay of {trained} control steps, evaluated with {delay}: actions are executed at other "
            f"times than they were learned for. train.delay {delay} trains for this protocol."
        )
    ends, reaches = found.get("actions_end"), found.get("memory_ends")
    if isinstance(ends, int) and isinstance(reaches, int) and reaches < ends:
        yield (
            f"The memory predicts {reaches} control steps ahead, but chunks end {ends} steps after their observation "
            "(delay + model.chunk): the last actions are beyond it. Raise model.prophet.future."
        )


def _about_simulator(observation: Any) -> Iterator[str]:
    if isinstance(observation, Mapping) and str(observation.get("simulator", "")).startswith(PUBLISHED):
        yield (
            f"Trained on images {observation['simulator']}, drawn by another version of the simulator than the one "
            "that is installed: they may differ a little from those of the evaluation."
        )


def _about_commit(finished: Mapping[str, Any]) -> Iterator[str]:
    if str(finished.get("commit", "")).endswith("-dirty"):
        yield "The code had uncommitted changes: the commit alone does not reproduce this evaluation."
