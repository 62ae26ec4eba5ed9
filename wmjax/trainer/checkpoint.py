"""Checkpoints: plain trees through Orbax, with the specs and a hash manifest written last.

A checkpoint is the folder ``<step>/`` with one Orbax tree per item (such as ``ema/`` and ``state/``, so that a policy
reads only what it needs) and a ``manifest.json`` with everything that is not an array and the SHA-256 of every file.
The hashes are needed because Orbax restores flipped bits without an error. A folder without a manifest is an
interrupted save and is ignored; the last complete checkpoint is used.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from wmjax.core.distributed import is_first, wait
from wmjax.core.errors import UserError
from wmjax.core.files import require_space

FORMAT_VERSION = 1
Tree = Any


def save(root: Path, step: int, items: dict[str, Tree], meta: dict[str, Any], *, keep: int = 2) -> Path:
    """Saves pytrees of arrays by name and JSON-able ``meta``; keeps the newest ``keep`` checkpoints.

    Older ones go unless they were evaluated: a success rate whose policy is gone cannot be looked into.

    All processes call it and return when it is complete; Orbax writes each shard once, process 0 the manifest.

    Raises:
        UserError: the disk has no room for it; nothing was written and the earlier checkpoints are as they were.

    """
    folder = root.resolve() / f"{step:08d}"
    root.mkdir(parents=True, exist_ok=True)
    require_space(root, sum(leaf.nbytes for leaf in jax.tree.leaves(items)))
    if folder.exists() and is_first():
        shutil.rmtree(folder)
    wait()
    with ocp.StandardCheckpointer() as checkpointer:
        for name, tree in items.items():
            checkpointer.save(folder / name, tree)
    if is_first():
        manifest = {"format_version": FORMAT_VERSION, "step": step, "meta": meta, "sha256": _hashes(folder)}
        temporary = folder / "manifest.json.tmp"
        temporary.write_text(json.dumps(manifest, indent=1))
        temporary.rename(folder / "manifest.json")
        for old in (root / f"{step:08d}" for step in complete_steps(root)[:-keep]):
            if not any(evaluations(old).glob("*/summary.json")):
                shutil.rmtree(old)
    wait()
    return folder


def evaluations(folder: Path) -> Path:
    """The folder of a checkpoint's evaluations: ``RUN/evaluations/STEP``."""
    return folder.parent.parent / "evaluations" / folder.name


def complete_steps(root: Path) -> list[int]:
    """The steps of all complete checkpoints below ``root``, ascending."""
    return sorted(int(p.parent.name) for p in root.glob("[0-9]*/manifest.json"))


def latest(root: Path) -> Path:
    """The newest complete checkpoint.

    Raises:
        UserError: there is none.

    """
    steps = complete_steps(root)
    if not steps:
        raise UserError(f"checkpoints {root}: none is complete; train first, or name another run")
    return root / f"{steps[-1]:08d}"


def find(path: Path) -> Path:
    """A checkpoint's folder: the given one, or a run's newest.

    Raises:
        UserError: no folder, or no complete checkpoint in it.

    """
    if not path.is_dir():
        raise UserError(f"run {str(path)!r} is not a folder; name a run's folder, or one of its checkpoints")
    return path if (path / "manifest.json").is_file() else latest(path / "checkpoints")


def read_meta(folder: Path) -> dict[str, Any]:
    """The ``meta`` that was saved, after checking the format version and every file's hash.

    Raises:
        UserError: not a checkpoint, another format version, or a file that changed since it was written.

    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"checkpoint {folder}: no manifest.json; the save was interrupted, use an earlier step")
    manifest = json.loads(path.read_text())
    if manifest["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"checkpoint {folder}: format_version {manifest['format_version']}, this wmjax reads {FORMAT_VERSION}; "
            "train again, or use the wmjax that wrote it"
        )
    found = _hashes(folder)
    changed = sorted(k for k in manifest["sha256"].keys() | found.keys() if manifest["sha256"].get(k) != found.get(k))
    if changed:
        raise UserError(f"checkpoint {folder}: {changed[0]} is damaged or missing; use an earlier step")
    return manifest["meta"]


def restore(folder: Path, item: str, like: Tree) -> Tree:
    """One saved tree, with the structure, dtypes and shardings of ``like`` (arrays or ShapeDtypeStructs).

    A leaf of ``like`` without sharding is restored to this process's first device. If a sharding spans processes, all
    of them call it.

    The arrays are passed once through an identity jit: arrays that Orbax made are not always donatable.

    Raises:
        UserError: the checkpoint's tree has another structure or other shapes.

    """
    read_meta(folder)
    like = jax.tree.map(_placed, like)
    try:
        with ocp.StandardCheckpointer(multiprocessing_options=_readers(like)) as checkpointer:
            tree = checkpointer.restore(folder.resolve() / item, like)
    except (ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0][:300]
        raise UserError(f"checkpoint {folder} does not fit this model: {first}; use its own config.json") from error
    return jax.jit(lambda t: t)(tree)


def _placed(leaf: Any) -> Any:
    """The leaf, on this process's first device if it does not say where, whatever devices it was saved from."""
    if leaf.sharding is not None:
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=SingleDeviceSharding(jax.local_devices()[0]))


def _readers(like: Tree) -> ocp.options.MultiprocessingOptions:
    """All processes together if the tree spans them, else this one alone: it evaluates while the others wait."""
    if not all(leaf.sharding.is_fully_addressable for leaf in jax.tree.leaves(like)):
        return ocp.options.MultiprocessingOptions()
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.parent != folder)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
