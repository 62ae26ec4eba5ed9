"""Integrity of a store before it is used: its bytes are hashed once, not at every start."""

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wmjax.core.errors import UserError
from wmjax.core.files import write_json
from wmjax.core.location import Location, Remote
from wmjax.core.store_files import verify_files

VERIFIED = ".verified.json"
"""The file that records which files of a store were verified, and their state; no part of the store's identity."""


def verify_once(folder: Location, manifest: Mapping[str, Any]) -> None:
    """Recomputes the SHA-256 of those of a store's files that were not hashed since they were last written or copied.

    Which were is known from their size, time of modification and inode, kept in the store's ``.verified.json``. So a
    store costs one reading of its bytes in its life, and nothing where it was made; :func:`verify_files` trusts
    nothing. A disk that loses bits later without a write is found by that one only.

    At a URL nothing is hashed here and nothing is written: opening the store checked the sizes of all files and the
    hashes of the small ones, and a URL is used to avoid reading the large ones whole.

    Raises:
        UserError: names the first file whose bytes are not those that were written.

    """
    if isinstance(folder, Remote):
        text = "%s: sizes of all files and hashes of the small ones are right; verify() would hash the large ones too"
        logging.getLogger("wmjax").info(text, folder)
        return
    states, known = _file_states(folder, manifest), {}
    with contextlib.suppress(OSError, ValueError):
        known = dict(json.loads((folder / VERIFIED).read_text(encoding="utf-8")))
    names = [name for name, state in states.items() if known.get(name) != state]
    if not names:
        return
    if (size := sum(manifest["files"][name]["bytes"] for name in names)) > 1e9:
        logging.getLogger("wmjax").info("%s: checking the hashes of %.1f GB, once", folder, size / 1e9)
    verify_files(folder, manifest, names)
    _write(folder, states)


def remember(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Records that the files that were just written and hashed are intact."""
    _write(folder, _file_states(folder, manifest))


def _file_states(folder: Path, manifest: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The state of a file (a write or a copy changes it), and the hash that it should have."""
    stats = {name: (folder / name).stat() for name in manifest["files"]}
    return {
        name: [stat.st_size, stat.st_mtime_ns, stat.st_ino, manifest["files"][name]["sha256"]]
        for name, stat in stats.items()
    }


def _write(folder: Path, states: dict[str, list[Any]]) -> None:
    """Stores the states of intact files, if the folder can be written to."""
    with contextlib.suppress(OSError, UserError):
        write_json(folder / VERIFIED, states)
