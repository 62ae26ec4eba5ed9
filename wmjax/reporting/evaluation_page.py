"""A self-contained ``report.html`` of one evaluation: verdict, tasks, videos, curves, controls, provenance."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wmjax.analysis.comparison import Comparison, compare
from wmjax.analysis.summary import Summary, summarize
from wmjax.core.errors import UserError
from wmjax.core.paths import records_folder
from wmjax.core.reading import read_json
from wmjax.reporting import sections
from wmjax.reporting.controls import controls
from wmjax.reporting.curves import Metrics, read_metrics
from wmjax.reporting.gallery import choose, find_clips
from wmjax.reporting.html import Html, write_document
from wmjax.reporting.provenance_section import provenance, reproduce
from wmjax.rollout.benchmark_log import count_records
from wmjax.rollout.results import EpisodeRecord, actor_label, read_header, read_records, read_summary

REPORT = "report.html"
"""The last file that a complete evaluation writes."""
VIDEO_LIMIT = 20_000_000
"""Bytes of video, as embedded, that a report may hold."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The contents of an evaluation's folder.

    Attributes:
        folder: of the results.
        header: what defines the evaluation.
        records: its finished episodes.
        summary: counted from the records.
        finished: ``summary.json``, which only a finished evaluation has; else empty.
        run: folder of the run that contains it, if any.
        recorded_runs: how often this recipe was run on the benchmark, as far as is on record.

    """

    folder: Path
    header: dict[str, Any]
    records: list[EpisodeRecord]
    summary: Summary
    finished: dict[str, Any]
    run: Path | None
    recorded_runs: int


def write_report(evaluation: Path, out: Path | None = None, compare_with: Sequence[Path] = ()) -> Path:
    """Writes the report of an evaluation and returns its path.

    Args:
        evaluation: folder of the results.
        out: the HTML file; default ``report.html`` in the folder.
        compare_with: folders of other evaluations of the same episodes, compared in pairs with this one.

    Raises:
        UserError: no or a damaged evaluation, no episodes yet, evaluations that cannot be compared, ``out`` cannot
            be written.

    """
    evaluation = Path(evaluation)
    out = Path(out) if out is not None else evaluation / REPORT
    loaded = load_evaluation(evaluation)
    title = f"{actor_label(loaded.header)}: {sections.headline(loaded.summary)}"
    body = report_sections(loaded, [Path(other) for other in compare_with])
    write_document(out, title, "evaluation_page.css", body)
    return out


def load_evaluation(folder: Path) -> Evaluation:
    """Reads an evaluation's folder.

    Raises:
        UserError: no or a damaged evaluation, or no episode in it.

    """
    _require_evaluation(folder)
    header, records = read_header(folder), read_records(folder)
    if not records:
        raise UserError(f"{folder}: the evaluation has no finished episode yet; run it first")
    recorded = max(count_records(place, header) for place in (folder / "results", records_folder()))
    return Evaluation(folder, header, records, summarize(records), read_summary(folder), find_run(folder), recorded)


def find_run(folder: Path) -> Path | None:
    """The run of an evaluation at ``RUN/evaluations/STEP/PROTOCOL``."""
    parents = folder.resolve().parents
    inside = len(parents) > 2 and parents[1].name == "evaluations"
    return parents[2] if inside and (parents[2] / "config.json").is_file() else None


def report_sections(evaluation: Evaluation, compare_with: Sequence[Path] = ()) -> list[Html | None]:
    """The report's sections in order; None replaces one for which this evaluation has no content.

    Raises:
        UserError: an evaluation of ``compare_with`` cannot be compared with this one.

    """
    header, records = evaluation.header, evaluation.records
    config = _read_settings(evaluation.run / "config.json") if evaluation.run else {}
    gallery = choose(find_clips(evaluation.folder / "videos"), VIDEO_LIMIT)
    by_key = {record.key: record for record in records}
    comparisons = [_compare(other, evaluation.folder) for other in compare_with]
    return [
        sections.title(header, bool(evaluation.finished)),
        sections.verdict(header, evaluation.summary, evaluation.finished, evaluation.recorded_runs),
        sections.tasks(evaluation.summary),
        sections.videos(evaluation.summary, gallery, by_key, VIDEO_LIMIT),
        sections.training(_metrics(evaluation), config, header),
        sections.closed_loop(records),
        controls(comparisons, evaluation.folder),
        reproduce(evaluation.finished),
        provenance(header, config, records, evaluation.folder),
    ]


def _compare(other: Path, folder: Path) -> tuple[Path, dict[str, Any], Comparison]:
    if other.resolve() == folder.resolve():
        raise UserError(f"--compare {other} is the evaluation itself; name another one")
    _require_evaluation(other)
    return other, read_header(other), compare(other, folder)


def _metrics(evaluation: Evaluation) -> Metrics | None:
    if evaluation.run is None:
        return None
    action = evaluation.header.get("action")
    names = tuple(action.get("names", ())) if isinstance(action, dict) else ()
    return dataclasses.replace(read_metrics(evaluation.run / "metrics.jsonl"), names=names)


def _require_evaluation(folder: Path) -> None:
    """Refuses a folder that is not an evaluation, and names those below a run's folder."""
    if (folder / "header.json").is_file():
        return
    below = sorted(path.parent for path in folder.glob("evaluations/*/*/header.json"))
    hint = f"did you mean {' or '.join(map(str, below[-3:]))}?" if below else "name an evaluation's folder"
    raise UserError(f"{folder}: no evaluation there (header.json is missing); {hint}")


def _read_settings(path: Path) -> dict[str, Any]:
    """A run's settings; empty if the file is missing."""
    return read_json(path, dict[str, Any], "delete it, the report does without") if path.exists() else {}
