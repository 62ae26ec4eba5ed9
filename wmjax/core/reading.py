"""Readers of external files, which check the types of their values: JSON, JSON lines, TOML, parquet and HDF5.

Each reader says in one line which file, what is wrong with it and what to do. Types and ranges are those of
:mod:`wmjax.core.settings`. Text is UTF-8 in every locale.
"""

import contextlib
import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmjax.core.errors import UserError, one_line
from wmjax.core.location import Location, Remote
from wmjax.core.settings import convert

if TYPE_CHECKING:
    import h5py
    import pyarrow as pa

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git LFS has not downloaded."""


def what_is_wrong(path: Path, error: BaseException | str) -> str:
    """Why a file cannot be read: what its content is instead, or the error of its reader."""
    try:
        if path.is_dir():
            return "a folder, expected a file"
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except FileNotFoundError:
        return "missing"
    except PermissionError:
        return "no permission to read it"
    except (OSError, ValueError) as cause:  # ValueError: a name that no file can have
        return f"cannot be read ({cause})"
    if not start:
        return "empty"
    if start == LFS_POINTER:
        return "a Git LFS pointer instead of the file; run `git lfs pull` where it was cloned"
    return f"truncated or damaged ({one_line(error)})"


@contextlib.contextmanager
def reading(path: Location, fix: str) -> Iterator[None]:
    """Turns any error of a file's reader into a one-line error: the file, what is wrong with it, and the fix."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the parsers of damaged files raise a dozen kinds
        if isinstance(path, Remote):
            raise UserError(f"{path}: damaged ({one_line(error)}); {fix}") from error
        raise UserError(f"{path}: {what_is_wrong(Path(path), error)}; {fix}") from error


def read_text(path: Location, fix: str) -> str:
    """A file's text, without the byte order mark that some Windows editors write.

    Raises:
        UserError: missing, a folder, not readable, not UTF-8.

    """
    if isinstance(path, Remote):
        with reading(path, fix):
            return path.read_text(encoding="utf-8-sig")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); {fix}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {what_is_wrong(path, error)}; {fix}") from error


def parse_json(text: str | bytes, hint: Any, where: str, fix: str) -> Any:
    """A value from JSON text, as an annotated type; keys that a dataclass does not have are ignored.

    Args:
        text: of the file, the attribute or the line.
        hint: a dataclass, ``dict[str, int]``, ``list[Any]``, ...
        where: what is named in errors.
        fix: what the user should do then.

    Raises:
        UserError: not JSON, a missing key, a value of another type or outside its range.

    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError, TypeError) as error:
        pointer = text.startswith(LFS_POINTER.decode() if isinstance(text, str) else LFS_POINTER)  # type: ignore[arg-type]
        reason = "a Git LFS pointer, run `git lfs pull`" if pointer else f"not valid JSON ({error})"
        raise UserError(f"{where}: {reason}; {fix}") from error
    return typed(value, hint, where, fix)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; duplicate keys are refused as ambiguous."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return found


def typed(value: Any, hint: Any, where: str, fix: str) -> Any:
    """A plain value as an annotated type; keys that a dataclass does not have are ignored.

    Raises:
        UserError: a missing key, a value of another type or outside its range.

    """
    try:
        return convert(value, hint, "", surplus=True)
    except UserError as error:
        raise UserError(f"{where}: {error}; {fix}") from error


def read_json(path: Location, hint: Any, fix: str) -> Any:
    """A JSON file as an annotated type, see :func:`parse_json`.

    Raises:
        UserError: missing, unreadable, not JSON, or of another type.

    """
    return parse_json(read_text(path, fix), hint, str(path), fix)


def read_json_lines(path: Location, hint: Any, fix: str) -> list[Any]:
    """A file of one JSON value per line, each as an annotated type; empty lines are ignored.

    Raises:
        UserError: see :func:`read_json`; names the line.

    """
    # Not str.splitlines, which cuts at U+2028 and U+0085 too, as JSON strings may hold.
    lines = enumerate(read_text(path, fix).split("\n"), 1)
    return [parse_json(line, hint, f"{path}:{number}", fix) for number, line in lines if line.strip()]


def read_toml(path: Path, hint: Any, fix: str) -> Any:
    """A TOML file as an annotated type.

    Raises:
        UserError: missing, unreadable, not valid TOML, or of another type.

    """
    try:
        return typed(tomllib.loads(read_text(path, fix)), hint, str(path), fix)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML ({error}); {fix}") from error


@contextlib.contextmanager
def open_hdf5(path: Path, fix: str) -> "Iterator[h5py.File]":
    """Opens an HDF5 file for reading; errors that h5py raises in the block become one-line errors."""
    import h5py

    with reading(path, fix):
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            if "unable to lock file" not in str(error):
                raise
            raise UserError(
                f"{path}: another program has it open for writing, or its file system has no locks; close it there, "
                "or set the environment variable HDF5_USE_FILE_LOCKING to FALSE"
            ) from error
        with file:
            yield file


def read_parquet(path: Path, columns: Sequence[str], fix: str, *, rows_of: int | None = None) -> "pa.Table":
    """Columns of a parquet file, of one episode's rows on request (row groups without it are not read).

    Args:
        path: of the file.
        columns: names.
        fix: what the user should do if it cannot be read.
        rows_of: value of the column ``episode_index``.

    Raises:
        UserError: missing, truncated or damaged file, or a column that is not in it.

    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with reading(path, fix), pq.ParquetFile(path.absolute()) as file:
        wanted = list(dict.fromkeys([*columns, *(["episode_index"] if rows_of is not None else [])]))
        names = file.schema_arrow.names
        if missing := sorted(set(wanted) - set(names)):
            raise UserError(f"{path}: columns {', '.join(missing)} are missing; {fix}")
        if doubled := [name for name in wanted if names.count(name) > 1]:
            raise UserError(f"{path}: columns {', '.join(doubled)} occur more than once; {fix}")
        table = file.read(wanted) if rows_of is None else file.read_row_groups(_groups(file, rows_of), wanted)
        # A damaged text column is read without complaint and fails where its cells are decoded.
        table.validate(full=True)
        return table if rows_of is None else table.filter(pc.equal(table["episode_index"], rows_of))


def parquet_columns(path: Path, fix: str) -> list[str]:
    """The names of a parquet file's columns.

    Raises:
        UserError: missing, truncated or damaged file.

    """
    import pyarrow.parquet as pq

    with reading(path, fix), pq.ParquetFile(path.absolute()) as file:
        return list(file.schema_arrow.names)


def _groups(file: Any, episode: int) -> list[int]:
    """The row groups that may hold an episode, by their statistics."""
    leaves = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)]
    column = leaves.index("episode_index")
    groups = []
    for number in range(file.metadata.num_row_groups):
        statistics = file.metadata.row_group(number).column(column).statistics
        if statistics is None or not statistics.has_min_max or statistics.min <= episode <= statistics.max:
            groups.append(number)
    return groups
