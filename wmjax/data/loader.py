"""The training input: a Grain dataset of whole batches over the memory-mapped or remote stores.

One sample is one frame of a chosen episode. Grain reads a random-access source whose elements are complete batches,
gathered by fancy indexing. The cost of Python is therefore per batch and not per sample, and the state of an iterator
is one number, the next global batch. The global order is a permutation per epoch drawn from (seed, epoch). A host
takes a contiguous slice of every global batch, so 1, 2 or 4 hosts read the same order. Batches run across epoch
boundaries, so no sample is dropped. Where samples have weights, an epoch holds each of them as often as its weight
says, rounded up or down at random (:mod:`wmjax.data.weights`). Grain imports jax and is therefore imported on use only.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.location import Rows
from wmjax.data.labels import (
    check_branches,
    check_labels,
    chunk_labels,
    label_ends,
    pending_actions,
    undisturbed_between,
)
from wmjax.data.latents import LatentStore
from wmjax.data.motion import find_motion, roll_state
from wmjax.data.shift import MAX_SHIFT, ViewTable
from wmjax.data.store import TrainingStore
from wmjax.data.weights import UNIFORM, Mixture, draw_weighted, expected_draws
from wmjax.data.windows import earlier_indices, future_indices, history_indices

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]
ORDER, VIEW, SHIFT, WEIGHT = 0, 1, 2, 3
"""Names of the random streams of an epoch."""
ENDLESS = 1 << 40
"""Batches of a loader without ``num_epochs``."""


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """The settings by which samples become batches.

    ``batch_size`` is global, over all hosts. ``views`` caps how many views of the latent store are drawn from
    (None: all; 1: only the unshifted one). Without latents every sample draws its own shift up to
    ``max_shift`` pixels. The chunk of actions begins ``delay`` control steps after the frame; what lies beyond the
    episode's end is masked. A store's chunk labels, where it has them, are the actions that are learned, and its
    injected failures are masked out of the future. With the target ``past`` the batch's ``future`` holds the frames
    before the history instead, newest first; with the target ``branch`` those that follow if the actions of the
    delay are executed as recorded and then nothing disturbs the expert. ``mixture`` says how often a sample is
    drawn where samples are shuffled. Of the episodes ``video_only`` nothing but the video is used: their actions
    are zeros and masked, and their state is the mean state of the other episodes. With ``pending`` the batch has
    the actions that are executed in the ``delay`` control steps before the chunk
    (:func:`wmjax.data.labels.pending_actions`), and with ``rolls_state`` its state is rolled forward by them
    (:func:`wmjax.data.motion.roll_state`).
    Without ``images`` none are read, and the batch has none.
    """

    batch_size: int = 32
    seed: int = 0
    chunk: int = 8
    history: int = 3
    future: int = 4
    target: Literal["future", "past", "branch"] = "future"
    views: int | None = None
    max_shift: int = MAX_SHIFT
    shuffle: bool = True
    num_epochs: int | None = None
    drop_remainder: bool = True
    delay: int = 0
    pending: bool = False
    rolls_state: bool = False
    mixture: Mixture = UNIFORM
    images: bool = True
    video_only: tuple[int, ...] = ()
    shard_index: int = 0
    shard_count: int = 1
    threads: int = 1
    prefetch: int = 3


def make_loader(
    store: TrainingStore,
    latents: LatentStore | ViewTable | None,
    episodes: np.ndarray,
    config: LoaderConfig,
    features: LatentStore | None = None,
) -> "grain.IterDataset[Batch]":
    """The batches of one host, for some episodes.

    Iterating gives dicts of numpy arrays with B = batch_size / shard_count: images u8 [B, cameras, h, w, 3],
    state f32 [B, state] and action f32 [B, chunk, action] (raw units), action_mask bool [B, chunk], task i32 [B], shift
    i32 [B, 2] (dy, dx, yet to be applied to the pixels), sample_id i32 [B] (frame index in the store),
    sample_mask bool [B] (False only on the filler of a last batch kept by ``drop_remainder=False``); with
    latents also latents f32 [B, history, tokens, dim] (raw), future f32 [B, future, tokens, dim] and
    future_mask bool [B, future]; if asked for, pending f32 [B, delay, action] (raw). A table of views gives the same
    batches as the store of latents, without the latents. With a store of a vision tower's features the batch has these
    in place of images: features [B, tokens, channels], those of the sample's view, as they are packed
    (:mod:`wmjax.data.packing`), and for int8 feature_scale f32 [B, tokens].

    The iterator's ``get_state()`` and ``set_state()`` resume at the exact next sample, with any host count.

    Raises:
        UserError: latents or features of another store, features of other views, no samples, a batch that does not
            divide over the hosts, or a state to be rolled forward by actions of which it is not known how they move it.

    """
    import grain

    source = BatchSource(store, latents, episodes, config, features)
    # Grain uses no more threads than there are places for finished batches.
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=max(config.prefetch, config.threads))
    return grain.MapDataset.source(source).to_iter_dataset(options)


class BatchSource:
    """Random access to the batches of one host: element ``i`` is the host's slice of global batch ``i``."""

    def __init__(
        self,
        store: TrainingStore,
        latents: LatentStore | ViewTable | None,
        episodes: np.ndarray,
        config: LoaderConfig,
        features: LatentStore | None = None,
    ) -> None:
        _check(store, latents, config)
        if features is not None:
            _check_features(features, store, latents)
        self.store, self.latents, self.features, self.config = store, latents, features, config
        self.samples = np.flatnonzero(np.isin(store.frame_episode, np.asarray(episodes)))
        if not len(self.samples):
            raise UserError(f"{store.folder}: episodes {np.asarray(episodes).tolist()} have no frames; choose others")
        if not len(self):
            raise UserError(
                f"batch_size is {config.batch_size} but {config.num_epochs} epochs have only "
                f"{len(self.samples) * (config.num_epochs or 0)} samples; lower it or set drop_remainder to false"
            )
        entry = {name: np.array([e[name] for e in store.episodes]) for name in _EPISODE_COLUMNS}
        self._label_ends = label_ends(store)
        self._motion = find_motion(store.spec, store.action_spec) if config.rolls_state else None
        self._frame_start, self._task = entry["frame_start"], entry["task"].astype(np.int32)
        self._frame_end = entry["frame_start"] + entry["num_frames"]
        self._expected = (
            expected_draws(store, self.samples, config.mixture, config.video_only) if config.shuffle else None
        )
        self._mean_state = self._known_states().mean(0) if config.video_only else None
        # Bound to the instance: a cache on the method would keep every source alive.
        self._epoch = functools.lru_cache(maxsize=4)(self._draw_epoch)

    def __len__(self) -> int:
        if self.config.num_epochs is None:
            return ENDLESS
        total = len(self.samples) * self.config.num_epochs
        return total // self.config.batch_size if self.config.drop_remainder else -(-total // self.config.batch_size)

    def __getitem__(self, index: int) -> Batch:
        frames, views, shifts, mask = self._draw(int(index))
        episode = self.store.frame_episode[frames]
        row = self.store.frame_row[frames]
        action, action_mask = chunk_labels(self.store, frames, self.config.chunk, self.config.delay, self._label_ends)
        batch = self._seen_columns(frames, views) | {
            "state": self.store.state[row],
            "action": action,
            "action_mask": action_mask,
            "task": self._task[episode],
            "shift": shifts,
            "sample_id": frames.astype(np.int32),
            "sample_mask": mask,
        }
        if self.config.pending or self._motion is not None:
            batch |= self._pending_columns(frames, batch["state"])
        if self._mean_state is not None:
            video = np.isin(episode, self.config.video_only)
            batch["action_mask"] = action_mask & ~video[:, None]
            batch["action"] = np.where(video[:, None, None], np.float32(0), action)
            batch["state"] = np.where(video[:, None], self._mean_state, batch["state"])
            if self.config.pending:
                batch["pending"] = np.where(video[:, None, None], np.float32(0), batch["pending"])
        return batch | self._latent_columns(frames, views, episode)

    def _seen_columns(self, frames: np.ndarray, views: np.ndarray) -> Batch:
        """Images, or the features of the chosen views, as they are stored."""
        if self.features is not None:
            stored = {"features": self.features.latents, "feature_scale": self.features.scale}
            return {name: np.asarray(rows[views, frames]) for name, rows in stored.items() if rows is not None}
        return {"images": np.asarray(self.store.frames[frames])} if self.config.images else {}

    def _pending_columns(self, frames: np.ndarray, state: np.ndarray) -> Batch:
        """The pending actions, raw, if the batch is to have them, and the state as it is to be."""
        pending = pending_actions(self.store, frames, self.config.delay)
        columns = {"pending": pending} if self.config.pending else {}
        return columns if self._motion is None else columns | {"state": roll_state(state, pending, self._motion)}

    def _known_states(self) -> np.ndarray:
        """The states of the frames that are used for more than their video."""
        episode = self.store.frame_episode[self.samples]
        return self.store.state[self.store.frame_row[self.samples[~np.isin(episode, self.config.video_only)]]]

    def samples_of(self, index: int) -> np.ndarray:
        """The ``sample_id`` of every row of batch ``index``."""
        return self._draw(index)[0]

    def _draw(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Frames, views, shifts and validity of this host's slice of global batch ``index``."""
        config, count = self.config, len(self.samples)
        size = config.batch_size // config.shard_count
        start = index * config.batch_size + config.shard_index * size
        position = np.arange(start, start + size)
        mask = np.ones(size, bool) if config.num_epochs is None else position < count * config.num_epochs
        if config.num_epochs is not None:
            position = np.minimum(position, count * config.num_epochs - 1)
        epoch, offset = np.divmod(position, count)
        parts = []
        for number in np.unique(epoch):
            places = offset[epoch == number]
            parts.append(tuple(column[places] for column in self._epoch(int(number))))
        frames, views, shifts = (np.concatenate(column) for column in zip(*parts, strict=True))
        return frames, views, shifts, mask

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """An epoch's frames in order, with the view and the shift of each."""
        order = self._order(epoch)
        count, frames = len(order), self.samples[order]
        # Drawn for each sample; a sample that weights repeat is drawn for each time that it comes.
        own = order if self._expected is None else np.arange(count)
        if self.latents is None:
            limit = self.config.max_shift
            shifts = self._generator(epoch, SHIFT).integers(-limit, limit + 1, (count, 2), dtype=np.int32)
            return frames, np.zeros(count, np.int64), shifts[own]
        available = self.latents.views.shape[1]
        views = self._generator(epoch, VIEW).integers(0, min(self.config.views or available, available), count)[own]
        return frames, views, self.latents.views[self.store.frame_episode[frames], views]

    def _order(self, epoch: int) -> np.ndarray:
        """Which samples an epoch holds, in order."""
        count = len(self.samples)
        if not self.config.shuffle:
            return np.arange(count)
        order = self._generator(epoch, ORDER).permutation(count)
        if self._expected is None:
            return order
        return draw_weighted(self._expected, self._generator(epoch, WEIGHT))[order]

    def _generator(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.config.seed, epoch, stream])))

    def _latent_columns(self, frames: np.ndarray, views: np.ndarray, episode: np.ndarray) -> Batch:
        """Latent history and future of the chosen views, raw and in the store's type; the training step widens them."""
        if self.latents is None or isinstance(self.latents, ViewTable):
            return {}
        past = history_indices(frames, self._frame_start[episode], self.config.history)
        ahead, exists = self._targets(frames, episode)
        # Together: what was and what comes lie side by side, so that a remote store answers one request per sample.
        found = self.latents.latents[views[:, None], np.concatenate([past, ahead], axis=1)]
        columns = {
            "latents": found[:, : self.config.history],
            "future": found[:, self.config.history :],
            "future_mask": exists & undisturbed_between(self.store, frames, ahead),
        }
        if self.config.target != "branch":
            return columns
        assert self.latents.branches is not None
        return columns | self._branched(columns, self.latents.branches, frames, views)

    def _targets(self, frames: np.ndarray, episode: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The recorded frames whose latents are to be predicted, and which of them exist."""
        count, history = self.config.future, self.config.history
        if self.config.target == "past":
            return earlier_indices(frames, self._frame_start[episode], history, count)
        if self.config.target == "branch":
            count = min(count, self.config.delay // self.store.spec.frame_stride)
        return future_indices(frames, self._frame_end[episode], count)

    def _branched(self, columns: Batch, branches: Rows, frames: np.ndarray, views: np.ndarray) -> Batch:
        """The future whose recorded frames end with the delay, continued by the branch of the frame there."""
        known, mask = columns["future"], columns["future_mask"]
        ahead = self.config.delay // self.store.spec.frame_stride
        begin, exists = future_indices(frames + ahead - 1, self._frame_end[self.store.frame_episode[frames]], 1)
        follows = exists & undisturbed_between(self.store, frames, begin)
        rest = branches[views, begin[:, 0]][:, : self.config.future - known.shape[1]]
        return {
            "future": np.concatenate([known, rest], axis=1),
            "future_mask": np.concatenate([mask, np.repeat(follows, rest.shape[1], axis=1)], axis=1),
        }


def _check_features(features: LatentStore, store: TrainingStore, latents: LatentStore | ViewTable | None) -> None:
    """Refuses features of other frames, or of images that were shifted in another way than the latents' views."""
    features.check(store)
    if latents is None or not np.array_equal(features.views, latents.views):
        raise UserError(
            f"{features.folder}: these features are of other views than the training draws; make them again with its "
            "encoder.views and encoder.max_shift"
        )


_EPISODE_COLUMNS = ("frame_start", "num_frames", "task")


def _check(store: TrainingStore, latents: LatentStore | ViewTable | None, config: LoaderConfig) -> None:
    """Refuses settings that cannot be honoured."""
    for name in ("batch_size", "chunk", "history", "future", "shard_count"):
        value: Any = getattr(config, name)
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if config.delay < 0:
        raise UserError(f"delay is {config.delay}; it must not be negative")
    check_labels(store, config.chunk, config.delay)
    if config.batch_size % config.shard_count:
        raise UserError(
            f"batch_size is {config.batch_size}, not divisible over {config.shard_count} hosts; choose a multiple"
        )
    if not 0 <= config.shard_index < config.shard_count:
        raise UserError(f"shard_index is {config.shard_index}; it must be below shard_count {config.shard_count}")
    if config.max_shift < 0 or (config.views is not None and config.views < 1):
        raise UserError(f"max_shift {config.max_shift} must be >= 0 and views {config.views} >= 1; raise them")
    if isinstance(latents, LatentStore):
        latents.check(store)
        if config.target == "branch":
            check_branches(store, config.future, config.delay)
    if latents is not None and config.views is not None and config.views > latents.views.shape[1]:
        raise UserError(
            f"views is {config.views}, but only {latents.views.shape[1]} are drawn per episode; lower it or encode more"
        )
