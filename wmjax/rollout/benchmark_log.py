"""The append-only log of benchmark runs, so that every run is reported, not only the best one."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wmjax.core.errors import UserError
from wmjax.core.files import disk_errors
from wmjax.core.paths import cache_root, without_cache
from wmjax.core.reading import read_json

log = logging.getLogger("wmjax.rollout")


def write_record(folder: Path, protocol: str, content: Mapping[str, Any]) -> Path:
    """Adds a benchmark run to the log as a numbered file; no file is ever overwritten.

    The records are shared, so folders in the cache are written as ``$WMJAX_CACHE/...``. A run that was killed after
    its record was written finds that record and does not write a second one. If the recipe already has a record, a
    warning is logged, because running a recipe several times makes it possible to select on the benchmark.

    If the folder cannot be written to, as in somebody else's checkout, the record goes to the cache.

    Args:
        folder: of the records.
        protocol: its name begins the file names.
        content: the run's ``summary.json``.

    """
    try:
        with disk_errors(folder):
            return _write(folder, protocol, content)
    except UserError as error:
        elsewhere = cache_root() / "results"
        if folder == elsewhere:
            raise
        log.warning("the benchmark's record goes to %s: %s", elsewhere, error)
        with disk_errors(elsewhere):
            return _write(elsewhere, protocol, content)


def _write(folder: Path, protocol: str, content: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = without_cache(content)
    header = content["header"]
    earlier = _records(folder, protocol)
    for path, record in earlier.items():
        if (record.header, record.finished_at) == (header, content["finished_at"]):
            return path
    recipe = header.get("recipe_hash", "")
    same = [path.name for path, record in earlier.items() if record.header.get("recipe_hash", "") == recipe]
    if recipe and same:
        log.warning("recipe %s ran %s before (%s); report all of these runs", recipe, protocol, ", ".join(same))
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    number = max([0, *(_number(path) + 1 for path in folder.glob(f"{protocol}-*.json"))])
    while True:
        path = folder / f"{protocol}-{number:03d}.json"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:  # another run ended at the same moment
            number += 1
        else:
            return path


def count_records(folder: Path, header: Mapping[str, Any]) -> int:
    """The number of recorded runs, in ``folder``, of the recipe of an evaluation's header on its protocol."""
    name = (header.get("protocol") or {}).get("name", "")
    records = _records(folder, name).values()
    return sum(record.header.get("recipe_hash", "") == header.get("recipe_hash", "") for record in records)


@dataclasses.dataclass(frozen=True)
class _Record:
    header: dict[str, Any]
    finished_at: Any


def _records(folder: Path, protocol: str) -> dict[Path, _Record]:
    """The records of a protocol that can be read; damaged ones are skipped with a warning."""
    found = {}
    for path in sorted(path for path in folder.glob(f"{protocol}-*.json") if _number(path) >= 0):
        try:
            found[path] = read_json(path, _Record, "delete it")
        except UserError as error:
            log.warning("a record of the benchmark is skipped: %s", error)
    return found


def _number(path: Path) -> int:
    digits = path.stem.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1
