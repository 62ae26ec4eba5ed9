"""Reads the text of an optimised XLA program: how often instructions run, and the traffic of collectives.

``cost_analysis()`` counts the body of a loop once and answers nothing on a GPU; the text has every loop's trip count.
"""

import dataclasses
import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
WIDTHS = {
    "pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4,
    "u32": 4, "f64": 8, "s64": 8, "u64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
"""Bytes of an element."""
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=\{?%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")

PROMOTED = re.compile(r"to_apply=%?[\w.\-]*promoted")
"""How XLA names a sum of bfloat16 that it does in float32 because the device, a CPU, cannot do otherwise."""

Array = tuple[str, tuple[int, ...]]
"""Element type and sides."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: ``%name = shape op(operands), attributes``."""

    name: str
    shape: str
    op: str
    rest: str
    is_root: bool

    @functools.cached_property
    def arrays(self) -> list[Array]:
        """The arrays of its result."""
        return arrays(self.shape)

    @functools.cached_property
    def operands(self) -> list[str]:
        """The names of its operands."""
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    @property
    def called(self) -> list[str]:
        """Computations that it runs, apart from a loop's."""
        found = _CALLED.findall(self.rest)
        return found + [name for group in _BRANCHES.findall(self.rest) for name in re.findall(r"[\w.\-]+", group)]


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices.

    Attributes:
        kind: one of :data:`COLLECTIVES`.
        dtype: of its largest array.
        size: bytes on one device of the whole array: the result of an all-gather, the input of a reduce-scatter.
        group: devices that take part in each exchange.
        times: how often it runs in one call of the program.
        shape: as the program has it.

    """

    kind: str
    dtype: str
    size: int
    group: int
    times: int
    shape: str

    @property
    def traffic(self) -> float:
        """Bytes that each device sends in all its runs, by the ring algorithm."""
        share = (self.group - 1) / self.group if self.group else 1.0
        return self.times * self.size * (1.0 if self.kind == "collective-permute" else share) * (
            2.0 if self.kind == "all-reduce" else 1.0
        )  # fmt: skip


def arrays(shape: str) -> list[Array]:
    """The arrays of a shape, which may be a tuple."""
    found = _ARRAY.findall(shape)
    return [(dtype, tuple(int(side) for side in sides.split(",") if side)) for dtype, sides in found]


def size_of(found: list[Array]) -> int:
    """Bytes."""
    return sum(WIDTHS.get(dtype, 4) * math.prod(sides) for dtype, sides in found)


class Program:
    """The computations of an optimised program."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, name = "", ""
        for line in text.splitlines():
            head = None if line.startswith(" ") else _HEAD.match(line)
            if head:
                name = head[2]
                self.computations[name] = []
                self.entry = name if head[1] else self.entry
            elif name and (found := _LINE.match(line)):
                root = line.lstrip().startswith("ROOT ")
                self.computations[name].append(Instruction(found[1], found[2], found[3], found[4], root))

    def trips(self, loop: Instruction) -> int:
        """The number of iterations of a while loop; 1 if the text does not state it."""
        if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        lines = self.computations.get(condition[1], []) if condition else []
        bounds = [int(i.rest.split(")")[0]) for i in lines if i.op == "constant" and i.rest.split(")")[0].isdigit()]
        return max(bounds, default=1)

    def executed(self, *, fusions: bool) -> Iterator[tuple[Instruction, str, int]]:
        """Every instruction that runs, its computation and how often; those inside ``fusions`` only on request."""
        yield from self._walk(self.entry, 1, fusions)

    def _walk(self, computation: str, times: int, fusions: bool) -> Iterator[tuple[Instruction, str, int]]:
        for instruction in self.computations.get(computation, []):
            if instruction.op == "while":
                body = re.search(r"body=%?([\w.\-]+)", instruction.rest)
                if body:
                    yield from self._walk(body[1], times * self.trips(instruction), fusions)
                continue
            yield instruction, computation, times
            if instruction.op in ("call", "conditional", "async-start") or (fusions and instruction.op == "fusion"):
                for name in instruction.called:
                    yield from self._walk(name, times, fusions)

    def collectives(self) -> list[Collective]:
        """All exchanges between devices."""
        found = []
        for instruction, _, times in self.executed(fusions=True):
            kind = instruction.op.removesuffix("-start")
            if kind in COLLECTIVES and instruction.arrays:
                found.append(_collective(kind, instruction, times))
        return found


def _collective(kind: str, instruction: Instruction, times: int) -> Collective:
    given = instruction.arrays
    # Asynchronous ones return (inputs, results, ...), of equal number; an all-reduce only the results.
    if instruction.op.endswith("-start") and kind in ("all-gather", "collective-permute") and len(given) > 1:
        given = given[len(given) // 2 :] if kind == "all-gather" else given[1:2]
    if PROMOTED.search(instruction.rest):
        given = [("bf16" if dtype == "f32" else dtype, sides) for dtype, sides in given]
    group = _group(instruction.rest)
    size = size_of(given) * (group if kind == "reduce-scatter" else 1)
    dtype = max(given, key=lambda array: math.prod(array[1]))[0]
    return Collective(kind, dtype, size, group, times, instruction.shape)


def _group(rest: str) -> int:
    """Devices of one replica group: a list, ``[groups,devices]<=[...]``, or axes, ``mesh['a'=4,'b'=2] {'a'}``."""
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])  # of an axis or of a part of it
        return math.prod(int(part or sides[name]) for name, part in parts)
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return listed[1].count(",") + 1
    return 2 if "source_target_pairs" in rest else 0


def summarise(collectives: list[Collective]) -> dict[str, dict[str, Any]]:
    """By kind: how many run, megabytes, and megabytes by element type."""
    calls: Counter[str] = Counter()
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for one in collectives:
        calls[one.kind] += one.times
        sizes[one.kind][one.dtype] += one.times * one.size
    return {
        kind: {
            "calls": calls[kind],
            "mb": sum(sizes[kind].values()) / 1e6,
            "mb_by_dtype": {dtype: size / 1e6 for dtype, size in sorted(sizes[kind].items())},
        }
        for kind in sorted(calls)
    }
