"""An evaluation's videos inside a page: failures beside successes for each task, up to a total size."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from wmjax.analysis.summary import TaskSummary
from wmjax.core.paths import listed
from wmjax.reporting.html import Html, element, join, video
from wmjax.reporting.video import VIDEO_NAME
from wmjax.rollout.results import EpisodeRecord


@dataclasses.dataclass(frozen=True)
class Clip:
    """One video file."""

    path: Path
    task: str
    episode: str
    outcome: str

    @property
    def embedded_bytes(self) -> int:
        """Its size in base64."""
        return -(-self.path.stat().st_size // 3) * 4


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The clips of an evaluation, and which of them are embedded."""

    clips: tuple[Clip, ...]
    embedded: frozenset[Path]

    @property
    def total_bytes(self) -> int:
        """Size of the embedded clips in base64."""
        return sum(clip.embedded_bytes for clip in self.clips if clip.path in self.embedded)


def find_clips(folder: Path) -> tuple[Clip, ...]:
    """The videos of a folder, in order of their names; other files are ignored."""
    clips = []
    for path in listed(folder, "*.mp4"):
        if match := VIDEO_NAME.fullmatch(path.stem):
            task, episode = f"{match['suite']}/{match['task']}", f"{match['init']}/{match['index']}"
            clips.append(Clip(path, task, episode, match["outcome"]))
    return tuple(clips)


def choose(clips: Sequence[Clip], limit: int) -> Gallery:
    """Chooses clips up to ``limit`` bytes: the first clip of every task and outcome precedes any second one."""
    turns: dict[tuple[str, str], int] = defaultdict(int)
    order: list[tuple[int, Clip]] = []
    for clip in clips:
        order.append((turns[clip.task, clip.outcome], clip))
        turns[clip.task, clip.outcome] += 1
    left, embedded = limit, set()
    for _, clip in sorted(order, key=lambda item: item[0]):
        if clip.embedded_bytes <= left:
            left -= clip.embedded_bytes
            embedded.add(clip.path)
    return Gallery(tuple(clips), frozenset(embedded))


def task_card(task: TaskSummary, gallery: Gallery, records: Mapping[str, EpisodeRecord]) -> Html:
    """A task's successes and failures side by side.

    Args:
        task: the task.
        gallery: all clips.
        records: episodes by key.

    """
    mine = [clip for clip in gallery.clips if clip.task == task.task]
    good = [clip for clip in mine if clip.outcome == "success"]
    bad = [clip for clip in mine if clip.outcome != "success"]
    heading = element("h3", task.instruction or task.task)
    count = element("p", f"{task.task} \N{MIDDLE DOT} {task.successes} of {task.finished} solved", class_="muted")
    columns = (
        _column("Success", good, task.successes, gallery, records),
        _column("Failure", bad, task.failures, gallery, records),
    )
    return element("article", heading, count, element("div", *columns, class_="pair"), class_="card task")


def _column(
    title: str, clips: Sequence[Clip], episodes: int, gallery: Gallery, records: Mapping[str, EpisodeRecord]
) -> Html:
    if clips:
        body = join(_figure(clip, clip.path in gallery.embedded, records) for clip in clips)
    else:
        text = "No video was kept." if episodes else f"No {title.lower()}."
        body = element("p", text, class_="muted empty")
    return element("div", element("h4", title, class_=title.lower()), body)


def _figure(clip: Clip, embedded: bool, records: Mapping[str, EpisodeRecord]) -> Html:
    record = records.get(f"{clip.task}/{clip.episode}")
    kind = "" if clip.outcome in ("success", "failure") else f"{clip.outcome} (not the policy's) \N{MIDDLE DOT} "
    steps = "" if record is None else f" \N{MIDDLE DOT} {record.steps} steps"
    caption = element("figcaption", f"{kind}{clip.episode}{steps}")
    if not embedded:
        note = f"Not embedded (size limit): videos/{clip.path.name}"
        return element("figure", element("p", note, class_="muted empty"), caption)
    label = f"{clip.task}/{clip.episode}: {clip.outcome}"
    return element("figure", video(clip.path.read_bytes(), label, preload="metadata"), caption)
