"""Several training stores read as one, and their latents: episodes, rows and frames follow each other.

Nothing is copied: the frames and latents of a sample are read from their own store.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32

from wmjax.core.errors import UserError
from wmjax.core.files import hash_json
from wmjax.core.location import Rows
from wmjax.core.specs import require_equal
from wmjax.data.episode import EpisodeData
from wmjax.data.latents import LatentStore
from wmjax.data.statistics import merge_moments
from wmjax.data.store import Task, TrainingStore

STORE = "store"
"""Key of an episode's entry: the number of its store."""


class JoinedRows:
    """Arrays that follow each other along one axis, indexed as the readers of a store index one of them.

    Integers and integer arrays, or a slice, up to and including the joined axis; integers, integer arrays or slices
    after it. Integers are not negative.

    Attributes:
        shape: of the whole.
        dtype: of its elements.

    """

    def __init__(self, parts: Sequence[Rows], axis: int = 0) -> None:
        self._parts, self._axis = list(parts), axis
        counts = [part.shape[axis] for part in parts]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        first = parts[0].shape
        self.shape = (*first[:axis], int(self._starts[-1]), *first[axis + 1 :])
        self.dtype = parts[0].dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole array, in memory."""
        whole = np.concatenate([np.asarray(part) for part in self._parts], axis=self._axis)
        return whole.astype(dtype or self.dtype, copy=False)

    def __getitem__(self, key: Any) -> np.ndarray:
        parts = key if isinstance(key, tuple) else (key,)
        before, wanted, after = parts[: self._axis], parts[self._axis], parts[self._axis + 1 :]
        if isinstance(wanted, slice):
            wanted = np.arange(self.shape[self._axis])[wanted]
        leads = np.broadcast_arrays(wanted, *before)
        rows, lead = leads[0], leads[1:]
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        found: np.ndarray | None = None
        for number in np.unique(owner):
            here = owner == number
            index = (*(part[here] for part in lead), rows[here] - self._starts[number])
            values = np.asarray(self._parts[number][index])[(slice(None), *after)]
            if found is None:
                found = np.empty((*rows.shape, *values.shape[1:]), self.dtype)
            found[here] = values
        if found is None:
            found = np.empty((*rows.shape, *self.shape[len(before) + 1 :]), self.dtype)
        return found


S = TypeVar("S", TrainingStore, LatentStore)


class _Several(Generic[S]):
    """The base of the two unions, whose identity and checks are those of the stores, in order."""

    stores: tuple[S, ...]

    @property
    def hash(self) -> str:
        """Identity of the whole content, in this order."""
        return hash_json([store.hash for store in self.stores])

    def verify(self) -> None:
        """Recomputes every hash."""
        for store in self.stores:
            store.verify()

    def verify_once(self) -> None:
        """Recomputes the hashes that cannot be known to be right."""
        for store in self.stores:
            store.verify_once()


class UnionStore(_Several[TrainingStore], TrainingStore):
    """Training stores of equal specs as one.

    An episode's entry has the number of its store besides (``store``); tasks of several stores are one task.

    Attributes:
        stores: the stores, in order.

    """

    def __init__(self, stores: Sequence[TrainingStore]) -> None:
        """Args: ``stores`` are opened already.

        Raises:
            UserError: their specs differ, or only some have chunk labels or branches, or those have different
                lengths.

        """
        _require_alike(stores)
        first = stores[0]
        self.stores = tuple(stores)
        self.folder, self.manifest = first.folder, first.manifest
        self.spec, self.action_spec = first.spec, first.action_spec
        self.tasks: list[Task] = list(dict.fromkeys(task for store in stores for task in store.tasks))
        self.episodes = self._entries()
        self.state = np.concatenate([store.state for store in stores])
        self.action = np.concatenate([store.action for store in stores])
        self.executed = np.concatenate([store.executed for store in stores])
        self.frames: Any = JoinedRows([store.frames for store in stores])
        self.frame_step: Int32[np.ndarray, " f"] = np.concatenate([store.frame_step for store in stores])
        chunks = [store.action_chunk for store in stores if store.action_chunk is not None]
        self.action_chunk: Float32[np.ndarray, "f label_steps action"] | None = (
            np.concatenate(chunks) if chunks else None
        )
        self.injected = self._injected()
        branches = [store.branch_images for store in stores if store.branch_images is not None]
        self.branch_images: Any = JoinedRows(branches) if branches else None

    def _entries(self) -> list[dict[str, Any]]:
        """The episodes' entries with their rows and frames in the union."""
        entries: list[dict[str, Any]] = []
        step = frame = 0
        for number, store in enumerate(self.stores):
            begin = len(entries)
            for entry in store.episodes:
                entries.append(
                    entry
                    | {
                        STORE: number,
                        "index": begin + entry["index"],
                        "task": self.tasks.index(store.tasks[entry["task"]]),
                        "step_start": step + entry["step_start"],
                        "frame_start": frame + entry["frame_start"],
                    }
                )
            step, frame = step + len(store.state), frame + len(store.frame_step)
        return entries

    def _injected(self) -> Bool[np.ndarray, " n"] | None:
        """The marks of injected failures; none in a store that does not know."""
        if all(store.injected is None for store in self.stores):
            return None
        marks = [np.zeros(len(s.state), bool) if s.injected is None else s.injected for s in self.stores]
        return np.concatenate(marks)

    def episode(self, index: int | np.integer) -> EpisodeData:
        """One episode as it was recorded."""
        return self._store(index).episode(self._within(index))

    def settled_state(self, index: int | np.integer) -> Float64[np.ndarray, " s"]:
        """The full simulator state an episode started from."""
        return self._store(index).settled_state(self._within(index))

    def _store(self, index: int | np.integer) -> TrainingStore:
        return self.stores[self.episodes[index][STORE]]

    def _within(self, index: int | np.integer) -> int:
        """The index of an episode in its own store."""
        number = self.episodes[index][STORE]
        return index - sum(len(store.episodes) for store in self.stores[:number])


class UnionLatents(_Several[LatentStore], LatentStore):
    """The latents of the stores of a union; their channel statistics are those of all frames together."""

    def __init__(self, latents: Sequence[LatentStore]) -> None:
        """Args: ``latents`` are those of the union's stores, in order.

        Raises:
            UserError: they are of different encoders.

        """
        first = latents[0]
        for other in latents[1:]:
            require_equal(other.spec, first.spec, str(other.folder), str(first.folder), ignore=("mean", "std"))
        self.stores = tuple(latents)
        self.folder, self.manifest, self.backend = first.folder, first.manifest, first.backend
        self.source = hash_json([store.source for store in latents])
        self.views = np.concatenate([store.views for store in latents])
        self.dtype = first.dtype
        self.latents: Any = JoinedRows([store.latents for store in latents], axis=1)
        scales = [store.scale for store in latents if store.scale is not None]
        self.scale: Any = JoinedRows(scales, axis=1) if scales else None
        branches = [store.branches for store in latents if store.branches is not None]
        self.branches: Any = JoinedRows(branches, axis=1) if branches else None
        counts = [store.latents.shape[1] * store.spec.tokens_per_frame for store in latents]
        mean, std = merge_moments([s.spec.mean for s in latents], [s.spec.std for s in latents], counts)
        self.spec = dataclasses.replace(first.spec, mean=mean, std=std)


def join_stores(stores: Sequence[TrainingStore]) -> TrainingStore:
    """The stores as one; a single one is itself.

    Raises:
        UserError: see :class:`UnionStore`.

    """
    return stores[0] if len(stores) == 1 else UnionStore(stores)


def _require_alike(stores: Sequence[TrainingStore]) -> None:
    """Refuses stores whose samples cannot be in one batch."""
    first = stores[0]
    for store in stores[1:]:
        names = f"data.paths: {store.folder}", str(first.folder)
        require_equal(store.spec, first.spec, *names)
        require_equal(store.action_spec, first.action_spec, *names)
        mine, theirs = (None if s.action_chunk is None else s.action_chunk.shape[1] for s in (store, first))
        if mine != theirs:
            raise UserError(
                f"{names[0]} has chunk labels of {mine or 'no'} control steps, {names[1]} of {theirs or 'no'}; record "
                "both with the same data.demonstrations.label_steps"
            )
        mine, theirs = (0 if s.branch_images is None else s.branch_images.shape[1] for s in (store, first))
        if mine != theirs:
            raise UserError(
                f"{names[0]} has branches of {mine} frames, {names[1]} of {theirs}; record both with the same "
                "data.demonstrations.branch_frames"
            )
