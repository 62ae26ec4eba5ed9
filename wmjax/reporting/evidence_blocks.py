"""Blocks of Markdown documents that are generated only from evidence capsules.

A block names its capsules; each is a column of the table between the two comments:

    <!-- evidence: CAPSULE CAPSULE ... -->
    ...
    <!-- end of evidence -->
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from wmjax.analysis.intervals import wilson
from wmjax.core.errors import UserError, unknown_name
from wmjax.core.files import atomic_path
from wmjax.rollout.capsule import Capsule

BLOCK = re.compile(r"(<!-- evidence: ([^\n]*?) -->\n)(.*?)(<!-- end of evidence -->)", re.DOTALL)


def outdated_blocks(documents: Sequence[Path], capsules: Mapping[str, Capsule]) -> Iterator[tuple[Path, str]]:
    """The blocks whose text differs from their capsules: the document and the names of the capsules.

    Raises:
        UserError: a block names a capsule that there is not, or is not closed.

    """
    for path in documents:
        for found in BLOCK.finditer(_read(path)):
            if found[3] != table(_named(path, found[2], capsules)):
                yield path, found[2]


def write_blocks(documents: Sequence[Path], capsules: Mapping[str, Capsule]) -> list[Path]:
    """Rewrites every block and returns the documents that changed.

    Raises:
        UserError: see :func:`outdated_blocks`.

    """
    changed = []
    for path in documents:
        text = _read(path)
        new = text
        for found in BLOCK.finditer(text):
            new = new.replace(found[0], found[1] + table(_named(path, found[2], capsules)) + found[4])
        if new != text:
            with atomic_path(path) as temporary:
                temporary.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed


def table(capsules: Sequence[Capsule]) -> str:
    """A table of tasks by evaluations, with Wilson's 95 % intervals of the sums.

    Raises:
        UserError: the capsules are of different suites or tasks.

    """
    first, counts = capsules[0], [capsule.counts() for capsule in capsules]
    for capsule, found in zip(capsules, counts, strict=True):
        if (capsule.protocol.suite, list(found)) != (first.protocol.suite, list(counts[0])):
            raise UserError(
                f"the capsules {first.name} and {capsule.name} are of different suites or tasks; give each a block"
            )
    heads = ["" if c.seed is None else f"seed {c.seed}, " for c in capsules]
    heads = [f"{head}`{c.protocol.name}`" for head, c in zip(heads, capsules, strict=True)]
    rows = [[f"task of {first.protocol.suite}", *heads], ["---"] * (1 + len(capsules))]
    names = short_names(first.instructions)
    for task in counts[0]:
        rows.append([f"{task} {names[task]}", *(f"{found[task][0]}/{found[task][1]}" for found in counts)])
    rows.append(["**all** (Wilson 95 %)", *map(_sum, counts)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows).replace("| --- ", "|---").replace("|--- |", "|---|")


def short_names(instructions: Mapping[int, str]) -> dict[int, str]:
    """The distinguishing words of instructions: those between their common beginning and their common end."""
    words = {task: text.split() for task, text in instructions.items()}
    if len(words) < 2:
        return {task: " ".join(found) for task, found in words.items()}
    head = _shared(list(words.values()))
    tail = _shared([found[head:][::-1] for found in words.values()])
    return {task: " ".join(found[head : len(found) - tail]) for task, found in words.items()}


def _shared(lists: Sequence[Sequence[str]]) -> int:
    """How many words all lists begin with."""
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*lists, strict=False)))


def _sum(counts: Mapping[int, tuple[int, int]]) -> str:
    successes, episodes = (sum(column) for column in zip(*counts.values(), strict=True))
    low, high = (100 * bound for bound in wilson(successes, episodes))
    return f"**{successes}/{episodes} = {100 * successes / episodes:.1f} %** ({low:.0f}-{high:.0f} %)"


def _named(path: Path, names: str, capsules: Mapping[str, Capsule]) -> list[Capsule]:
    for name in names.split():
        if name not in capsules:
            raise unknown_name(f"capsule in {path}", name, list(capsules))
    if not names.split():
        raise UserError(f"{path}: an evidence block names no capsule; name at least one")
    return [capsules[name] for name in names.split()]


def _read(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if text.count("<!-- evidence:") != text.count("<!-- end of evidence -->"):
        raise UserError(f"{path}: an evidence block is not closed; end it with <!-- end of evidence -->")
    return text
