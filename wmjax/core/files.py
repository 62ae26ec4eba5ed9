"""Files that are either complete or absent: atomic writes, folders with an integrity manifest, full disks.

The training store and the latent store are built on this module. A store is a folder of arrays and a ``manifest.json``
that lists every file with its size and SHA-256. The manifest is written last: a folder without one is no store, and a
folder with one was complete when it was written.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import numpy as np
from numpy.typing import DTypeLike

from wmjax.core.errors import UserError, one_line
from wmjax.core.location import Location, Remote, RemoteArray, Rows, local
from wmjax.core.paths import cache_root
from wmjax.core.reading import read_json, reading, typed
from wmjax.core.settings import Range

MANIFEST, LOCK = "manifest.json", ".lock"
NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
"""What the system says of a path that no file can have."""
CHUNK_BYTES = 1 << 22
REBUILD = "copy the store there again, or rebuild it"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What a file system without locks answers."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full, read-only or forbidden disk into a UserError that names the path."""
    try:
        cached = Path(path).is_relative_to(cache_root())
    except UserError:
        cached = False
    fix = "set WMJAX_CACHE to another folder" if cached else "choose another folder"
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: no disk space left; free some space or {fix}") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UserError(f"{path}: not writable ({error.strerror}); {fix}") from error
        if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError) or error.errno in NO_NAME:
            raise UserError(f"{path}: cannot be written ({error.strerror}); {fix}") from error
        raise


def require_space(folder: Path, needed: int) -> None:
    """Refuses to start writing ``needed`` bytes that cannot fit.

    Raises:
        UserError: fewer bytes are free on the folder's disk.

    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free; "
            f"free some space or choose another folder"
        )


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path that becomes ``path`` when the block succeeds and vanishes when it fails."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Lets one process at a time into the block; the others wait. What a killed process held is free again.

    Raises:
        UserError: the file system has no locks.

    """
    with lock.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise UserError(
                f"{lock.parent}: its file system has no locks ({error.strerror}); write to another and copy it then"
            ) from error
        yield


@contextlib.contextmanager
def owned(folder: Path, what: str, fix: str) -> Iterator[None]:
    """Makes this process the only one that is inside the block for a folder, or refuses at once.

    Args:
        folder: made if needed; its ``.lock`` says who holds it. What a killed process held is free again.
        what: for the error, such as ``run``.
        fix: for the error: how to do without.

    Raises:
        UserError: another process holds it; its number and host are named. Or it is a file, or cannot be written to.

    """
    with disk_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{what} {folder} is a file, or below one; {fix}") from error
        file = (folder / LOCK).open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{what} {folder} is in use by {holder}; wait until it ends, or {fix}") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            text = "%s: its file system has no locks (%s); make sure that nothing else writes there"
            logging.getLogger("wmjax").warning(text, folder, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically; NaN and infinity are refused because no other JSON reader takes them."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an uncompressed .npz atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_npz(path: Path | io.BytesIO, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Reads a whole .npz, never executing pickle.

    Args:
        path: of the file.
        names: arrays that must be in it.

    Raises:
        UserError: missing, truncated, not an .npz, or one without those arrays.

    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := sorted(set(names) - set(archive.files)):
                raise UserError(
                    f"{path}: arrays {', '.join(missing)} are missing; delete it and rerun the command that wrote it"
                )
            return {name: archive[name] for name in archive.files}
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; rerun the command that writes it") from error
    except Exception as error:  # zipfile, zlib and numpy raise half a dozen kinds for a damaged file
        reason = one_line(error)
        raise UserError(f"{path}: damaged ({reason}); delete it and rerun the command that wrote it") from error


def sync(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Location) -> str:
    """SHA-256 of a file's bytes, in hex, a block in memory at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def hash_json(content: Any) -> str:
    """The first 16 hex digits of the SHA-256 of canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def claim_plan(path: Path, plan: Mapping[str, Any], what: str, defaults: Mapping[str, Any] | None = None) -> None:
    """Writes down what a resumable job is making, or checks that an earlier run was making the same.

    Args:
        path: the JSON file that holds the plan.
        plan: plain JSON values.
        what: "latents", "episodes", for the error.
        defaults: what a plan that does not say a value means.

    Raises:
        UserError: the folder was begun under another plan; nothing is overwritten.

    """
    if not path.exists():
        write_json(path, plan)
        return
    defaults = defaults or {}
    found = read_json(path, dict[str, Any], f"delete the folder {path.parent} and start again")
    require_plan({**defaults, **found}, {**defaults, **plan}, path.parent, what)


def require_plan(found: Mapping[str, Any], plan: Mapping[str, Any], folder: Path, what: str) -> None:
    """Refuses a plan that differs from the one a folder was begun under."""
    for key, value in plan.items():
        if found.get(key) != value:
            shown = f": {found.get(key)!r} there, {value!r} now" if not isinstance(value, list) else ""
            raise UserError(f"{folder}: holds {what} of another {key}{shown}; choose a new folder")


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
        with contextlib.ExitStack() as held:
            held.enter_context(disk_errors(self.folder))
            self.folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(only_one(self.folder / LOCK))
            # Whoever wrote there is dead: it held the lock.
            for stale in self.folder.glob(".staging-*"):
                shutil.rmtree(stale)
            for unfinished in self.folder.glob(".*.tmp"):
                unfinished.unlink(missing_ok=True)
            self.staging.mkdir()
            self._held = held.pop_all()
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
    """What a manifest says of a file."""

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
            raise UserError(f"{path}: files has {name!r}, which is no plain file name; {fix}")
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
    """Refuses bytes that are not those that were written."""
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
    """A store's large .npy: a read-only memory map, or at a URL an array that requests the rows it is asked for."""
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
    _require_hash(path, hashlib.sha256(content).hexdigest(), manifest["files"][name]["sha256"])
    return io.BytesIO(content)
