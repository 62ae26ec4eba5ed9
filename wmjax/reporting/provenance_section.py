"""The report's sections on the origin of the results: command, commit, and everything that was recorded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmjax.reporting.html import DOT, Html, element, fold, muted, plain, row, section, table
from wmjax.rollout.results import EpisodeRecord, flatten


def reproduce(finished: Mapping[str, Any]) -> Html:
    """The command and the commit that made the results."""
    if not finished:
        text = "The evaluation was interrupted: it has no summary.json, which holds its command and commit."
        return section("reproduce", "Reproduce", muted(text))
    commit = str(finished.get("commit", "unknown"))
    clean = commit.removesuffix("-dirty")
    checkout = "# commit unknown: wmjax ran as an installed package" if clean == "unknown" else f"git checkout {clean}"
    if clean != commit:
        checkout = f"# the code also had uncommitted changes, which no commit holds\n{checkout}"
    code = element("pre", element("code", f"{checkout}\n{finished.get('command', '# no command recorded')}"))
    seconds, speed = finished.get("seconds"), finished.get("control_steps_per_second")
    took = [] if seconds is None else [f"took {float(seconds) / 60:.1f} min"]
    took += [] if speed is None else [f"{speed} control steps/s"]
    fill = finished.get("batch_fill")
    took += [] if fill is None else [f"{float(fill):.0%} of the batches' rows held a decision"]
    took += [f"in {finished['shards']} shards (run the command for each)"] if "shards" in finished else []
    took += [str(finished["simulator"])] if "simulator" in finished else []
    text = DOT.join([f"Finished at {finished.get('finished_at', 'unknown')}", f"commit {commit}", *took])
    note = "An evaluation resumes in its folder: move the folder away or give another --out to run every episode again."
    return section("reproduce", "Reproduce", code, muted(text), muted(note))


def provenance(
    header: Mapping[str, Any], config: Mapping[str, Any], records: Sequence[EpisodeRecord], folder: Path
) -> Html:
    """Everything that was recorded, in a collapsed block."""
    head = ("Episode", "Outcome", "Steps", "Decisions", "Attempts", "Faults", "Seconds", "Start")
    episodes = [
        row(r.key, r.outcome, r.steps, r.decisions, r.attempts, ", ".join(r.faults), r.seconds, r.settled_hash)
        for r in sorted(records, key=lambda r: (r.suite, r.task_id, r.init, r.index))
    ]
    parts = [
        fold("Header of the evaluation", _settings(header)),
        fold("Configuration of the run", _settings(config)) if config else None,
        fold(f"All {len(records)} episodes", table(head, episodes, "plain dense")),
    ]
    place = muted(f"Results folder: {folder}")
    return section("provenance", "Provenance", place, *parts)


def _settings(values: Mapping[str, Any]) -> Html:
    return table(("Setting", "Value"), [row(name, plain(value)) for name, value in flatten(values)])
