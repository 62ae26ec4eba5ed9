"""Folders: the cache (``$WMJAX_CACHE``, else ``~/.cache/wmjax``), and the files of ``train`` and ``eval``."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from wmjax.core.errors import UserError, require_unicode

PROTECTED = frozenset(
    {"manifest.json", "config.json", "recording.json", "header.json", "summary.json", "tokenizer.json"}
)
"""JSON files of stores, runs and models, which no output replaces."""
DATA = frozenset(
    {
        ".json",
        ".jsonl",
        ".npy",
        ".npz",
        ".parquet",
        ".safetensors",
        ".h5",
        ".hdf5",
        ".mp4",
        ".toml",
        ".txt",
        ".py",
        ".bin",
    }
)
"""Endings of files that hold something else than a report."""
COMPILED_BYTES = 2_000_000_000
"""Cap of the compiled programs kept; jax itself never evicts without one."""


def expand(path: str | Path) -> Path:
    """Replaces ``~`` by the home folder; shells do not expand it after ``=`` or in environment files.

    Raises:
        UserError: there is no such home folder, or it is not a path: empty, as an unset variable of a shell leaves it,
            or not UTF-8.

    """
    if not str(path).strip() or "\0" in str(path):
        raise UserError(f"the path is {str(path)!r}; name a file or folder, such as . for the current one")
    require_unicode(str(path), "the path")  # neither Arrow nor Orbax opens what is not UTF-8
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: no home folder ({error}); write the whole path") from error


def listed(folder: Path, pattern: str) -> list[Path]:
    """The paths below a folder that match a pattern, sorted, without hidden ones.

    macOS leaves ``._NAME`` beside every file that it copies, and editors and downloads have hidden folders. A pattern
    that begins with ``**/`` looks into linked folders too, which :meth:`pathlib.Path.glob` passes over.

    Raises:
        PermissionError: a folder cannot be read, which would look like an empty one.

    """
    require_readable(folder)
    places = _folders(folder) if pattern.startswith("**/") else [folder]
    return sorted(
        path
        for place in places
        for path in place.glob(pattern.removeprefix("**/"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def require_readable(folder: Path) -> None:
    """Refuses an existing folder that cannot be listed, because :meth:`pathlib.Path.glob` treats it as empty.

    Raises:
        PermissionError: names it.

    """
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _folders(folder: Path) -> Iterator[Path]:
    """A folder and those below it, each once however many links lead to it."""
    visited = set()
    for place, names, _ in os.walk(folder, followlinks=True):
        state = Path(place).stat()
        if (state.st_dev, state.st_ino) in visited:
            names.clear()
            continue
        visited.add((state.st_dev, state.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in names:
            require_readable(Path(place) / name)
        yield Path(place)


def cache_root() -> Path:
    """The cache folder (not created).

    Raises:
        UserError: this user has no home folder and WMJAX_CACHE is not set, or it is a URL.

    """
    if given := os.environ.get("WMJAX_CACHE"):
        if "://" in given:
            raise UserError(
                f"WMJAX_CACHE is {given}, but the cache is a local folder; name one, and give a run's URL to --run"
            )
        return expand(given)
    try:
        return Path.home() / ".cache" / "wmjax"
    except RuntimeError as error:
        raise UserError(f"no home folder for the cache ({error}); set WMJAX_CACHE to a folder") from error


def require_place(path: Path, option: str, kind: Literal["folder", "HTML file", "JSON file", "Rerun file"]) -> None:
    """Checks that a folder or file can be written at a place, so that a command refuses before its work.

    Args:
        path: of the folder or file to be.
        option: that names it, such as ``--out``.
        kind: what is written.

    Raises:
        UserError: a file where a folder is needed or the reverse, a file of data that would be replaced, or no
            permission.

    """
    if kind != "folder":
        endings = {"HTML file": ("an HTML file", ".html"), "Rerun file": ("a Rerun file", ".rrd")}
        wanted, ending = endings.get(kind, ("a JSON file", ".json"))
        if path.is_dir():
            raise UserError(f"{option} {path}: a folder; name {wanted} such as {path / f'name{ending}'}")
        if path.is_file() and (path.name in PROTECTED or path.suffix in DATA - {ending}):
            raise UserError(f"{option} {path}: a data file exists there and was not overwritten; choose another name")
    places = [*([path.absolute()] if kind == "folder" else []), *path.absolute().parents]
    if blocked := next((place for place in places if place.is_file()), None):
        raise UserError(f"{option} {path}: {blocked} is a file, not a folder; choose another place")
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{option} {path}: no permission to write to {nearest}; choose another place")


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, renamed to ``out`` (absent or empty before) when the block ends without an error."""
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if out.is_dir():  # and empty
        out.rmdir()
    part.rename(out)


def enable_compilation_cache() -> None:
    """Lets jit reuse what earlier processes compiled (``<cache>/xla``), unless jax has another cache folder."""
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
        jax.config.update("jax_compilation_cache_max_size", COMPILED_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def size_report(root: Path | None = None) -> str:
    """One line per second-level folder (``demos/...``, ``latents/...``, ``runs/...``) with its size in MB."""
    root = root or cache_root()
    lines = [f"cache {root}"]
    try:
        for folder in sorted(p for p in [*root.glob("*/*"), root / "xla"] if p.is_dir()):
            size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            lines.append(f"{size / 1e6:10.1f} MB  {folder.relative_to(root)}")
    except OSError as error:  # another user's, or something that another process just removed
        lines.append(f"           ?  {error.filename} ({error.strerror})")
    return "\n".join(lines)


MARKERS = {"train": "variants", "eval": "protocols"}
"""A folder that only our `train` and `eval` contain, so that a stranger's folder is never taken for ours."""


def records_folder() -> Path:
    """The folder of recorded benchmark runs: ``eval/results`` of a repository, else the cache's ``results``."""
    repository = Path(__file__).resolve().parents[2]
    if (repository / ".git").exists() and (repository / "eval" / "results").is_dir():
        return repository / "eval" / "results"
    return cache_root() / "results"


def resource_folder(name: Literal["train", "eval"]) -> Path:
    """The folder of variants, heads, scales and data (``train``) or of protocols and results (``eval``).

    Raises:
        UserError: neither the repository nor the installed package has it.

    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / name, package / f"_{name}"):
        if (folder / MARKERS[name]).is_dir():
            return folder
    raise UserError(f"the folder {name!r} of wmjax is missing; reinstall wmjax or run from its repository")


def without_cache(content: Any) -> Any:
    """JSON values in which the folder of the cache is written as ``$WMJAX_CACHE``."""
    root = json.dumps(str(cache_root()))[1:-1]
    return json.loads(json.dumps(content, allow_nan=False).replace(root, "$WMJAX_CACHE"))
