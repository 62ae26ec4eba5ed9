"""Episodes of a training store as one self-contained HTML page: no script, no other file, no network."""

import html
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from wmjax.core.errors import UserError
from wmjax.core.files import atomic_path
from wmjax.core.location import local
from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.data.episode import EpisodeData
from wmjax.data.latents import LatentStore
from wmjax.data.statistics import closing
from wmjax.data.store import TrainingStore
from wmjax.reporting.timeline import data_uri, is_perturbed, shared_scale, timeline
from wmjax.reporting.video.latent_colours import Painted, paint

Frames = UInt8[np.ndarray, "frames cameras height width 3"]
VideoEncoder = Callable[[Frames, Sequence[str], float], bytes]
"""Frames, one caption each and frames per second to the bytes of an mp4."""
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
"""Content security policy: the browser itself refuses scripts and anything from elsewhere."""


def parse_episodes(text: str) -> list[int]:
    """Reads ``0,5,9``.

    Raises:
        UserError: not whole numbers separated by commas.

    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"--episodes is {text!r}; give episode numbers separated by commas, such as 0,5,9")
    return [int(part) for part in parts]


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
    seen: Counter[int] = Counter()
    chosen = []
    for index, entry in enumerate(episodes):
        seen[entry["task"]] += 1
        if seen[entry["task"]] <= per_task:
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
    if path.is_dir():
        raise UserError(f"--out {path}: a folder; name a file such as {path / 'view.html'}")
    if blocked := next((parent for parent in path.absolute().parents if parent.is_file()), None):
        raise UserError(f"--out {path}: {blocked} is a file, not a folder; choose another place")
    if latents is not None:
        latents.check(store)
    episodes = {index: store.episode(index) for index in indices}
    scale = shared_scale(list(episodes.values()), store.spec, store.action_spec)
    painted = paint(latents, store, indices) if latents is not None else None
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(_top(store, indices, latents, painted))
        for done, (index, episode) in enumerate(episodes.items(), 1):
            figure = timeline(
                episode, scale, store.spec, store.action_spec, painted.of(index) if painted is not None else {}
            )
            file.write(_article(store, index, episode, figure, encode_video))
            progress(done, len(episodes))
        file.write("</body></html>\n")


def _top(store: TrainingStore, indices: Sequence[int], latents: LatentStore | None, painted: Painted | None) -> str:
    """Everything before the first episode."""
    name, spec = html.escape(store.folder.resolve().name), store.spec
    css = (resources.files("wmjax.reporting") / "dataset_page.css").read_text(encoding="utf-8")
    facts: dict[str, Any] = {
        "store": f"{store.folder.resolve()}, hash {store.hash}",
        "content": f"{len(store.episodes)} episodes, {len(store.tasks)} tasks, {len(store.state)} control steps, "
        f"{len(store.frame_step)} frames",
        "cameras": f"{', '.join(spec.cameras)}, {spec.image_size}x{spec.image_size} pixels",
        "timing": f"{spec.control_hz:g} control steps per second, a frame every {spec.frame_stride}",
        "simulator": spec.simulator or "not recorded",
    }
    if latents is not None and painted is not None:
        encoder = latents.spec
        facts["latents"] = (
            f"{latents.folder.resolve()}: {encoder.kind} {encoder.name}, {' and '.join(encoder.cameras)}, "
            f"{encoder.tokens_per_frame} tokens of {encoder.dim}, {latents.backend}"
        )
        shares = (
            f"{name}: {', '.join(f'{100 * share:.0f}' for share in explained)} %"
            for name, explained in painted.explained.items()
        )
        facts["colours"] = (
            f"first three principal components over the episodes shown, as red, green and blue; their shares of the "
            f"variance: {'; '.join(shares)}. The place mean is over all frames at the same place of the grid."
        )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}: episodes</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>\n{css}</style></head><body>'
        f'<h1>{name}</h1><p class="lead">{len(indices)} of {len(store.episodes)} episodes</p>'
        f"{_facts(facts)}{_contents(store, indices)}\n"
    )


def _contents(store: TrainingStore, indices: Sequence[int]) -> str:
    """A table of the episodes shown, each linked to its place on the page."""
    names = ("episode", "task", "instruction", "steps", "success at", "perturbation")
    styles = ("number", "", "", "number", "number", "number")
    head = "".join(f'<th class="{style}">{name}</th>' for style, name in zip(styles, names, strict=True))
    body = []
    for index in indices:
        entry = store.episodes[index]
        texts = (
            _task(entry),
            entry["instruction"],
            str(entry["length"]),
            _known(entry["success_step"]),
            _amplitude(entry["perturbation"]),
        )
        link = f'<td class="number"><a href="#episode-{index}">{index}</a></td>'
        cells = (f'<td class="{s}">{html.escape(text)}</td>' for s, text in zip(styles[1:], texts, strict=True))
        body.append(f"<tr>{link}{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _article(
    store: TrainingStore,
    index: int,
    episode: EpisodeData,
    figure: str,
    encode_video: VideoEncoder | None,
) -> str:
    """One episode."""
    entry, spec = store.episodes[index], store.spec
    video = _video(store, index, episode, encode_video) if encode_video is not None else ""
    facts = {
        "task": _task(entry),
        "seed": _known(entry["seed"]),
        "initial state": _known(entry.get("episode") or entry["init"]),
        "settled hash": entry["settled_hash"] or "not recorded",
        "perturbation": _perturbation(entry["perturbation"], episode, store.action_spec),
        "first success": _known(entry["success_step"], f"after control step {entry['success_step']}"),
        "length": f"{episode.length} control steps ({episode.length / spec.control_hz:.1f} s), "
        f"{len(episode.images)} frames",
        "part": entry["part"],
    }
    return (
        f'<article id="episode-{index}"><h2>{index}: {html.escape(entry["instruction"])}</h2>'
        f'<div class="head">{video}{_facts(facts)}</div><figure><div class="scroll">'
        f"{figure}</div>{_caption(episode, spec, store.action_spec)}</figure></article>\n"
    )


def _caption(episode: EpisodeData, spec: ObservationSpec, action: ActionSpec) -> str:
    """The key to the figure's colours."""
    keys = [("label", "label: the action to learn")]
    if is_perturbed(episode):
        keys.append(("executed", "executed: what the robot did"))
    else:
        keys[0] = ("label", "label = executed")
    if action.grippers:
        keys.append(("closed", "gripper commanded to close"))
    if episode.meta.get("success_step") is not None:
        keys.append(("success", "first success"))
    spans = "".join(f'<span class="key {style}">{html.escape(text)}</span>' for style, text in keys)
    known = [unit for unit in dict.fromkeys(spec.state_units) if unit]
    state = f"state: {' and '.join(known)}; " if known else ""
    units = f"<span>actions: {html.escape(action.definition)}; {html.escape(state)}ranges: all episodes shown</span>"
    return f"<figcaption>{spans}{units}</figcaption>"


def _video(store: TrainingStore, index: int, episode: EpisodeData, encode: VideoEncoder) -> str:
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
    label = f"episode {index}, {', '.join(spec.cameras)}"
    return (
        f'<video controls loop muted playsinline aria-label="{html.escape(label)}" '
        f'src="{data_uri(content, "video/mp4")}"></video>'
    )


def _facts(facts: Mapping[str, Any]) -> str:
    """Names and values as a definition list."""
    pairs = [f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items()]
    return f"<dl>{''.join(pairs)}</dl>"


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
