"""The latent store: V-JEPA latents of every frame of a training store, in one or more shifted views.

What a frozen vision tower makes of the frames is stored in the same way (:mod:`wmjax.pipeline.vision_features`).
Any number of processes write it, episode by episode, and resume after a kill; the episodes are then merged once. Rows
are the frames of the training store, in its order. Imports neither jax nor torch.
"""

import dataclasses
import functools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Int, Int32

from wmjax.core.errors import UserError
from wmjax.core.files import (
    LOCK,
    claim_plan,
    disk_errors,
    hash_json,
    only_one,
    read_npz,
    require_plan,
    require_space,
    write_npz,
)
from wmjax.core.location import Location, Rows, local, location
from wmjax.core.reading import reading, typed
from wmjax.core.settings import Range
from wmjax.core.specs import EncoderSpec, from_dict, to_dict
from wmjax.core.store_files import MANIFEST, StoreWriter, open_array, read_manifest, verify_files
from wmjax.core.verified import remember, verify_once
from wmjax.data.packing import SCALE, VALUES, Packing, layout, pack, unpack
from wmjax.data.shift import ViewTable
from wmjax.data.statistics import RunningMoments, without
from wmjax.data.store import TrainingStore

FORMAT = "wmjax latent store"
VERSION = 1
PARTS = "parts"
PLAN = "plan.json"
FIX = "encode it with `python -m wmjax.encode`, or with `python -m encoders_export.vjepa` in PyTorch"
Backend = Literal["torch", "jax"]
Dtype = Literal["float16", "float32"]
BRANCHES = "branches"
"""Name of the array that the latents of branches are kept in."""
DEFAULTS = {"dtype": "float16"}
"""Values of fields that a plan or manifest leaves out."""


class LatentWriter:
    """Writes the latents of a training store, episode by episode, then merges them.

    Several processes may open the same folder and share the episodes of :meth:`pending`. A process that finds none left
    calls :meth:`finish`; only the first call does anything. ``branch_frames`` is the number of frames of each branch
    that are encoded, 0 for none.

    Args:
        folder: the latent store to be.
        spec: the encoder; its mean and std are ignored, :meth:`finish` computes them.
        store: the training store whose frames are encoded.
        views: int32 ``[episodes, views, 2]``, (dy, dx) of each view (see :func:`wmjax.data.shift.draw_views`).
        backend: which implementation encodes.
        dtype: form of the stored latents.
        branches: whether the frames of the training store's branches, if it has any, are encoded too.

    Raises:
        UserError: the folder holds latents of another encoder, source, dtype or view table; nothing is overwritten.

    """

    def __init__(
        self,
        folder: str | Path,
        spec: EncoderSpec,
        store: TrainingStore,
        views: np.ndarray,
        backend: Backend,
        dtype: Packing = "float16",
        *,
        branches: bool = True,
    ) -> None:
        self.folder, self.store, self.dtype = local(folder), store, dtype
        self.branch_frames = store.branch_images.shape[1] if branches and store.branch_images is not None else 0
        self.spec = dataclasses.replace(spec, mean=(), std=())
        self.views = np.asarray(views, np.int32)
        if self.views.ndim != 3 or len(self.views) != len(store.episodes) or self.views.shape[2] != 2:
            raise UserError(f"views have shape {self.views.shape}, expected [{len(store.episodes)}, views, 2]")
        self.plan = {
            "encoder_spec": to_dict(self.spec),
            "source": store.hash,
            "backend": backend,
            "views": self.views.tolist(),
            # Left out where it is the default, so that such stores keep the identity they always had.
            **({"dtype": dtype} if dtype != DEFAULTS["dtype"] else {}),
        }
        if self.finished:
            self._require_same()
            return
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with only_one(self.folder / LOCK):
                if self.finished:  # by another process, meanwhile
                    self._require_same()
                else:
                    claim_plan(self.folder / PARTS / PLAN, self.plan, "latents", DEFAULTS)

    def _require_same(self) -> None:
        """Refuses a finished store of another plan."""
        manifest = read_manifest(self.folder, FORMAT, VERSION, FIX)
        found = {key: manifest[key] for key in (*DEFAULTS, *self.plan) if key in manifest}
        found["encoder_spec"] = {**found["encoder_spec"], "mean": [], "std": []}
        require_plan({**DEFAULTS, **found}, {**DEFAULTS, **self.plan}, self.folder, "latents")

    @property
    def finished(self) -> bool:
        """Whether the store is complete, by this process or another."""
        return (self.folder / MANIFEST).exists()

    def pending(self) -> list[int]:
        """Episodes that are not written yet; empty when the store is finished."""
        missing = [index for index in range(len(self.store.episodes)) if not self._part(index).exists()]
        # In this order: parts go only when the store is there, so that one missing for that reason is not reported.
        return [] if self.finished else missing

    def write(self, index: int, latents: Float[np.ndarray, "views frames tokens dim"]) -> None:
        """Writes one episode's latents atomically; does nothing if another process finished the store meanwhile.

        Latents of the frames of branches, branch after branch, follow those of the episode's own frames.

        Raises:
            UserError: wrong shape, or values that are not finite in the store's dtype.

        """
        shape = self._part_shape(index)
        where = f"latents of episode {index}"
        if latents.shape != shape:
            raise UserError(f"{where}: shape {latents.shape}, expected {shape} [views, frames, tokens, dim]")
        packed = pack(latents, self.dtype)
        if not np.isfinite(unpack(packed, self.dtype)).all():
            raise UserError(
                f"{where}: NaN, infinity or values beyond {self.dtype}; check the encoder's weights and input"
            )
        try:
            write_npz(self._part(index), packed)
        except FileNotFoundError:
            if not self.finished:
                raise

    def finish(self) -> "LatentStore":
        """Merges the episodes into the store and computes the channel statistics from view 0.

        Several processes may call it at once: the first merges, the others wait and find it done.

        Raises:
            UserError: episodes are still missing or damaged, no space left.

        """
        if self.finished and not (self.folder / PARTS).exists():
            return LatentStore(self.folder)
        if pending := self.pending():
            raise UserError(f"{self.folder}: {len(pending)} episodes are not encoded yet ({_short(pending)}); {FIX}")
        shape, branches = self._shape(len(self.store.frame_step)), self._branch_shape(len(self.store.frame_step))
        with StoreWriter(self.folder, FORMAT, VERSION) as writer:
            if not self.finished:
                arrays = layout(shape, self.dtype)
                if self.branch_frames:
                    arrays[BRANCHES] = layout(branches, self.dtype)[VALUES]
                require_space(self.folder, sum(np.dtype(kind).itemsize * math.prod(n) for kind, n in arrays.values()))
                moments = self._merge({name: writer.array(f"{name}.npy", *form) for name, form in arrays.items()})
                mean, std = (tuple(x.astype(np.float32).tolist()) for x in (moments.mean, moments.std))
                spec = dataclasses.replace(self.spec, mean=mean, std=std)
                content = {**self.plan, "encoder_spec": to_dict(spec), "num_frames": shape[1]}
                remember(self.folder, writer.commit(content))
            # Also what a killed or a slower process left behind; one that still writes there notices that it is late.
            shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        return LatentStore(self.folder)

    def _merge(self, arrays: dict[str, np.ndarray]) -> RunningMoments:
        """Copies the parts into place and gathers statistics, one episode in memory at a time."""
        moments = RunningMoments(self.spec.dim)
        for index, entry in enumerate(self.store.episodes):
            expected, count = layout(self._part_shape(index), self.dtype), entry["num_frames"]
            part = read_npz(self._part(index), tuple(expected))
            for name, (kind, shape) in expected.items():
                if part[name].shape != shape or part[name].dtype != kind:
                    raise UserError(
                        f"{self._part(index)}: {part[name].dtype} of shape {part[name].shape} does not fit the "
                        "episode; delete it and encode again"
                    )
                arrays[name][:, entry["frame_start"] : entry["frame_start"] + count] = part[name][:, :count]
            if self.branch_frames:
                rows = slice(entry["frame_start"], entry["frame_start"] + count)
                arrays[BRANCHES][:, rows] = part[VALUES][:, count:].reshape(self._branch_shape(count))
            moments.update(unpack({name: values[0, :count] for name, values in part.items()}, self.dtype))
        for array in arrays.values():
            array.flush()  # type: ignore[attr-defined]
        return moments

    def _shape(self, frames: int) -> tuple[int, int, int, int]:
        return (self.views.shape[1], frames, self.spec.tokens_per_frame, self.spec.dim)

    def _branch_shape(self, frames: int) -> tuple[int, int, int, int, int]:
        return (self.views.shape[1], frames, self.branch_frames, self.spec.tokens_per_frame, self.spec.dim)

    def _part_shape(self, index: int) -> tuple[int, int, int, int]:
        return self._shape(self.store.episodes[index]["num_frames"] * (1 + self.branch_frames))

    def _part(self, index: int) -> Path:
        return self.folder / PARTS / f"{index:06d}.npz"


def _short(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices[:5])) + (", ..." if len(indices) > 5 else "")


@dataclasses.dataclass(frozen=True)
class _Content:
    """A latent store's manifest, without its files."""

    encoder_spec: dict[str, Any]
    source: str
    backend: str
    views: list[list[tuple[int, int]]]
    num_frames: Annotated[int, Range(0, 1e15)]
    dtype: Packing = "float16"


class LatentStore:
    """A finished latent store, opened for reading: a local folder or a URL (:mod:`wmjax.core.location`).

    Attributes:
        spec: the encoder, with the channel statistics of all frames.
        source: hash of the training store the frames came from.
        backend: "torch" or "jax".
        views: int32 ``[episodes, views, 2]``, (dy, dx) of each view in pixels; view 0 is unshifted.
        dtype: form of the latents (:mod:`wmjax.data.packing`).
        latents: float16, or another form on request, ``[views, frames, tokens, dim]``, a read-only memory map or a
            remote array.
        scale: float32 ``[views, frames, tokens]``, likewise, by which int8 is multiplied; None for the other forms.
        branches: latents of the frames of each frame's branch, ``[views, frames, branch, tokens, dim]``; None if there
            are none.

    Raises:
        UserError: no store there, another version, a missing or truncated file; at a URL also no answer, no
            permission, no package for it.

    """

    def __init__(self, folder: str | Location) -> None:
        self.folder = location(folder)
        self.manifest = read_manifest(self.folder, FORMAT, VERSION, FIX)
        where = str(self.folder / MANIFEST)
        content: _Content = typed(self.manifest, _Content, where, FIX)
        self.spec = from_dict(EncoderSpec, content.encoder_spec, where)
        self.source, self.backend, self.dtype = content.source, content.backend, content.dtype
        with reading(self.folder / MANIFEST, FIX):
            self.views: Int32[np.ndarray, "e v 2"] = np.array(content.views, np.int32)
        self.latents: Rows = open_array(self.folder, self.manifest, f"{VALUES}.npy")
        scaled = self.dtype == "int8"
        self.scale: Rows | None = open_array(self.folder, self.manifest, f"{SCALE}.npy") if scaled else None
        self.branches: Rows | None = None
        if f"{BRANCHES}.npy" in self.manifest["files"]:
            self.branches = open_array(self.folder, self.manifest, f"{BRANCHES}.npy")
        tokens = (self.spec.tokens_per_frame, self.spec.dim)
        if self.views.ndim != 3 or self.latents.shape != (self.views.shape[1], content.num_frames, *tokens):
            raise UserError(
                f"{where}: views have shape {self.views.shape} and latents.npy {self.latents.shape}, which do not "
                f"belong together; {FIX}"
            )
        ahead = self.branches
        if ahead is not None and (ahead.ndim != 5 or (*ahead.shape[:2], *ahead.shape[3:]) != self.latents.shape):
            raise UserError(
                f"{where}: branches.npy has shape {ahead.shape} and latents.npy {self.latents.shape}, which do not "
                f"belong together; {FIX}"
            )

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras whose frames were encoded."""
        return self.spec.cameras

    @property
    def table(self) -> ViewTable:
        """The shifts of the views, without the latents."""
        return ViewTable(self.views, self.cameras)

    @functools.cached_property
    def hash(self) -> str:
        """Identity of the store's whole content."""
        return hash_json(self.manifest)

    def training_spec(
        self, store: TrainingStore, train: Int[np.ndarray, " n"], held_out: Int[np.ndarray, " m"]
    ) -> EncoderSpec:
        """The spec with the channel statistics of the training episodes only.

        They are of the unshifted view, as :attr:`spec`'s. The frames of the smaller side are read.

        Args:
            store: the training store of these latents.
            train: indices of the training episodes.
            held_out: indices of all other episodes.

        """
        tokens = self.spec.tokens_per_frame
        sizes = [sum(store.episodes[int(index)]["num_frames"] for index in side) for side in (train, held_out)]
        if not sizes[1]:
            return self.spec
        if sizes[0] < sizes[1]:
            moments = self._moments(store, train)
            mean, std = (tuple(x.astype(np.float32).tolist()) for x in (moments.mean, moments.std))
        else:
            part = self._moments(store, held_out)
            mean, std = without(self.spec.mean, self.spec.std, sum(sizes) * tokens, part)
        return dataclasses.replace(self.spec, mean=mean, std=std)

    def _moments(self, store: TrainingStore, episodes: Int[np.ndarray, " n"]) -> RunningMoments:
        """The channel moments of some episodes, of which one is in memory at a time."""
        moments = RunningMoments(self.spec.dim)
        for entry in (store.episodes[int(index)] for index in episodes):
            rows = slice(entry["frame_start"], entry["frame_start"] + entry["num_frames"])
            moments.update(np.asarray(self.latents[0, rows]))
        return moments

    def check(self, store: TrainingStore) -> None:
        """Refuses latents that were not made from this training store.

        Raises:
            UserError: frame or episode count, or source hash, differ.

        """
        pairs = (
            ("frame count", self.latents.shape[1], len(store.frame_step)),
            ("episode count", len(self.views), len(store.episodes)),
            ("source hash", self.source, store.hash),
        )
        for name, mine, theirs in pairs:
            if mine != theirs:
                raise UserError(
                    f"{name} differs: {mine} in latent store {self.folder}, {theirs} in {store.folder}; "
                    f"encode the latents again into a new folder"
                )

    def verify(self) -> None:
        """Recomputes every hash.

        Raises:
            UserError: names the file whose bytes changed.

        """
        verify_files(self.folder, self.manifest)

    def verify_once(self) -> None:
        """Recomputes the hashes that :func:`wmjax.core.verified.verify_once` cannot know to be right.

        Raises:
            UserError: names the file whose bytes changed.

        """
        verify_once(self.folder, self.manifest)
