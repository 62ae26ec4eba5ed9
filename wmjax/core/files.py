"""Files that are either complete or absent: atomic writes, locks, hashes, full disks."""

import contextlib
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wmjax.core.errors import UserError, one_line
from wmjax.core.location import Location
from wmjax.core.paths import cache_root
from wmjax.core.reading import read_json, reading

NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
"""What the system says of a path that no file can have."""
CHUNK_BYTES = 1 << 22
LOCK = ".lock"
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
        if error.errno == errno.EFBIG:
            raise UserError(
                f"{path}: larger than its disk or the limit of a file's size (ulimit -f) allows; {fix}"
            ) from error
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
    """Lets one process at a time into the block; the others wait. The lock of a killed process is released.

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
        folder: made if needed; its ``.lock`` names the process that holds it. The lock of a killed process is released.
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
        file = (folder / LOCK).open("a+", encoding="utf-8")
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
        with disk_errors(folder):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically; NaN and infinity are refused because no other JSON reader takes them."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Writes an .npz atomically."""
    save = np.savez_compressed if compressed else np.savez
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        save(file, allow_pickle=False, **arrays)


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
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; rerun the command that writes it") from error
    except Exception as error:  # zipfile, zlib and numpy raise half a dozen kinds for a damaged file
        reason = one_line(error)
        raise UserError(f"{path}: damaged ({reason}); delete it and rerun the command that wrote it") from error
    if missing := sorted(set(names) - set(arrays)):
        raise UserError(
            f"{path}: arrays {', '.join(missing)} are missing; delete it and rerun the command that wrote it"
        )
    return arrays


def sync(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_bytes(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def hash_file(path: Location) -> str:
    """SHA-256 of a file's bytes, in hex, a block in memory at a time."""
    digest = hashlib.sha256()
    _read_into(digest, path)
    return digest.hexdigest()


def hash_files(paths: Iterable[Location], fix: str) -> str:
    """SHA-256 of the bytes of files, one after the other, in hex.

    Raises:
        UserError: one cannot be read; ``fix`` says what to do.

    """
    digest = hashlib.sha256()
    for path in paths:
        with reading(path, fix):
            _read_into(digest, path)
    return digest.hexdigest()


def _read_into(digest: Any, path: Location) -> None:
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)


def hash_json(content: Any) -> str:
    """The first 16 hex digits of the SHA-256 of canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hash_bytes(text.encode())[:16]


def claim_plan(path: Path, plan: Mapping[str, Any], what: str, defaults: Mapping[str, Any] | None = None) -> None:
    """Records the plan of a resumable job, or checks that an earlier run had the same plan.

    Args:
        path: the JSON file that holds the plan.
        plan: plain JSON values.
        what: "latents", "episodes", for the error.
        defaults: the values of a plan that lacks them.

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
    """Refuses a plan that differs from the one that a folder was begun with."""
    for key, value in plan.items():
        if found.get(key) != value:
            difference = f": {found.get(key)!r} there, {value!r} now" if not isinstance(value, list) else ""
            raise UserError(f"{folder}: holds {what} of another {key}{difference}; choose a new folder")
