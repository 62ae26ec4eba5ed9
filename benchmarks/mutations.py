"""Damage to files, as disks, transfers, editors and other programs do it. Deterministic for a given random stream."""

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wmjax.core.reading import LFS_POINTER

Mutation = Callable[[random.Random, Path, list[Path]], None]
"""Damages a file in place. The last argument are other files, for what exchanges them."""

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**20, 10**400, 0.5, -0.0, 1e300, float("nan"), float("inf"),
    float("-inf"), "", "x", "0", "nan", "../..", "/", "a\0b", "\u2028", "ü", "x" * 5000, [], [[]], [None], [0, "x"], {},
    {"": None}, {"a": {"a": {"a": []}}},
)  # fmt: skip
"""JSON values that are not what was there."""
TEXTS = (b"", b"[]", b"{}", b"null", b"\xff\xfe\x00", b"<html>", b'{"a":', b"\x00" * 64, b"\n\n", b"[" * 5000)


def bits(draw: random.Random, path: Path, others: list[Path]) -> None:
    """One to eight flipped bits."""
    data = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 8) if data else 0):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def overwritten(draw: random.Random, path: Path, others: list[Path]) -> None:
    """A block of noise somewhere."""
    data = path.read_bytes()
    start = draw.randrange(len(data) + 1)
    path.write_bytes(data[:start] + draw.randbytes(draw.randint(1, 64)) + data[start + draw.randint(0, 64) :])


def cut(draw: random.Random, path: Path, others: list[Path]) -> None:
    """What is behind a random byte is gone."""
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))] if data else data)


def beginning(draw: random.Random, path: Path, others: list[Path]) -> None:
    """The first bytes are gone or others."""
    path.write_bytes(draw.randbytes(draw.randint(0, 16)) + path.read_bytes()[draw.randint(0, 64) :])


def other_text(draw: random.Random, path: Path, others: list[Path]) -> None:
    """Something else altogether."""
    path.write_bytes(draw.choice(TEXTS))


def pointer(draw: random.Random, path: Path, others: list[Path]) -> None:
    """A clone without Git LFS."""
    path.write_bytes(LFS_POINTER + b"v1\noid sha256:0\nsize 3\n")


def deleted(draw: random.Random, path: Path, others: list[Path]) -> None:
    """The file is gone."""
    path.unlink()


def folder(draw: random.Random, path: Path, others: list[Path]) -> None:
    """A folder in its place."""
    path.unlink()
    path.mkdir()


def exchanged(draw: random.Random, path: Path, others: list[Path]) -> None:
    """Another file in its place."""
    shutil.copyfile(draw.choice(others or [path]), path)


def twice(draw: random.Random, path: Path, others: list[Path]) -> None:
    """Written twice, one behind the other."""
    path.write_bytes(path.read_bytes() * 2)


def latin(draw: random.Random, path: Path, others: list[Path]) -> None:
    """A letter of another encoding."""
    data = path.read_bytes()
    place = draw.randrange(len(data) + 1)
    path.write_bytes(data[:place] + b"\xfc" + data[place:])


def lines_moved(draw: random.Random, path: Path, others: list[Path]) -> None:
    """Lines left out, repeated and in another order."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(draw.choices(lines, k=max(1, len(lines) + draw.randint(-2, 2)))) if lines else b"")


def json_value(draw: random.Random, path: Path, others: list[Path]) -> None:
    """Replaces a value of JSON, or of one line of JSON lines, or removes its key."""
    lines = [path.read_text(encoding="utf-8")] if path.suffix == ".json" else path.read_text("utf-8").splitlines()
    number = draw.randrange(len(lines))
    value = json.loads(lines[number])
    holder = {"value": value}
    places = list(_places(holder))
    container, key = draw.choice(places)
    if draw.random() < 0.25 and container is not holder:
        del container[key]
    else:
        container[key] = draw.choice(ODD)
    # 10**400 is a valid number of JSON that no double holds.
    lines[number] = json.dumps(holder["value"])
    path.write_text("\n".join(lines), encoding="utf-8")


def _places(value: Any) -> Any:
    """Every container in nested JSON with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def toml_value(draw: random.Random, path: Path, others: list[Path]) -> None:
    """Replaces a value of TOML, or removes a line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    number = draw.choice([i for i, line in enumerate(lines) if "=" in line] or [0])
    name = lines[number].partition("=")[0]
    values = (
        "-1",
        "nan",
        "inf",
        "1e300",
        '""',
        '"x"',
        "[]",
        "{}",
        "true",
        "99999999999999999999",
        "= 3",
        "1979-05-27",
        "",
    )
    lines[number] = f"{name}= {draw.choice(values)}" if draw.random() < 0.9 else ""
    path.write_text("\n".join(lines), encoding="utf-8")


def parquet_column(draw: random.Random, path: Path, others: list[Path]) -> None:
    """A column of parquet is gone, of another type, null, or in another order."""
    table = pq.read_table(path)
    name = draw.choice(table.column_names)
    place, rows = table.column_names.index(name), table.num_rows
    kind = draw.choice(["gone", "null", "text", "float", "list", "order", "rows", "nan"])
    if kind == "gone":
        table = table.remove_column(place)
    elif kind == "order":
        table = table.take(pa.array(draw.sample(range(rows), rows)))
    elif kind == "rows":
        table = table.slice(draw.randrange(rows + 1))
    else:
        columns = {
            "null": pa.nulls(rows),
            "text": pa.array(["x"] * rows),
            "float": pa.array([0.5] * rows),
            "list": pa.array([[1]] * rows),
            "nan": pa.array([[float("nan")] * 7] * rows),
        }
        table = table.set_column(place, name, columns[kind])
    pq.write_table(table, path)


def hdf5_entry(draw: random.Random, path: Path, others: list[Path]) -> None:
    """A data set, group or attribute of HDF5 is gone or something else."""
    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        name = draw.choice(names)
        if file[name].attrs and draw.random() < 0.5:
            attribute = draw.choice(list(file[name].attrs))
            file[name].attrs[attribute] = draw.choice(["", "[]", "{}", "null", 3, b"\xff", np.zeros(3)])
            return
        del file[name]
        values = (
            None,
            np.zeros(0),
            3.0,
            "x",
            h5py.Empty("f8"),
            np.zeros((8, 9)),
            np.full((8, 7), np.nan),
            np.zeros((3, 7)),
        )
        value = draw.choice(values)
        if value is not None:
            file[name] = value
        elif draw.random() < 0.5:
            file.create_group(name)


def npz_entry(draw: random.Random, path: Path, others: list[Path]) -> None:
    """Removes or replaces an array of an NPZ archive; the archive itself stays intact."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    name = draw.choice(sorted(arrays))
    value = draw.choice([None, np.zeros(0), np.zeros((3, 3)), np.array("x"), np.array(b"{}"), np.full(4, np.nan)])
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(buffer.getvalue())


ANY: tuple[Mutation, ...] = (
    bits, overwritten, cut, beginning, other_text, pointer, deleted, folder, exchanged, twice, latin,
)  # fmt: skip
"""Of every file."""
BY_ENDING: dict[str, tuple[Mutation, ...]] = {
    ".json": (json_value,) * 8,
    ".jsonl": (json_value,) * 6 + (lines_moved,) * 2,
    ".toml": (toml_value,) * 6 + (lines_moved,) * 2,
    ".parquet": (parquet_column,) * 6,
    ".hdf5": (hdf5_entry,) * 8,
    ".npz": (npz_entry,) * 5,
}
"""Of files whose content can be changed as such, as often as the others together."""


def mutate(draw: random.Random, path: Path, others: list[Path]) -> str:
    """Damages a file in one way, chosen at random; returns its name."""
    chosen = draw.choice(ANY + BY_ENDING.get(path.suffix, ()))
    chosen(draw, path, others)
    return chosen.__name__
