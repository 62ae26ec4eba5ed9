"""Damages a checkpoint in many ways; every damage must be detected, by the name of a file, or change nothing.

python benchmarks/corrupt_checkpoint.py [--count 300] [--seed 0] [--checkpoints RUN/checkpoints]

Each time two checkpoints are copied, a file of the newer one is damaged (a bit flipped, truncated, deleted, emptied,
exchanged with another file of it or of the older one), manifests included, and the newest intact one is restored.
Detected: a warning names the newer checkpoint and a damaged file, and the older one comes back as it was. Harmless:
the newer one comes back as it was. Anything else is a fault. The result of Orbax alone, which has
no manifest, for the same damage is written beside it. Prints JSON; exits with 1 after a fault. Without
``--checkpoints`` two small ones are made.
"""

import argparse
import json
import logging
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from wmjax.core.errors import UserError
from wmjax.trainer import checkpoint

Damage = Callable[[random.Random, Path, list[Path]], list[Path]]
"""Damages one of a checkpoint's files; the last argument are those of the older one. Returns the damaged ones."""


def flip(draw: random.Random, path: Path, others: list[Path]) -> list[Path]:
    """One bit."""
    data = bytearray(path.read_bytes())
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    return [path]


def truncate(draw: random.Random, path: Path, others: list[Path]) -> list[Path]:
    """What is behind a random byte is gone."""
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))] if data else data)
    return [path]


def empty(draw: random.Random, path: Path, others: list[Path]) -> list[Path]:
    """As after a power failure."""
    path.write_bytes(b"")
    return [path]


def delete(draw: random.Random, path: Path, others: list[Path]) -> list[Path]:
    """The file is gone."""
    path.unlink()
    return [path]


def swap(draw: random.Random, path: Path, others: list[Path]) -> list[Path]:
    """Exchanged with another file, of this checkpoint or of the older one."""
    root = next(parent for parent in path.parents if (parent / checkpoint.MANIFEST).exists() or parent.name.isdigit())
    other = draw.choice([p for p in [*files(root), *others] if p != path])
    data = path.read_bytes()
    path.write_bytes(other.read_bytes())
    if root in other.parents:
        other.write_bytes(data)
        return [path, other]
    return [path]


DAMAGES: tuple[Damage, ...] = (flip, truncate, empty, delete, swap)


def files(folder: Path) -> list[Path]:
    """All files of a checkpoint."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def make_checkpoints(root: Path) -> None:
    """Two small checkpoints of the items and kinds of arrays that a run has."""
    for step in (250, 500):
        key = jax.random.key(step)
        arrays = {f"layer/{i}": jax.random.normal(jax.random.fold_in(key, i), (8, 16)) for i in range(4)}
        low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays)
        meta = {"specs": {"action": {"scale": [0.41, 0.3, 1.0]}}, "loader": {"0": {"next_index": step}}}
        checkpoint.save(root, step, {"ema": low, "state": {**arrays, "step": jnp.int32(step)}}, meta)


def shapes(folder: Path) -> dict[str, Any]:
    """What to restore of each item."""
    found = {}
    for item in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        tree = ocp.PyTreeCheckpointer().restore((folder / item).resolve())
        found[item] = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), jax.tree.map(jnp.asarray, tree))
    return found


def bits(trees: dict[str, Any]) -> dict[tuple[str, str], bytes]:
    """Every array's bytes, by item and path."""
    return {
        (item, jax.tree_util.keystr(path)): np.asarray(value).tobytes()
        for item, tree in trees.items()
        for path, value in jax.tree_util.tree_leaves_with_path(tree)
    }


def content(folder: Path, like: dict[str, Any]) -> Any:
    """Everything that a checkpoint says, for comparison."""
    trees = {item: checkpoint.restore(folder, item, tree) for item, tree in like.items()}
    return bits(trees), checkpoint.read_meta(folder)


class Heard(logging.Handler):
    """Collects warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one."""
        self.lines.append(record.getMessage())


def judge(root: Path, damaged: list[str], like: dict[str, Any], expected: Any) -> str:
    """``detected``, ``harmless``, or what went wrong. ``expected`` is what the newer checkpoint said."""
    heard = Heard()
    logging.getLogger("wmjax").addHandler(heard)
    try:
        folder, newest = checkpoint.latest(root), checkpoint.complete_steps(root)[-1]
        if int(folder.name) == newest and not heard.lines:  # the older one's bytes were verified
            return "harmless" if content(folder, like) == expected else "silent"
    except UserError as error:
        return f"refused although an older one is whole: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        logging.getLogger("wmjax").removeHandler(heard)
    named = len(heard.lines) == 1 and any(name in heard.lines[0] for name in damaged)
    return "detected" if named else f"the warnings are {heard.lines}"


def orbax_alone(reader: ocp.StandardCheckpointer, folder: Path, like: dict[str, Any], expected: Any) -> str:
    """What Orbax makes of the same damage: ``harmless``, ``silent`` or ``exception``."""
    try:
        trees = {item: reader.restore((folder / item).resolve(), tree) for item, tree in like.items()}
    except Exception:
        return "exception"
    return "harmless" if bits(trees) == expected[0] else "silent"


def corrupt(root: Path, count: int, seed: int, *, compare: bool = True) -> dict[str, Any]:
    """Damages copies of the two newest checkpoints below ``root``; the counts, and every fault in words."""
    steps = checkpoint.complete_steps(root)[-2:]
    like = shapes(root / f"{steps[1]:08d}")
    expected, reader = content(root / f"{steps[1]:08d}", like), ocp.StandardCheckpointer()
    found, alone, faults = Counter[str](), Counter[str](), []
    for number in range(count):
        draw = random.Random(f"{seed}-{number}")
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary)
            for step in steps:
                shutil.copytree(root / f"{step:08d}", copy / f"{step:08d}")
            newer, older = copy / f"{steps[1]:08d}", copy / f"{steps[0]:08d}"
            # Half of them hit the small files at the top: what they say is believed most.
            path = draw.choice([p for p in files(newer) if p.parent == newer] if number % 2 else files(newer))
            damage = DAMAGES[number // 2 % len(DAMAGES)]
            names = [str(p.relative_to(newer)) for p in damage(draw, path, files(older))]
            verdict = judge(copy, names, like, expected)
            found[verdict if verdict in ("detected", "harmless") else "fault"] += 1
            if verdict not in ("detected", "harmless"):
                faults.append(f"{damage.__name__} {names}: {verdict}")
            if compare:
                alone[orbax_alone(reader, newer, like, expected)] += 1
    return {"damages": count, "ours": dict(found), "orbax alone": dict(alone), "faults": faults}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 after a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="damages (default 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", type=Path, help="a run's folder of at least two checkpoints")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.checkpoints or Path(temporary) / "checkpoints"
        if options.checkpoints is None:
            make_checkpoints(root)
        result = corrupt(root, options.count, options.seed)
    print(json.dumps(result, indent=1))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
