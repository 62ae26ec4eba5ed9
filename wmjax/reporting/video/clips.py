"""Videos of episodes: all cameras side by side, a caption and strips below, at the rate of the frames."""

import io
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from wmjax.core.files import atomic_path
from wmjax.core.specs import ActionSpec
from wmjax.reporting.video import VIDEO_NAME
from wmjax.reporting.video.decision_strip import draw_decisions
from wmjax.reporting.video.imagination_strip import draw_strips
from wmjax.reporting.video.nearest_frames import Album
from wmjax.rollout.decisions import Decided, Imagined

CAPTION = 48
"""Height of the caption strip, pixels: three lines."""
MINIMUM_HEIGHT = 224
"""Smaller frames are enlarged by an integer factor to at least this height (pixels), so that captions fit."""

Frames = UInt8[np.ndarray, "frames cameras height width 3"]
Strips = UInt8[np.ndarray, "frames _ _ 3"]


class Videos:
    """Keeps the first ``per_task`` successes and the first ``per_task`` failures of each task as mp4.

    Args:
        folder: of the mp4 files, which are named after episode and outcome and never overwritten.
        per_task: 0 keeps none.
        rate: frames per second of simulated time.
        action: what the actions are.
        album: finds the training frames that are nearest to the predicted latents.

    """

    def __init__(
        self, folder: Path, per_task: int, rate: float, action: ActionSpec, album: Album | None = None
    ) -> None:
        self._folder, self._action, self._album = Path(folder), action, album
        self._per_task = per_task
        self._rate = rate
        self._counts: Counter[tuple[str, str]] = Counter()
        for path in self._folder.glob("*.mp4"):
            if match := VIDEO_NAME.fullmatch(path.stem):  # other files do not count
                self._counts[f"{match['suite']}-{match['task']}", match["outcome"]] += 1

    def forget(self, episodes: Iterable[tuple[str, int, str]]) -> None:
        """Removes the videos of episodes (suite, task, name within the task) that are about to be run again.

        Such an episode has a video but no record, because the process was killed between the two.
        """
        names = {f"{suite}-{task_id}__{episode}" for suite, task_id, episode in episodes}
        for path in self._folder.glob("*__*__*.mp4"):
            task, episode, outcome = path.stem.split("__")[:3]
            if f"{task}__{episode}" in names:
                path.unlink()
                self._counts[task, outcome] -= 1

    def wanted(self, suite: str, task_id: int, outcome: str | None = None) -> bool:
        """Whether a video of that task (and outcome, if known already) would be kept."""
        outcomes = ("success", "failure") if outcome is None else (outcome,)
        return any(self._counts[f"{suite}-{task_id}", kind] < self._per_task for kind in outcomes)

    def add(
        self,
        suite: str,
        task_id: int,
        episode: str,
        outcome: str,
        frames: Frames,
        captions: Sequence[str],
        imagined: Sequence[Imagined] = (),
        decided: Sequence[Decided] = (),
    ) -> Path:
        """Writes one video and returns its path.

        Args:
            suite: of the episode.
            task_id: of the episode.
            episode: distinguishes the episode within its task, such as ``random-17``.
            outcome: ``success`` or ``failure``.
            frames: in order.
            captions: one per frame; long lines are wrapped.
            imagined: what was imagined at each decision, drawn below the caption.
            decided: the decisions, drawn below that.

        """
        name = f"{suite}-{task_id}__{episode}__{outcome}"
        path = self._folder / f"{name}.mp4"
        copy = 2
        while path.exists():
            path = self._folder / f"{name}__{copy}.mp4"
            copy += 1
        strips = [draw_strips(imagined, len(frames), self._album)] if imagined else []
        strips += [draw_decisions(decided, len(frames), self._action)] if decided else []
        write_video(path, frames, captions, self._rate, strips)
        self._counts[f"{suite}-{task_id}", outcome] += 1
        return path


def write_video(
    path: Path, frames: Frames, captions: Sequence[str], rate: float, strips: Sequence[Strips] = ()
) -> None:
    """Encodes an H.264 mp4, atomically."""
    with atomic_path(path) as temporary:
        # Absolute: of a relative path, FFmpeg takes what stands before a colon for a protocol.
        _encode(str(temporary.absolute()), frames, captions, rate, strips)


def _encode(
    target: str | io.BytesIO, frames: Frames, captions: Sequence[str], rate: float, strips: Sequence[Strips] = ()
) -> None:
    pictures = [_compose(*parts) for parts in zip(frames, captions, _below(strips, len(frames)), strict=True)]
    height, width = pictures[0].shape[:2]
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(rate), options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def video_bytes(frames: Frames, captions: Sequence[str], rate: float) -> bytes:
    """The bytes of an H.264 mp4 of at least one frame per second."""
    content = io.BytesIO()
    _encode(content, frames, captions, max(rate, 1.0))
    return content.getvalue()


def _below(strips: Sequence[Strips], frames: int) -> Strips:
    """The strips one below the other, as wide as the widest; of no height if there are none."""
    width = max((strip.shape[2] for strip in strips), default=0)
    padded = [np.pad(strip, ((0, 0), (0, 0), (0, width - strip.shape[2]), (0, 0))) for strip in strips]
    return np.concatenate([np.zeros((frames, 0, width, 3), np.uint8), *padded], axis=1)


def _compose(
    frame: UInt8[np.ndarray, "cameras height width 3"], caption: str, strip: UInt8[np.ndarray, "below across 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Cameras side by side above the caption above the strip, with even sides (which yuv420p needs)."""
    factor = max(1, -(-MINIMUM_HEIGHT // frame.shape[1]))
    row = np.concatenate(list(frame), axis=1).repeat(factor, 0).repeat(factor, 1)
    height, width = row.shape[0] // 2 * 2, row.shape[1] // 2 * 2
    extra = -(-len(strip) // 2) * 2
    canvas = Image.new("RGB", (width, height + CAPTION + extra), "black")
    canvas.paste(Image.fromarray(row), (0, 0))
    if extra:
        canvas.paste(Image.fromarray(strip), (0, height + CAPTION))
    draw = ImageDraw.Draw(canvas)
    lines = [part for line in caption.splitlines() for part in textwrap.wrap(line, width // 6)]
    draw.multiline_text(
        (4, height + 2), "\n".join(lines), fill="white", font=ImageFont.load_default(size=11), spacing=3
    )
    return np.asarray(canvas)
