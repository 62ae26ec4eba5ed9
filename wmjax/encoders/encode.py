"""Encoding a training store's frames into a latent store, with any encoder. Imports no framework."""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from wmjax.core.errors import UserError
from wmjax.core.specs import EncoderSpec, Precision, require_equal
from wmjax.data.latents import LatentStore, LatentWriter
from wmjax.data.packing import Packing
from wmjax.data.shift import MAX_SHIFT, VIEWS, draw_views, require_shift, shift_images
from wmjax.data.store import TrainingStore
from wmjax.data.windows import branch_clip_indices, clip_indices
from wmjax.encoders.base import Exporter

LATENT_BOUNDS: dict[Precision, float] = {"float32": 5e-3, "tf32": 2e-2, "bfloat16": 0.1}
"""Largest :func:`difference` between a stored latent and the same latent computed by either backend, by precision.

In float32 most of it is the store's float16, which costs up to 2^-11 of a value, 4e-3 of the RMS at eight times the
RMS. The others round the operands of every product, differently by framework and batch
(``benchmarks/latent_precision.py``).
"""
IN_FLIGHT = 2
"""Batches that an encoder may be working on: the next one is given to it before the result of the last is read."""
BATCH = 32
"""Clips per call of the encoder by default."""
ROUND = 8
"""Clip batches are padded to multiples of this, so that a compiled encoder sees few shapes."""
T = TypeVar("T")


class EpisodeClips:
    """The clip of every frame of one episode, shift by shift: past frames only, the first repeated, all shifted alike.

    With branches the clips of their frames follow those of the episode's own, within each shift.

    A slice of it is gathered when it is indexed. Each shifted frame is in memory once, not once per clip that shows
    it: an episode's clips of 64 frames at 256 px would take gigabytes.

    Args:
        frames: uint8 ``[frames, height, width, 3]``, one episode of one camera.
        shifts: (dy, dx) in pixels of each shifted copy.
        length: frames per clip.
        branches: uint8 ``[frames, branch, height, width, 3]``, the frames of every frame's branch; None for none.

    """

    def __init__(
        self,
        frames: UInt8[np.ndarray, "frames height width 3"],
        shifts: Sequence[tuple[int, ...]],
        length: int,
        branches: UInt8[np.ndarray, "frames branch height width 3"] | None = None,
    ) -> None:
        frames = np.asarray(frames)
        steps = clip_indices(np.arange(len(frames)), 0, length)
        if branches is not None:
            steps = np.concatenate([steps, branch_clip_indices(len(frames), branches.shape[1], length)])
            frames = np.concatenate([frames, branches.reshape(-1, *frames.shape[1:])])
        self._frames = np.concatenate([shift_images(frames, int(dy), int(dx)) for dy, dx in shifts])
        self._steps = np.concatenate([steps + number * len(frames) for number in range(len(shifts))])

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, chosen: slice | np.ndarray) -> UInt8[np.ndarray, "n length height width 3"]:
        return self._frames[self._steps[chosen]]


def encode_clips(
    encode: Callable[[np.ndarray], Any], clips: EpisodeClips | UInt8[np.ndarray, "n ..."], batch: int
) -> Float32[np.ndarray, " n *features"]:
    """Encodes any number of clips in batches of at most ``batch`` (padded by repetition, then cut).

    A thread gathers the next batch while ``encode`` works, and :data:`IN_FLIGHT` batches are encoded at a time.
    """

    def gather(start: int) -> np.ndarray:
        size = min(batch, len(clips) - start)
        return clips[start + np.minimum(np.arange(-(-size // ROUND) * ROUND), size - 1)]

    found: list[np.ndarray] = []
    coming: deque[tuple[int, Any]] = deque()

    def read() -> None:
        start, latents = coming.popleft()
        found.append(np.asarray(latents)[: min(batch, len(clips) - start)])

    with contextlib.closing(read_ahead(gather, range(0, len(clips), batch))) as batches:
        for start, part in batches:
            coming.append((start, encode(part)))
            if len(coming) == IN_FLIGHT:
                read()
    while coming:
        read()
    return np.concatenate(found)


def encode_store(
    store: TrainingStore,
    out: Path,
    encoder: Exporter,
    *,
    views: int = VIEWS,
    max_shift: int = MAX_SHIFT,
    seed: int = 0,
    batch: int = BATCH,
    dtype: Packing = "float16",
    branches: bool = True,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> LatentStore | None:
    """Encodes what is missing and merges; may be killed and rerun at any moment.

    Views with the same shift are encoded once. An episode's latents depend neither on kills nor on shards.

    Args:
        store: the frames.
        out: latent store to write; one that holds latents of another encoder, source or views is refused.
        encoder: computes the latents.
        views: shifted copies per episode; view 0 is unshifted.
        max_shift: largest shift of the other views, pixels of the store.
        seed: of the shifts.
        batch: clips per call of the encoder.
        dtype: form of the stored latents.
        branches: whether the frames of the store's branches, if it has any, are encoded too.
        shard: ``(i, n)``: this process encodes every n-th episode, from the i-th.
        progress: called with (episodes done, episodes in all).

    Returns:
        The latent store, or None while other shards are still working.

    Raises:
        UserError: numbers that make no sense, a camera not in the store, or a folder of something else.

    """
    require_numbers(views=views, max_shift=max_shift, batch=batch)
    require_shift(max_shift, store.spec.image_size, "max-shift")
    cameras = camera_indices(store, encoder.spec)
    shifts = draw_views(len(store.episodes), views, seed, max_shift)
    writer = LatentWriter(out, encoder.spec, store, shifts, encoder.backend, dtype, branches=branches)
    mine = [index for index in writer.pending() if index % shard[1] == shard[0]]

    def read(index: int) -> list[EpisodeClips]:
        distinct, length = _distinct(shifts[index]), encoder.spec.clip_length
        images = [_images(store, index, camera, writer.branch_frames) for camera in cameras]
        return [EpisodeClips(frames, distinct, length, ahead) for frames, ahead in images]

    with contextlib.closing(read_ahead(read, mine)) as episodes:
        for done, (index, clips) in enumerate(episodes):
            distinct = _distinct(shifts[index])
            latents = np.concatenate([encode_clips(encoder.encode, each, batch) for each in clips], axis=1)
            latents = latents.reshape(len(distinct), -1, *latents.shape[1:])
            writer.write(index, latents[[distinct.index(view) for view in map(tuple, shifts[index].tolist())]])
            if progress:
                progress(done + 1, len(mine))
    return None if writer.pending() else writer.finish()


def _images(
    store: TrainingStore, index: int, camera: int, branch_frames: int
) -> tuple[UInt8[np.ndarray, "frames height width 3"], UInt8[np.ndarray, "frames branch height width 3"] | None]:
    """An episode's frames of one camera, and those of its branches if they are encoded."""
    entry = store.episodes[index]
    rows = slice(entry["frame_start"], entry["frame_start"] + entry["num_frames"])
    frames = np.array(store.frames[rows, camera])
    if not branch_frames or store.branch_images is None:
        return frames, None
    return frames, np.array(store.branch_images[rows, :, camera])


def require_numbers(*, views: int, max_shift: int, batch: int) -> None:
    """Refuses values that cannot be used.

    Raises:
        UserError: names the argument, its value and the least that it may be.

    """
    for name, value, least in (("views", views, 1), ("max-shift", max_shift, 0), ("batch", batch, 1)):
        if value < least:
            raise UserError(f"{name} is {value}; set it to at least {least}")


def read_ahead(read: Callable[[int], T], indices: Sequence[int]) -> Generator[tuple[int, T], None, None]:
    """Yields each index with the result of ``read``, while a thread reads the next one; two results are in memory."""
    if not indices:
        return
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        coming = reader.submit(read, indices[0])
        for index, following in itertools.zip_longest(indices, indices[1:]):
            found = coming.result()
            if following is not None:
                coming = reader.submit(read, following)
            yield index, found


def _distinct(views: Int32[np.ndarray, "views 2"]) -> list[tuple[int, ...]]:
    """The different shifts of an episode's views, in the order in which they first appear."""
    return list(dict.fromkeys(map(tuple, views.tolist())))


def camera_indices(store: TrainingStore, spec: EncoderSpec) -> list[int]:
    """Indices of the encoder's cameras in the store.

    Raises:
        UserError: the store has not all of them.

    """
    for camera in spec.cameras:
        if camera not in store.spec.cameras:
            raise UserError(f"camera {camera!r} is not in {store.folder}; choose from {', '.join(store.spec.cameras)}")
    return [store.spec.cameras.index(camera) for camera in spec.cameras]


def difference(
    error: Float32[np.ndarray, "tokens dim"], latent: Float32[np.ndarray, "tokens dim"], precision: Precision
) -> float:
    """An error of a latent over the latent's RMS: the largest value in float32, else the RMS of the values.

    In lower precisions few values are far off and say nothing; the RMS distinguishes rounding from other frames.
    """
    size = np.abs(error).max() if precision == "float32" else np.sqrt(np.square(error).mean())
    return float(size / np.sqrt(np.square(latent).mean()))


def verify_latents(store: TrainingStore, latents: LatentStore, encoder: Exporter, samples: int = 16) -> float:
    """Re-encodes a random sample, another each time, and compares; the encoder may be of the other backend.

    Returns:
        The largest :func:`difference` found, beyond the rounding of the store's dtype.

    Raises:
        UserError: another encoder or source, or a difference above :data:`LATENT_BOUNDS`.

    """
    latents.check(store)
    # A folder and a hub id may hold the same weights: their hash decides, not the name.
    require_equal(latents.spec, encoder.spec, str(latents.folder), "the encoder", ignore=("name", "mean", "std"))
    worst, bound = 0.0, LATENT_BOUNDS[latents.spec.precision]
    for index, view, frame, found in _encode_sample(store, latents, encoder, samples):
        rounded = np.asarray(latents.latents[view, frame])
        stored = rounded.astype(np.float32)
        # Rounding is not a fault: in a channel of many times the RMS that alone can exceed the bound.
        rounding = np.abs(np.spacing(rounded)).astype(np.float32)
        beyond = np.maximum(np.abs(stored - found) - rounding, 0.0)
        error = difference(beyond, stored, latents.spec.precision)
        worst = max(worst, error)
        if not error <= bound:
            raise UserError(
                f"{latents.folder}: latent of episode {index}, view {view}, frame {frame} differs by {error:.2g} "
                f"of the RMS from the encoder's (bound {bound:g}); delete the store and encode again"
            )
    return worst


def _encode_sample(
    store: TrainingStore, latents: LatentStore, encoder: Exporter, samples: int
) -> Iterator[tuple[int, int, int, Float32[np.ndarray, "tokens dim"]]]:
    """Random (episode, view, frame, latent), a batch of clips in memory at a time."""
    drawn = _sample_clips(store, latents, encoder.spec, samples)
    while chosen := list(itertools.islice(drawn, BATCH)):
        clips = np.stack([clip for *_, clip in chosen], axis=1)
        encoded = np.concatenate([encode_clips(encoder.encode, each, BATCH) for each in clips], axis=1)
        for (index, view, frame, _), latent in zip(chosen, encoded, strict=True):
            yield index, view, frame, latent


def _sample_clips(
    store: TrainingStore, latents: LatentStore, spec: EncoderSpec, samples: int
) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """Random (episode, view, frame, the clip of each camera)."""
    rng, cameras = np.random.default_rng(), camera_indices(store, spec)
    for frame in rng.integers(0, len(store.frame_step), samples):
        index, view = int(store.frame_episode[frame]), int(rng.integers(latents.views.shape[1]))
        steps = clip_indices(frame, store.episodes[index]["frame_start"], spec.clip_length)
        shift = [int(pixels) for pixels in latents.views[index, view]]
        clips = [shift_images(np.array(store.frames[steps, camera]), *shift) for camera in cameras]
        yield index, view, int(frame), np.stack(clips)
