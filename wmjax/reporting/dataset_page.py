"""Episodes of a training store as one self-contained HTML page: no script, no other file, no network."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from wmjax.core.errors import UserError
from wmjax.core.location import local
from wmjax.core.paths import require_place
from wmjax.core.settings import parse_integer, quoted
from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.data.episode import EpisodeData
from wmjax.data.latents import LatentStore
from wmjax.data.statistics import closing
from wmjax.data.store import TrainingStore
from wmjax.reporting.html import (
    DOT,
    Html,
    definitions,
    element,
    join,
    key,
    labelled,
    legend,
    muted,
    section,
    table,
    video,
    write_document,
)
from wmjax.reporting.timeline import is_perturbed, shared_scale, timeline
from wmjax.reporting.video.latent_colours import Painted, paint

Frames = UInt8[np.ndarray, "frames cameras height width 3"]
VideoEncoder = Callable[[Frames, Sequence[str], float], bytes]
"""Frames, one caption each and frames per second to the bytes of an mp4."""
COLUMNS = ("Episode", "Task", "Instruction", "Steps", "Success at", "Perturbation")


def parse_episodes(text: str) -> list[int]:
    """Reads ``0,5,9``.

    Raises:
        UserError: not whole numbers separated by commas.

    """
    numbers = [parse_integer(part) for part in text.split(",")]
    if None in numbers:
        raise UserError(f"--episodes is {quoted(text)}; give episode numbers separated by commas, such as 0,5,9")
    return [number for number in numbers if number is not None]


def choose_episodes(
    episodes: Sequence[Mapping[str, Any]], wanted: Sequence[int] | None = None, per_task: int = 2
) -> list[int]:
    """Episode numbers to show.

    Args:
        episodes: ``TrainingStore.episodes``.
        wanted: these, in this order, each once.
        per_task: the first so many of each task when ``wanted`` is None.

    Raises:
        UserError: no such episode, or fewer than one per task.

    """
    if wanted is not None:
        for index in wanted:
            if not 0 <= index < len(episodes):
                raise UserError(f"--episodes: there is no episode {index}; the store has 0 to {len(episodes) - 1}")
        return list(dict.fromkeys(wanted))
    if per_task < 1:
        raise UserError(f"--per-task is {per_task}; show at least 1 episode of each task")
    counts: Counter[int] = Counter()
    chosen = []
    for index, entry in enumerate(episodes):
        counts[entry["task"]] += 1
        if counts[entry["task"]] <= per_task:
            chosen.append(index)
    return sorted(chosen, key=lambda index: (episodes[index]["task"], index))


def write_page(
    path: Path,
    store: TrainingStore,
    indices: Sequence[int],
    latents: LatentStore | None = None,
    encode_video: VideoEncoder | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes the page, atomically.

    Args:
        path: the HTML file.
        store: the training store.
        indices: of the episodes, at least one.
        latents: shows them as colours.
        encode_video: adds a video to each episode.
        progress: called with the number of finished episodes, and of all.

    Raises:
        UserError: latents of another store, or the file cannot be written.

    """
    path = local(path)
    require_place(path, "--out", "HTML file")
    if latents is not None:
        latents.check(store)
    episodes = {index: store.episode(index) for index in indices}
    scale = shared_scale(list(episodes.values()), store.spec, store.action_spec)
    painted = paint(latents, store, indices) if latents is not None else None

    def body() -> Iterator[Html]:
        yield _introduction(store, indices, latents, painted)
        for done, (index, episode) in enumerate(episodes.items(), 1):
            colours = painted.of(index) if painted is not None else {}
            figure = timeline(episode, scale, store.spec, store.action_spec, colours)
            yield _episode(store, index, episode, figure, encode_video)
            progress(done, len(episodes))

    write_document(path, f"{store.folder.resolve().name}: episodes", "dataset_page.css", body())


def _introduction(
    store: TrainingStore, indices: Sequence[int], latents: LatentStore | None, painted: Painted | None
) -> Html:
    """Everything before the first episode: the store's name, facts on it, and the list of episodes."""
    spec = store.spec
    facts: dict[str, object] = {
        "Store": f"{store.folder.resolve()}, hash {store.hash}",
        "Content": f"{len(store.episodes)} episodes, {len(store.tasks)} tasks, {len(store.state)} control steps, "
        f"{len(store.frame_step)} frames",
        "Cameras": f"{', '.join(spec.cameras)}, {spec.image_size}x{spec.image_size} pixels",
        "Timing": f"{spec.control_hz:g} control steps per second, a frame every {spec.frame_stride}",
        "Simulator": spec.simulator or "not recorded",
    }
    if latents is not None and painted is not None:
        facts |= _latent_facts(latents, painted)
    heading = element(
        "header",
        element("p", "wmjax", DOT, "episodes of a training store", class_="kicker"),
        element("h1", store.folder.resolve().name),
        element("p", f"{len(indices)} of {len(store.episodes)} episodes", class_="muted"),
    )
    return join([heading, definitions(facts), _contents(store, indices)])


def _latent_facts(latents: LatentStore, painted: Painted) -> dict[str, str]:
    """The latents' origin, and what their colours mean."""
    encoder = latents.spec
    shares = (
        f"{name}: {', '.join(f'{100 * share:.0f}' for share in explained)} %"
        for name, explained in painted.explained.items()
    )
    return {
        "Latents": f"{latents.folder.resolve()}: {encoder.kind} {encoder.name}, {' and '.join(encoder.cameras)}, "
        f"{encoder.tokens_per_frame} tokens of {encoder.dim}, {latents.backend}",
        "Colours": "first three principal components over the episodes shown, as red, green and blue; their shares of "
        f"the variance: {'; '.join(shares)}. The place mean is over all frames at the same place of the grid.",
    }


def _contents(store: TrainingStore, indices: Sequence[int]) -> Html:
    """A table of the episodes shown, each linked to its place on the page."""
    rows = []
    for index in indices:
        entry = store.episodes[index]
        values = (
            _task(entry),
            entry["instruction"],
            entry["length"],
            _known(entry["success_step"]),
            _amplitude(entry["perturbation"]),
        )
        link = element("a", index, href=f"#episode-{index}")
        cells = (labelled(name, value) for name, value in zip(COLUMNS[1:], values, strict=True))
        rows.append([element("th", link, scope="row"), *cells])
    return section("contents", "Episodes", table(COLUMNS, rows, "cards"))


def _episode(
    store: TrainingStore,
    index: int,
    episode: EpisodeData,
    figure: Html,
    encode_video: VideoEncoder | None,
) -> Html:
    """One episode: its video, facts, and figure."""
    entry, spec = store.episodes[index], store.spec
    facts = {
        "Task": _task(entry),
        "Seed": _known(entry["seed"]),
        "Initial state": _known(entry.get("episode") or entry["init"]),
        "Settled hash": entry["settled_hash"] or "not recorded",
        "Perturbation": _perturbation(entry["perturbation"], episode, store.action_spec),
        "First success": _known(entry["success_step"], f"after control step {entry['success_step']}"),
        "Length": f"{episode.length} control steps ({episode.length / spec.control_hz:.1f} s), "
        f"{len(episode.images)} frames",
        "Part": entry["part"],
    }
    clip = _video(store, index, episode, encode_video) if encode_video is not None else None
    return element(
        "article",
        element("h2", f"{index}: {entry['instruction']}"),
        element("div", clip, definitions(facts), class_="head"),
        element("figure", element("div", figure, class_="scroll"), *_caption(episode, spec, store.action_spec)),
        id=f"episode-{index}",
    )


def _caption(episode: EpisodeData, spec: ObservationSpec, action: ActionSpec) -> tuple[Html, Html]:
    """The meaning of the figure's colours, and the units of its curves."""
    keys = {"label": "label: the action to learn"}
    if is_perturbed(episode):
        keys["executed"] = "executed: what the robot did"
    else:
        keys["label"] = "label = executed"
    if action.grippers:
        keys["closed"] = "gripper commanded to close"
    if episode.meta.get("success_step") is not None:
        keys["success"] = "first success"
    known = [unit for unit in dict.fromkeys(spec.state_units) if unit]
    state = f"state: {' and '.join(known)}; " if known else ""
    units = muted(f"actions: {action.definition}; {state}ranges: all episodes shown")
    return legend((key(kind), (text,)) for kind, text in keys.items()), units


def _video(store: TrainingStore, index: int, episode: EpisodeData, encode: VideoEncoder) -> Html:
    """A video of all frames, all cameras side by side, at the speed of simulated time."""
    spec, closes = store.spec, closing(episode.executed, store.action_spec)
    captions = [
        ", gripper ".join(
            [f"step {step} of {episode.length}, {step / spec.control_hz:.1f} s"]
            + ["close" if closed else "open" for closed in closes[step]]
        )
        for step in episode.frame_step.tolist()
    ]
    content = encode(np.asarray(episode.images), captions, spec.control_hz / spec.frame_stride)
    return video(content, f"episode {index}, {', '.join(spec.cameras)}", loop=True)


def _task(entry: Mapping[str, Any]) -> str:
    return f"{entry['suite']} {entry['task_id']}"


def _known(value: Any, text: str | None = None) -> str:
    if value is None:
        return "not recorded"
    return str(value) if text is None else text


def _amplitude(value: float | str | None) -> str:
    """The perturbation in the table: its amplitude, or what else moved the arm, in words."""
    if value is None:
        return "not recorded"
    if isinstance(value, int | float):
        return f"{value:.2f}" if value else "none"
    return str(value).replace("_", " ")


def _perturbation(value: float | str | None, episode: EpisodeData, action: ActionSpec) -> str:
    """The perturbation in words, with what it did to the arm."""
    if not is_perturbed(episode):
        return f"{_amplitude(value)}; executed = label"
    size = float(np.sqrt(np.mean((episode.executed - episode.action)[:, list(action.arm)] ** 2)))
    name = _amplitude(value) + (" of the largest action" if value and not isinstance(value, str) else "")
    return f"{name}; executed - label: RMS {size:.3f} over the arm's dimensions"
