"""Stores: folders of arrays with a ``manifest.json`` that lists every file with its size and SHA-256.

The training store and the latent store are built on this module. The manifest is written last: a folder without one is
no store, and a folder with one was complete when it was written.
"""

import contextlib
import dataclasses
import io
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import numpy as np
from numpy.typing import DTypeLike

from wmjax.core.errors import UserError
from wmjax.core.files import LOCK, disk_errors, hash_bytes, hash_file, only_one, sync, write_json
from wmjax.core.location import Location, Remote, RemoteArray, Rows, local
from wmjax.core.reading import read_json, reading, typed
from wmjax.core.settings import Range

MANIFEST = "manifest.json"
REBUILD = "copy the store there again, or rebuild it"


class StoreWriter:
    """Builds the files of a store in a staging folder and moves them into place at once.

    Use as a context manager; nothing of the store changes before :meth:`commit`, and leaving the block
    without it (an error, a kill) leaves the previous store as it was. One process at a time is inside the block;
    the others wait, and should look whether there is still something to do.
    """

    def __init__(self, folder: Path, kind: str, version: int) -> None:
        self.folder, self.kind, self.version = local(folder), kind, version
        self.staging = self.folder / f".staging-{secrets.token_hex(4)}"
        self._held = contextlib.ExitStack()
        self._names: list[str] = []

    def __enter__(self) -> "StoreWriter":
        with contextlib.ExitStack() as stack:
            stack.enter_context(disk_errors(self.folder))
            self.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(only_one(self.folder / LOCK))
            # The process that wrote these is dead, because it held the lock.
            for stale in self.folder.glob(".staging-*"):
                shutil.rmtree(stale)
            for unfinished in self.folder.glob(".*.tmp"):
                unfinished.unlink(missing_ok=True)
            self.staging.mkdir()
            self._held = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)
        self._held.__exit__(kind, error, trace)

    def array(self, name: str, dtype: DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
        """A new zeroed .npy of the store as a writable memory map."""
        return np.lib.format.open_memmap(self.path(name), mode="w+", dtype=np.dtype(dtype), shape=shape)

    def save(self, name: str, array: np.ndarray) -> None:
        """Writes one .npy of the store."""
        np.save(self.path(name), array, allow_pickle=False)

    def path(self, name: str) -> Path:
        """The path to write the store's file of that name to, until the commit."""
        if name not in self._names:
            self._names.append(name)
        return self.staging / name

    def commit(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Hashes and moves the files into place, the manifest last, which is returned; memory maps must be flushed."""
        files = {}
        for name in self._names:
            path = self.staging / name
            sync(path)
            files[name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        manifest = {"format": self.kind, "version": self.version, **content, "files": files}
        # Between here and the last line the folder has no manifest, hence no store, rather than a mixed one.
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for name in self._names:
            (self.staging / name).replace(self.folder / name)
        sync(self.folder)
        write_json(self.folder / MANIFEST, manifest)
        return manifest


@dataclasses.dataclass(frozen=True)
class _File:
    """A manifest's entry of a file."""

    bytes: Annotated[int, Range(0, 1e18)]
    sha256: str


def read_manifest(folder: Location, kind: str, version: int, fix: str) -> dict[str, Any]:
    """Reads and checks a store's manifest, and that its files exist at their full size.

    Args:
        folder: the store.
        kind: the expected ``format``.
        version: the expected format version.
        fix: what the user should run, for the error.

    Raises:
        UserError: no store there, another format or version, a missing or truncated file.

    """
    path = folder / MANIFEST
    if isinstance(folder, Path) and not folder.is_dir() and folder.exists():
        raise UserError(f"{folder}: a file; name the folder of a {kind}")
    if isinstance(path, Path) and not path.exists():
        raise UserError(f"{folder}: no {kind} there ({MANIFEST} is missing); {fix}")
    try:
        manifest = read_json(path, dict[str, Any], fix)
    except FileNotFoundError as error:  # a URL's, a UserError too
        raise UserError(f"{folder}: no {kind} there ({MANIFEST} is missing); {fix}") from error
    if manifest.get("format") != kind:
        raise UserError(f"{path}: format is not {kind!r}; choose a folder with a {kind}, or {fix}")
    if manifest.get("version") != version:
        raise UserError(f"{path}: version is {manifest.get('version')!r}, this wmjax reads {version}; {fix}")
    files = typed(manifest.get("files"), dict[str, _File], f"{path}: files", fix)
    for name, entry in files.items():
        if name != os.path.basename(name) or name in ("", ".", ".."):  # noqa: PTH119, a name and no path
            raise UserError(f"{path}: files has {name!r}, which is not a plain file name; {fix}")
        _check_size(folder / name, entry.bytes, fix)
    return manifest


def _check_size(path: Location, expected: int, fix: str) -> None:
    """Refuses a missing or truncated file."""
    try:
        size = path.size() if isinstance(path, Remote) else path.stat().st_size
    except FileNotFoundError:
        size = None
    if size != expected:
        state = "missing" if size is None else f"{size} bytes, its manifest says {expected}"
        raise UserError(f"{path}: {state}; {'copy it there again' if isinstance(path, Remote) else fix}")


def verify_files(folder: Location, manifest: Mapping[str, Any], names: Sequence[str] | None = None) -> None:
    """Recomputes the SHA-256 of a store's files (all, or those named).

    Raises:
        UserError: names the first file whose bytes are not those that were written.

    """
    for name in names if names is not None else manifest["files"]:
        with reading(folder / name, "copy it there again"):
            found = hash_file(folder / name)
        _require_hash(folder / name, found, manifest["files"][name]["sha256"])


def _require_hash(path: Location, actual: str, expected: str) -> None:
    """Refuses bytes whose hash differs from that of the written ones."""
    if actual != expected:
        fix = "copy it there again" if isinstance(path, Remote) else "rebuild the store"
        raise UserError(
            f"{path}: sha256 is {actual[:16]}, its manifest says {expected[:16]}; "
            f"the file was changed or damaged, {fix}"
        )


def _require_named(folder: Location, manifest: Mapping[str, Any], name: str) -> None:
    """Refuses a store whose manifest does not list a file that it must have."""
    if name not in manifest["files"]:
        raise UserError(f"{folder / MANIFEST}: files lacks {name!r}; {REBUILD}")


def open_array(folder: Location, manifest: Mapping[str, Any], name: str) -> Rows:
    """A store's large .npy: a read-only memory map, or at a URL an array that fetches only the indexed rows."""
    path = folder / name
    _require_named(folder, manifest, name)
    if isinstance(path, Remote):
        return RemoteArray(path, manifest["files"][name]["bytes"])
    with reading(path, REBUILD):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def read_array(folder: Location, manifest: Mapping[str, Any], name: str) -> np.ndarray:
    """A store's small .npy, in memory.

    Raises:
        UserError: see :func:`load_from`.

    """
    with reading(folder / name, REBUILD):
        return np.load(load_from(folder, manifest, name), allow_pickle=False)


def load_from(folder: Location, manifest: Mapping[str, Any], name: str) -> Path | io.BytesIO:
    """The source from which numpy loads a store's small file: its path, or the bytes at a URL, whose hash is checked.

    Raises:
        UserError: at a URL: missing, unreachable, or bytes that are not those that were written.

    """
    path = folder / name
    _require_named(folder, manifest, name)
    if not isinstance(path, Remote):
        return path
    content = path.read_bytes()
    _require_hash(path, hash_bytes(content), manifest["files"][name]["sha256"])
    return io.BytesIO(content)
