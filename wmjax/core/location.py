"""The location of a store or of a run: a local folder, or a URL that fsspec supports, such as ``gs://bucket/demos``.

:class:`Remote` is the part of :class:`pathlib.Path` that reading a store needs, so that the same code reads folders
and URLs; :class:`RemoteArray` is the corresponding part of a memory map. Only copies of runs are written to a URL
(:mod:`wmjax.trainer.mirror`).
"""

import contextlib
import dataclasses
import errno
import io
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.paths import expand

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
BACKENDS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "http": "aiohttp", "https": "aiohttp"}
"""The pip package for a URL's scheme."""
GAP_BYTES = 1 << 18
"""Rows this close are one request: at 100 MB/s they come sooner than the answer to another one."""
HEADER_BYTES = 4096
"""Enough for the header of any array that numpy writes here (128 bytes, more only with many axes or fields)."""
STREAM_BYTES = 1 << 25


class MissingError(UserError, FileNotFoundError):
    """The object does not exist; uncaught, the error prints as one line."""


@dataclasses.dataclass(frozen=True)
class Remote:
    """A URL, with the methods of :class:`pathlib.Path` that reading a store needs.

    Holds no connection: fsspec keeps one per process, so that a Remote may be used by several threads, pickled,
    and used after a fork.

    Every method that touches the network raises a one-line UserError: no package for the scheme, no such object
    (:class:`MissingError`), no permission, no answer.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "Remote":
        return dataclasses.replace(self, url=f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    def resolve(self) -> "Remote":
        """Returns itself, because a URL is absolute."""
        return self

    def size(self) -> int:
        """Bytes of the object."""
        with self._access() as (fs, path):
            return int(fs.info(path)["size"])

    def read_bytes(self) -> bytes:
        """The whole object."""
        with self._access() as (fs, path):
            return bytes(fs.cat_file(path))

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole object, UTF-8."""
        return self.read_bytes().decode(encoding)

    @contextlib.contextmanager
    def open(self, mode: str = "rb") -> Iterator[IO[bytes]]:
        """A stream from the object's beginning, a few tens of megabytes in memory at a time."""
        with self._access() as (fs, path), fs.open(path, mode, block_size=STREAM_BYTES) as file:
            yield file

    def read_ranges(self, starts: list[int], ends: list[int]) -> list[bytes]:
        """Bytes ``starts[i]`` to ``ends[i]``, all requested at once if the file system can.

        Raises:
            UserError: also if the object ends before one of them does.

        """
        with self._access() as (fs, path):
            blocks = fs.cat_ranges([path] * len(starts), starts, ends, on_error="raise")
        for block, start, end in zip(blocks, starts, ends, strict=True):
            if isinstance(block, Exception):  # some file systems return errors in spite of the argument
                with self._access():
                    raise block
            if len(block) > end - start:
                raise UserError(
                    f"{self}: {len(block)} bytes for a request of bytes {start} to {end}: its server ignores ranges, "
                    "as python -m http.server does; use another server, or copy the store to a disk"
                )
            if len(block) != end - start:
                raise UserError(f"{self}: ends at byte {start + len(block)}, truncated; copy the whole store again")
        return blocks

    def files(self) -> list[str]:
        """Names of all objects below it, relative to it; none if there is nothing.

        Raises:
            UserError: also if it is an object itself, or has a name that leads out of a folder.

        """
        with self._access() as (fs, path):
            fs.invalidate_cache()
            found = [name for name in fs.find(path) if not name.endswith("/")]  # such ones are a console's folders
        names = sorted(name[len(path) :].lstrip("/") for name in found)
        if "" in names:
            raise UserError(f"{self}: a file, not a folder; name the folder")
        if outside := [name for name in names if ".." in name.split("/")]:
            raise UserError(f"{self}: holds an object named {outside[0]!r}, which is not a file below it; remove it")
        return names

    def download(self, folder: Path, names: Sequence[str]) -> None:
        """Copies objects below it to files of the same names below a folder."""
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with self._access(f"copied to {folder}") as (fs, path):
            fs.get([f"{path}/{name}" for name in names], [str(folder / name) for name in names])

    def upload(self, folder: Path, names: Sequence[str]) -> None:
        """Copies files below a folder to objects of the same names below it, and returns when all are complete.

        An object appears when it is whole; so do files, which are written under a hidden name first.
        """
        with self._access("written") as (fs, path):
            for parent in sorted({f"{path}/{name}".rpartition("/")[0] for name in names}):
                fs.makedirs(parent, exist_ok=True)  # an object store has no folders, a file system has
            targets = [f"{path}/{name}" for name in names]
            if "file" not in fs.protocol:
                fs.put([str(folder / name) for name in names], targets)
                return
            for name, target in zip(names, map(Path, targets), strict=True):
                temporary = target.with_name(f".{target.name[:200]}.tmp")
                shutil.copyfile(folder / name, temporary)
                temporary.replace(target)

    def remove(self, names: Sequence[str]) -> None:
        """Removes objects below it, in this order."""
        with self._access("written") as (fs, path):
            for name in names:
                fs.rm_file(f"{path}/{name}")

    @contextlib.contextmanager
    def _access(self, what: str = "read") -> Iterator[tuple[Any, str]]:
        """The file system and the path on it; every error in the block becomes a UserError."""
        import fsspec

        try:
            # Again for every access: fsspec caches the instance, and gives a forked process another one.
            yield fsspec.core.url_to_fs(self.url)
        except UserError:
            raise
        except FileNotFoundError as error:
            if what == "written":
                raise UserError(f"{self}: cannot be written ({_line(error)}); check the URL") from error
            raise MissingError(f"{self}: missing; copy the whole store there, manifest.json last") from error
        except ImportError as error:
            scheme = self.url.split("://")[0]
            package = BACKENDS.get(scheme)
            fix = f"pip install {package}" if package else f"install what fsspec needs for it ({_line(error)})"
            raise UserError(f"{self}: {scheme}:// needs a package that is not installed; {fix}") from error
        except PermissionError as error:
            raise UserError(
                f"{self}: cannot be {what}, no permission ({_line(error)}); log in, or ask its owner"
            ) from error
        except Exception as error:  # every backend has its own kinds
            if (scheme := self.url.split("://")[0]) not in fsspec.available_protocols():
                raise unknown_name(f"scheme of {self}:", scheme, [*BACKENDS, "file", "memory"]) from error
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"{self}: cannot be {what}, no disk space left; free some space") from error
            cause = f"{type(error).__name__}: {_line(error)}"
            fix = "check the URL, the network and the credentials"
            raise UserError(f"{self}: cannot be {what} ({cause}); {fix}") from error


Location = Path | Remote


def location(place: str | Location) -> Location:
    """The location that a text of the command line or of a config names: a URL, or else a path.

    Two spellings of one URL, such as with and without a last slash, are the same place.

    Raises:
        UserError: a URL that names nothing, or a ``file://`` that does not begin at the root.

    """
    if isinstance(place, str) and URL.match(place):
        scheme, _, rest = place.partition("://")
        scheme, rest = scheme.lower(), rest.rstrip("/")
        if scheme == "file":
            if not rest.startswith("/"):
                raise UserError(f"{place}: no absolute path; write file:///FOLDER, with three slashes")
            rest = os.path.normpath(rest)
        if not rest:
            raise UserError(f"{place}: names no place; write {scheme}://BUCKET/FOLDER")
        return Remote(f"{scheme}://{rest}")
    return place if isinstance(place, Remote) else expand(place)


def local(place: str | Location) -> Path:
    """A local path to write to.

    Raises:
        UserError: a URL.

    """
    place = location(place)
    if isinstance(place, Remote):
        raise UserError(
            f"{place}: wmjax writes to local folders only; write to one and copy it there, manifest.json after the rest"
        )
    return place


def _line(error: Exception) -> str:
    """An error's message, shortened to a part of a line."""
    return " ".join(str(error).split())[:200]


class RemoteArray:
    """A ``.npy`` at a URL that reads only the requested rows; it has the memory map's methods that readers use.

    Indexed by integers, slices and integer arrays from the first axis on, as numpy does it, except that a slice and
    an array do not go together. The trailing axes that the index leaves out are one row; neighbouring rows are one
    request, and all requests of an index are sent together. Rows are fresh arrays, as those of a memory map's fancy
    index are.

    Attributes:
        shape: of the whole array.
        dtype: of its elements.

    Raises:
        UserError: not there, not a plain C-ordered ``.npy``, not of the size that its header says.

    """

    def __init__(self, place: Remote, size: int) -> None:
        """Reads the header.

        Args:
            place: the ``.npy``.
            size: its bytes, as the store's manifest has them.

        """
        self.place = place
        header = io.BytesIO(place.read_ranges([0], [min(HEADER_BYTES, size)])[0])
        try:
            version = np.lib.format.read_magic(header)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            self.shape, fortran, self.dtype = read(header)
        except (ValueError, KeyError) as error:
            raise UserError(f"{place}: no .npy of numpy's formats 1 or 2 ({error}); copy it again") from error
        self._start = header.tell()
        if fortran or self.dtype.hasobject or self._start + math.prod(self.shape) * self.dtype.itemsize != size:
            raise UserError(f"{place}: {size} bytes are not a plain {self.dtype} array {self.shape}; copy it again")

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """The whole array, downloaded.

        Raises:
            ValueError: ``copy=False``, which cannot be.

        """
        if copy is False:
            raise ValueError(f"{self.place}: a remote array has no memory to share")
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, key: Any) -> np.ndarray:
        rows = self._rows(key if isinstance(key, tuple) else (key,))
        tail = self.shape[len(key) if isinstance(key, tuple) else 1 :]
        size = math.prod(tail) * self.dtype.itemsize
        wanted, where = np.unique(rows, return_inverse=True)
        found = np.empty((len(wanted), size), np.uint8)
        if found.size:
            self._fetch(wanted, size, found)
        if not np.array_equal(wanted, rows.ravel()):
            found = found[where.ravel()]
        return found.view(self.dtype).reshape((*rows.shape, *tail))

    def _rows(self, key: tuple[Any, ...]) -> np.ndarray:
        """The numbers of the rows that an index selects, in the shape of the result's leading axes."""
        if len(key) > self.ndim:
            raise IndexError(f"{len(key)} indices for {self.ndim} axes")
        slices, rows = sum(isinstance(part, slice) for part in key), np.zeros((), np.int64)
        for axis, (part, length) in enumerate(zip(key, self.shape, strict=False)):
            if isinstance(part, slice):
                after = sum(isinstance(other, slice) for other in key[axis + 1 :])
                rows = rows * length + np.arange(length)[part].reshape(-1, *[1] * after)
                continue
            index = np.asarray(part)
            if index.dtype.kind not in "iu" or (slices and index.ndim):
                raise IndexError(f"a remote array takes integers with slices or integer arrays, not {key!r}")
            if index.size and not (-length <= index.min() and index.max() < length):
                raise IndexError(f"index {part!r} is out of bounds for axis {axis} with size {length}")
            rows = rows * length + np.where(index < 0, index + length, index).astype(np.int64)
        return np.asarray(rows)

    def _fetch(self, wanted: np.ndarray, size: int, into: np.ndarray) -> None:
        """Reads rows of ``size`` bytes, numbered in ascending order, into ``[len(wanted), size]``."""
        breaks = np.flatnonzero((np.diff(wanted) - 1) * size > GAP_BYTES) + 1
        groups = np.split(np.arange(len(wanted)), breaks)
        starts = [self._start + int(wanted[group[0]]) * size for group in groups]
        ends = [self._start + (int(wanted[group[-1]]) + 1) * size for group in groups]
        for group, block in zip(groups, self.place.read_ranges(starts, ends), strict=True):
            rows = np.frombuffer(block, np.uint8).reshape(-1, size)
            into[group] = rows[wanted[group] - wanted[group[0]]]


Rows = np.ndarray | RemoteArray
"""A store's large array, as its readers index it."""
