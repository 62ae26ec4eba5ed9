"""Checkpoints: plain trees through Orbax, with the specs and a hash manifest, complete or absent.

A checkpoint is the folder ``<step>/`` with one Orbax tree per item (such as ``ema/`` and ``state/``, so that a policy
reads only what it needs), a ``manifest.json`` with everything that is not an array and the SHA-256 of every file, and a
``manifest.sha256`` (for ``sha256sum -c``) with that of the manifest. The hashes are needed because Orbax restores
flipped bits without an error. A checkpoint is built in a hidden folder, flushed to the disk and then renamed, so that a
kill or a power failure leaves a complete checkpoint or none. If the newest one is damaged nevertheless, the newest
intact one is used (:func:`latest`). Other names in the folder, such as a user's copy ``00000250.bak``, are ignored.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from wmjax.core import distributed
from wmjax.core.errors import UserError
from wmjax.core.files import disk_errors, hash_bytes, hash_file, require_space, sync
from wmjax.core.paths import require_readable
from wmjax.trainer.orbax_writers import Tree, Writers, any_thread_may_save, stable, writing

FORMAT_VERSION = 2
MANIFEST, SEAL = "manifest.json", "manifest.sha256"
STAGING, REMOVED = ".saving-", ".removed-"
"""How the names of folders begin that are not yet, or no longer, checkpoints."""
POLICY_ITEMS = ("ema",)
"""What a policy is restored from."""
BAD = "skipped"
"""The entry of ``meta`` that is true if updates were being skipped when it was saved (:mod:`wmjax.trainer.guard`)."""
log = logging.getLogger("wmjax.train")
_verified: dict[tuple[Path, str], Any] = {}
"""Items that this process found intact, and how their files looked then."""
_reported: set[Path] = set()  # damaged checkpoints that this process has already spoken of


class Retention(NamedTuple):
    """Which checkpoints stay, in the words of Orbax: the newest ``max_to_keep`` and every ``keep_period``-th step (0:
    none). Those that were evaluated always stay: a success rate whose policy is gone cannot be looked into.
    """

    max_to_keep: int = 2
    keep_period: int = 0


def save(root: Path, step: int, items: dict[str, Tree], meta: dict[str, Any], *, max_to_keep: int = 2) -> Path:
    """Saves one checkpoint and returns when it is complete; see :class:`Saver`."""
    with Saver(root, Retention(max_to_keep)) as saver:
        folder = saver.save(step, items, meta)
        saver.wait()
    return folder


class Copy(Protocol):
    """Where a run's checkpoints are copied to: :class:`wmjax.trainer.mirror.Mirror`."""

    def exchange(self, step: int, folder: Path) -> None:
        """All processes: makes what each wrote into a folder of its own a whole checkpoint, in that of the first."""

    def push(self) -> None:
        """The first process: copies complete checkpoints; its UserErrors become warnings."""


class Saver:
    """Saves a run's checkpoints, one at a time, while training goes on. Use it as a context manager.

    All processes call everything. Orbax writes each shard once; the first process hashes, commits and removes old ones.
    With a copy every process writes into a folder of its own, which the others need not see; the first one gets what
    the others wrote, and has the complete checkpoint.

    Args:
        root: the folder of all checkpoints; made if needed.
        retention: which ones stay.
        copy: where they are copied to; nowhere if None.

    """

    def __init__(self, root: Path, retention: Retention | None = None, copy: Copy | None = None) -> None:
        self._root, self._retention, self._copy = root.resolve(), retention or Retention(), copy
        self._apart = copy is not None and jax.process_count() > 1
        self._has_folder = self._apart or distributed.is_first()
        self._writers = Writers(apart=self._apart)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        if self._has_folder:
            with disk_errors(self._root):
                self._root.mkdir(parents=True, exist_ok=True)
        self._clean()
        distributed.wait()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or jax.process_count() == 1:  # the other processes may be gone
            with contextlib.suppress(UserError) if error is not None else contextlib.nullcontext():
                self.wait()
            self._writers.close()
        self._thread.shutdown(wait=error is None, cancel_futures=True)

    def save(self, step: int, items: dict[str, Tree], meta: dict[str, Any]) -> Path:
        """Begins to save pytrees of arrays by name and JSON-able ``meta``; returns where they will be.

        It waits for the save before, and returns when the arrays may be changed or donated again.

        Raises:
            UserError: the disk has no room for it or cannot be written to, or the save before failed. Earlier
                checkpoints are as they were.

        """
        self.wait()
        folder, staging = self._root / f"{step:08d}", self._root / f"{STAGING}{step:08d}"
        with writing(self._root):
            if self._has_folder:
                require_space(self._root, sum(leaf.nbytes for leaf in jax.tree.leaves(items)))
                staging.mkdir()
            distributed.wait()
            copies = stable(items)
            if not any_thread_may_save():
                self._writers.save(staging, copies)
                copies = {}
        self._pending = self._thread.submit(self._commit, staging, folder, step, meta, copies)
        return folder

    def wait(self) -> None:
        """Returns when the last save is complete, for all processes.

        Raises:
            UserError: it could not be written.

        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            with writing(self._root):
                pending.result()
        except BaseException:
            self._clean()
            raise
        distributed.wait()

    def _commit(self, staging: Path, folder: Path, step: int, meta: dict[str, Any], items: dict[str, Tree]) -> None:
        """In the background: writes what is not begun yet, waits, and makes what was written a checkpoint."""
        try:
            self._writers.save(staging, items)
        finally:
            self._writers.wait()
        if self._apart and self._copy is not None:
            self._copy.exchange(step, staging)
        if not distributed.is_first():
            self._clean()
            return
        manifest = {"format_version": FORMAT_VERSION, "step": step, "meta": meta, "sha256": _hashes(staging)}
        self._complete(staging, folder, manifest)
        if self._copy is not None:
            try:
                self._copy.push()
            except UserError as error:
                log.warning("%s", error)

    def _complete(self, staging: Path, folder: Path, manifest: dict[str, Any]) -> None:
        """Makes a folder with all items a checkpoint, and removes old ones."""
        text = json.dumps(manifest, indent=1).encode()
        (staging / SEAL).write_text(f"{hash_bytes(text)}  {MANIFEST}\n", encoding="utf-8")
        (staging / MANIFEST).write_bytes(text)
        for path in (staging / SEAL, staging / MANIFEST, *(p for p in staging.rglob("*") if p.is_dir()), staging):
            sync(path)
        _remove(folder)  # one of the same step that was damaged
        staging.rename(folder)
        sync(self._root)
        self._prune()

    def _prune(self) -> None:
        """Removes old checkpoints. One that was saved while updates were skipped never replaces a good one."""
        steps = complete_steps(self._root)
        good = [step for step in steps if not _is_bad(self._root / f"{step:08d}")]
        kept = {*steps[-1:], *good[-self._retention.max_to_keep :]}
        for folder in (self._root / f"{step:08d}" for step in steps if step not in kept):
            periodic = self._retention.keep_period and int(folder.name) % self._retention.keep_period == 0
            if not periodic and not any(evaluations(folder).glob("*/summary.json")):
                _remove(folder)

    def _clean(self) -> None:
        """Removes the remains of a killed or failed save."""
        if not self._has_folder:
            return
        for path in (*self._root.glob(f"{STAGING}*"), *self._root.glob(f"{REMOVED}*")):
            shutil.rmtree(path, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Removes a checkpoint; if the process is killed meanwhile, the remains do not look like a checkpoint."""
    if folder.exists():
        removed = folder.with_name(REMOVED + folder.name)
        shutil.rmtree(removed, ignore_errors=True)
        folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def _is_bad(folder: Path) -> bool:
    try:
        return bool(read_meta(folder).get(BAD))
    except UserError:
        return True


def evaluations(folder: Path) -> Path:
    """The folder of a checkpoint's evaluations: ``RUN/evaluations/STEP``."""
    return folder.parent.parent / "evaluations" / folder.name


def _step_folders(root: Path) -> list[Path]:
    """Folders that are named as checkpoints are, ascending."""
    require_readable(root)
    found = [path for path in root.glob("[0-9]*") if path.is_dir() and _is_step(path.name)]
    return sorted(found, key=lambda path: int(path.name))


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == f"{int(name):08d}"


def complete_steps(root: Path) -> list[int]:
    """The steps of all checkpoints below ``root`` whose saves were finished, ascending; nothing is hashed."""
    return [int(path.name) for path in _step_folders(root) if (path / MANIFEST).is_file()]


def latest(root: Path, items: Sequence[str] | None = None) -> Path:
    """The newest intact checkpoint; every newer one is named in a warning.

    Args:
        root: the folder of all checkpoints.
        items: those that must be intact; all if None.

    Raises:
        UserError: there is none.

    """
    folders = _step_folders(root)
    for folder in reversed(folders):
        try:
            verify(folder, items)
        except UserError as error:
            if folder not in _reported:
                log.warning("%s; an earlier checkpoint is used if there is one", str(error).partition("; ")[0])
                _reported.add(folder)
        else:
            return folder
    state = f"none of {len(folders)} is intact" if folders else "none is complete"
    raise UserError(f"checkpoints {root}: {state}; train first, or name another run")


def find(path: Path, items: Sequence[str] = POLICY_ITEMS) -> Path:
    """A checkpoint's folder: the given one, or the newest of a run in which ``items`` are intact.

    Raises:
        UserError: no folder, or no intact checkpoint in it.

    """
    if not path.is_dir():
        raise UserError(f"run {str(path)!r} is not a folder; name a run's folder, or one of its checkpoints")
    if any((path / name).exists() for name in (MANIFEST, SEAL)) or (
        _is_step(path.name) and path.parent.name == "checkpoints"
    ):
        read_manifest(path)
        return path
    return latest(path / "checkpoints", items)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint: ``step``, ``meta`` and ``sha256`` by file, after checking its own hash.

    Raises:
        UserError: not a checkpoint, another format version, or a manifest that changed since it was written.

    """
    if not (folder / MANIFEST).is_file():
        raise UserError(f"checkpoint {folder}: no {MANIFEST}; the save was interrupted, use an earlier step")
    damaged = f"checkpoint {folder}: {{}} is damaged or missing; use an earlier step"
    try:
        text = (folder / MANIFEST).read_bytes()
        seal = (folder / SEAL).read_bytes() if (folder / SEAL).exists() else None
    except OSError as error:
        raise UserError(f"checkpoint {folder}: unreadable ({error.strerror}); use an earlier step") from error
    if seal is not None and seal != f"{hash_bytes(text)}  {MANIFEST}\n".encode():
        raise UserError(f"checkpoint {folder}: {MANIFEST} is not what {SEAL} says, damaged; use an earlier step")
    try:
        manifest = json.loads(text)
        version, step = int(manifest["format_version"]), int(manifest["step"])
        _ = {**manifest["meta"]}, {**manifest["sha256"]}
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(damaged.format(MANIFEST)) from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"checkpoint {folder}: format_version {version}, this wmjax reads {FORMAT_VERSION}; "
            "train again, or use the wmjax that wrote it"
        )
    if seal is None:
        raise UserError(damaged.format(SEAL))
    if _is_step(folder.name) and int(folder.name) != step:
        raise UserError(f"checkpoint {folder}: its {MANIFEST} is of step {step}; use an earlier step")
    return manifest


def read_meta(folder: Path) -> dict[str, Any]:
    """The ``meta`` that was saved; raises the errors of :func:`read_manifest`."""
    return read_manifest(folder)["meta"]


def verify(folder: Path, items: Sequence[str] | None = None) -> None:
    """Checks the SHA-256 of all files of some items (all if None), once per process and item.

    Raises:
        UserError: names the first file that is not as it was written, that is missing or surplus.

    """
    expected = read_manifest(folder)["sha256"]
    for item in sorted({name.partition("/")[0] for name in expected}) if items is None else items:
        wanted = {name: digest for name, digest in expected.items() if name.startswith(f"{item}/")}
        try:
            states = {name: _file_state(folder / name) for name in _files(folder, item, wanted)}
            if _verified.get((folder.resolve(), item)) == states:
                continue
            surplus = wanted.keys() ^ states.keys()
            damaged = sorted(surplus) or [name for name in sorted(wanted) if hash_file(folder / name) != wanted[name]]
        except OSError as error:
            raise UserError(f"checkpoint {folder}: unreadable ({error.strerror}); use an earlier step") from error
        if damaged or not wanted:
            raise UserError(f"checkpoint {folder}: {(damaged or [item])[0]} is damaged or missing; use an earlier step")
        _verified[folder.resolve(), item] = states


def _files(folder: Path, item: str, wanted: dict[str, str]) -> list[str]:
    """The files of an item, relative to the checkpoint; hidden ones that were not saved are a file system's."""
    found = [str(p.relative_to(folder)) for p in (folder / item).rglob("*") if p.is_file()]
    return [name for name in found if name in wanted or not Path(name).name.startswith(".")]


def _file_state(path: Path) -> tuple[int, int, int]:
    """Size, time and inode, which differ if the file was replaced."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def restore(folder: Path, item: str, like: Tree) -> Tree:
    """One saved tree, with the structure, dtypes and shardings of ``like`` (arrays or ShapeDtypeStructs).

    A leaf of ``like`` without sharding is restored to this process's first device. If a sharding spans processes, all
    of them call it.

    The arrays are passed once through an identity jit: those that Orbax made are not always donatable. It names the
    shardings as ``like`` does: a step that gets equal ones by other names is compiled again.

    Raises:
        UserError: the item is damaged, or the checkpoint's tree has another structure or other shapes.

    """
    verify(folder, (item,))
    like = jax.tree.map(_placed, like)
    try:
        with ocp.StandardCheckpointer(multiprocessing_options=_readers(like)) as checkpointer:
            tree = checkpointer.restore(folder.resolve() / item, like)
    except (ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0][:300]
        raise UserError(f"checkpoint {folder} does not fit this model: {first}; use its own config.json") from error
    return jax.jit(lambda t: t, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like))(tree)


def _placed(leaf: Any) -> Any:
    """The leaf, on this process's first device if it does not say where, whatever devices it was saved from."""
    if leaf.sharding is not None:
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=SingleDeviceSharding(jax.local_devices()[0]))


def _readers(like: Tree) -> ocp.options.MultiprocessingOptions:
    """All processes together if the tree spans them, else this one alone: it evaluates while the others wait."""
    if not all(leaf.sharding.is_fully_addressable for leaf in jax.tree.leaves(like)):
        return ocp.options.MultiprocessingOptions(primary_host=None)  # of one Orbax would make later saves wait
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})


def _hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of the items, each flushed to the disk first."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.parent != folder)
    for path in files:
        sync(path)
    return {str(p.relative_to(folder)): hash_file(p) for p in files}
