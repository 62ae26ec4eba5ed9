"""The sections of an evaluation's report, from results to markup."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wmjax.analysis.summary import Summary, TaskSummary
from wmjax.reporting.caveats import caveats
from wmjax.reporting.charts import interval_bar, stacked_bar
from wmjax.reporting.curves import Metrics, curves
from wmjax.reporting.gallery import Gallery, task_card
from wmjax.reporting.html import (
    DASH,
    DOT,
    Html,
    definitions,
    element,
    join,
    key,
    labelled,
    legend,
    muted,
    percent,
    plain,
    row,
    section,
    table,
)
from wmjax.reporting.video.decision_strip import measured_by
from wmjax.rollout.results import EpisodeRecord, actor_label, flatten

TRAINING = {
    "train.steps": "Steps",
    "train.batch_size": "batch size",
    "optimizer.learning_rate": "learning rate",
    "train.seed": "training seed",
}
TASK_COLUMNS = (
    *("Task", "Solved", "Rate", "95 % interval", "0 to 100 %"),
    *("Policy failures", "Time-outs", "Crashes", "Mean steps"),
)
STARTS = {"benchmark": "the benchmark's initial states", "random": "random resets"}
LABELS = {
    "max_steps": ("Step limit", " control steps"),
    "open_loop_horizon": ("Open-loop horizon", " control steps"),
    "execution_delay": ("Execution delay", " control steps"),
    "realtime": ("Real-time execution", ""),
    "ensemble": ("Temporal ensemble", " decay per control step"),
    "target_velocity": ("Drifting target", " m/s"),
    "camera_dropout": ("Camera dropout", " probability"),
    "oracle": ("Oracle bracket", " of the memory is the prediction, the rest the true future"),
    "corruption": ("World memory replaced by", ""),
    "seed": ("Noise seed", ""),
}
"""Protocol settings in words, and their units."""
OFF_AT_ZERO = frozenset(("ensemble", "target_velocity", "camera_dropout"))
WORDED_ELSEWHERE = frozenset(
    (
        *("name", "suite", "init", "tasks", "episodes_per_task", "first_index"),
        *("format_version", "actor", "recipe_hash", "batch_size"),
    )
)
"""Header fields that the verdict phrases itself, or leaves to the provenance."""


def headline(summary: Summary) -> str:
    """The verdict in one line of text."""
    overall = summary.overall
    if not overall.finished:
        return "no episode finished"
    low, high = overall.interval
    return f"{percent(overall.rate)} success ({percent(low)} to {percent(high)})"


def title(header: Mapping[str, Any], finished: bool) -> Html:
    """The title: the actor and the protocol."""
    settings = _protocol(header)
    init = settings.get("init", "unknown")
    tags = [
        element("span", "Benchmark" if init == "benchmark" else f"{init} resets".capitalize(), class_=f"tag {init}"),
        element("span", f"protocol {settings.get('name', 'unknown')}", class_="tag"),
        None if finished else element("span", "Interrupted", class_="tag warning"),
    ]
    return element(
        "header",
        element("p", "wmjax", DOT, "closed-loop evaluation", class_="kicker"),
        element("h1", actor_label(header)),
        element("p", *tags, class_="tags"),
    )


def verdict(header: Mapping[str, Any], summary: Summary, finished: Mapping[str, Any], recorded_runs: int) -> Html:
    """Success with its interval, other outcomes, the actor and the protocol, and the limits of the verdict."""
    overall = summary.overall
    low, high = overall.interval
    rate = percent(overall.rate) if overall.finished else "no episode finished"
    score = (
        element("p", element("span", rate, class_="rate"), " success rate" if overall.finished else "", class_="score"),
        interval_bar(overall.rate if overall.finished else None, overall.interval),
        element("p", f"{percent(low)} to {percent(high)}", class_="interval-text"),
        muted("95 % interval (Wilson)"),
        muted(f"{overall.successes} of {overall.finished} finished episodes solved"),
    )
    notes = caveats(header, overall, finished, recorded_runs)
    listed = element("ul", *(element("li", note) for note in notes), class_="notes") if notes else None
    top = element(
        "div", element("div", *score, class_="scorebox"), element("div", _outcomes(overall), _facts(header, summary)),
        class_="verdict",
    )  # fmt: skip
    return section("verdict", "Verdict", top, listed)


def tasks(summary: Summary) -> Html:
    """The per-task table."""
    body = [element("tr", *_task_cells(task)) for task in summary.tasks]
    foot = element("tfoot", element("tr", *_task_cells(summary.overall))) if len(summary.tasks) > 1 else None
    wide = element(
        "table",
        element("thead", element("tr", *(element("th", name, scope="col") for name in TASK_COLUMNS))),
        element("tbody", *body), foot, class_="cards",
    )  # fmt: skip
    note = (
        "Rates and intervals are over episodes that ended in a success or in a policy failure (the step limit). "
        "Time-outs (a worker hung) and crashes (a worker died) in every attempt say nothing about the policy."
    )
    return section("tasks", "Tasks", wide, muted(note), *_goals(summary))


def _goals(summary: Summary) -> list[Html]:
    """The table of goals, where the scene has those of several tasks."""
    if summary.goals is None:
        return []
    head, *lines = summary.goals.cells()
    note = "Task whose goal was reached first, by the policy's instruction; episodes are counted."
    return [element("h3", "Goals reached"), table(head, [row(*line) for line in lines]), muted(note)]


def videos(summary: Summary, gallery: Gallery, records: Mapping[str, EpisodeRecord], limit: int) -> Html:
    """Every task with its videos."""
    embedded, total = len(gallery.embedded), len(gallery.clips)
    if not total:
        note = "No videos were kept. Evaluate with --videos 2 to keep two successes and two failures of each task."
    elif embedded == total:
        note = f"The first successes and failures of each task, {total} videos, {gallery.total_bytes / 1e6:.1f} MB."
    else:
        note = (
            f"Size limit reached: {embedded} of {total} videos are embedded ({limit / 1e6:.0f} MB at most); the others "
            "are in the evaluation's videos folder."
        )
    cards = element("div", *(task_card(task, gallery, records) for task in summary.tasks), class_="grid wide")
    return section("videos", "Videos of episodes", muted(note), cards if total else None)


def training(metrics: Metrics | None, config: Mapping[str, Any], header: Mapping[str, Any]) -> Html | None:
    """Training curves; nothing for an actor without a run."""
    if metrics is None:
        return None
    checkpoint = header.get("checkpoint")
    step = checkpoint.get("step") if isinstance(checkpoint, Mapping) else None
    figures, missing = curves(metrics, step)
    settings = dict(flatten(config))
    known = [f"{label} {settings[name]}" for name, label in TRAINING.items() if name in settings]
    notes = [f"{DOT.join(known)}."] if known else []
    if figures and step is not None:
        notes.append(f"The vertical line marks the evaluated checkpoint, step {step}.")
    if not figures:
        notes.append("The run has no metrics.jsonl, so there is nothing to draw.")
    elif missing:
        notes.append(f"Not measured by this run: {', '.join(missing)}.")
    if metrics.damaged:
        notes.append(f"Unreadable lines of metrics.jsonl, left out: {metrics.damaged}.")
    return section("training", "Training", muted(" ".join(notes)), element("div", *figures, class_="grid"))


def closed_loop(records: Sequence[EpisodeRecord]) -> Html | None:
    """The numbers that the policy, or a metric, reported of successes and of failures; None if there are none."""
    groups = [[r.info for r in records if r.outcome == outcome] for outcome in ("success", "failure")]
    found = [_means(infos) for infos in groups]
    names = sorted({name for means in found for name in means})
    if not names:
        return None
    rows = [
        (
            element("th", name, scope="row"),
            *(element("td", _number(means.get(name)), class_="number") for means in found),
        )
        for name in names
    ]
    note = (
        "Means over decisions, then over episodes, as the policy or a metric reported them. A skill is 1 - the mean "
        "error of the prediction / the mean error of a copy of the present latent: 0 is what copying scores."
    )
    columns = ("Number", "Mean in successes", "Mean in failures")
    return section("closed-loop", "While acting", table(columns, rows), muted(note))


def _outcomes(overall: TaskSummary) -> Html:
    counts = {"success": overall.successes, "failure": overall.failures}
    faults = {"timeout": overall.timeouts, "crash": overall.crashes}
    names = {"success": "successes", "failure": "policy failures", "timeout": "time-outs", "crash": "crashes"}
    every = counts | faults
    entries = ((key(kind), (element("b", count), f" {names[kind]}")) for kind, count in every.items())
    return join((stacked_bar(every), legend(entries)))


def _facts(header: Mapping[str, Any], summary: Summary) -> Html:
    settings, overall = _protocol(header), summary.overall
    total = overall.finished + overall.timeouts + overall.crashes
    init = settings.get("init", "unknown")
    facts = {
        "Who acted": _who(header),
        "Protocol": DOT.join(str(settings[name]) for name in ("name", "suite") if name in settings) or "unknown",
        "Starts": STARTS.get(str(init), str(init)),
        "Episodes": f"{total} on {len(summary.tasks)} task{'s' if len(summary.tasks) > 1 else ''}",
    }
    for name, value in {**header, **settings}.items():
        off = value in (None, "none") or (name in OFF_AT_ZERO and not value)
        if name not in WORDED_ELSEWHERE and not off and not isinstance(value, Mapping):
            label, unit = LABELS.get(name, (name.replace("_", " ").capitalize(), ""))
            facts[label] = f"{plain(value)}{unit}"
    return definitions(facts)


def _who(header: Mapping[str, Any]) -> str:
    experiment, checkpoint = header.get("experiment"), header.get("checkpoint")
    if not isinstance(experiment, Mapping):
        return f"{header.get('actor', 'unknown')} (scripted)" if header.get("actor") != "policy" else "policy"
    parts = [f"policy {experiment.get('recipe')}"]
    parts += [f"{name} {experiment[name]}" for name in ("scale", "dataset", "seed") if name in experiment]
    if isinstance(checkpoint, Mapping):
        parts.append(f"checkpoint at step {checkpoint.get('step')}")
    return ", ".join(parts)


def _task_cells(task: TaskSummary) -> list[Html]:
    low, high = task.interval
    overall = task.task == "all"
    name = "All tasks" if overall else task.instruction or "(never reset)"
    sub = None if overall else element("small", task.task)
    fault = {True: "number warning", False: "number"}
    return [
        element("th", name, sub, scope="row"),
        labelled("Solved", f"{task.successes}/{task.finished}"),
        labelled("Rate", percent(task.rate) if task.finished else DASH),
        labelled("95 % interval", f"{percent(low)} to {percent(high)}"),
        element("td", interval_bar(task.rate if task.finished else None, task.interval), class_="plot"),
        labelled("Policy failures", task.failures),
        labelled("Time-outs", task.timeouts, fault[task.timeouts > 0]),
        labelled("Crashes", task.crashes, fault[task.crashes > 0]),
        labelled("Mean steps", f"{task.mean_steps:.0f}" if task.finished else DASH),
    ]


def _protocol(header: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = header.get("protocol")
    return settings if isinstance(settings, Mapping) else {}


def _means(infos: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each number over the episodes that have it, and the skills that follow from errors.

    A ratio of means: where nothing moves, a copy of the present is off by next to nothing.
    """
    names = {name for info in infos for name in info}
    means = {name: float(np.mean([info[name] for info in infos if name in info])) for name in names}
    for name in names:
        if (error := measured_by(name)) in means and means[name] > 0.0:
            means[error.replace("/error", "/skill")] = 1.0 - means[error] / means[name]
    return means


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"
