"""The time of an optimised program by the roofline model (Williams et al., 2009, doi:10.1145/1498765.1498785).

Every kernel takes as long as the slower of its FLOPs and its memory traffic. Kernels are the instructions of the entry
and of the loops' bodies, as often as they run. Not in it: gaps between kernels, badly filled tiles, and anything that
runs beside something else.

libtpu writes into the program how many cycles it expects each kernel to take; these take the place of the model. What a
TPU reads from its scratchpad looks like memory traffic in the text, and would be counted several times.
"""

import math
import re
from typing import NamedTuple

from wmjax.scaling.chips import Chip
from wmjax.scaling.hlo import COLLECTIVES, Instruction, Program, arrays, size_of

FREE = {
    "parameter", "get-tuple-element", "tuple", "constant", "bitcast", "after-all", "iota", "call", "conditional",
    "partition-id", "replica-id", "opt-barrier", "domain",
}  # fmt: skip
"""Instructions that compute nothing."""
ALLOCATION = 'custom_call_target="AllocateBuffer"'
"""How libtpu writes an array that is filled later; nothing is moved."""
FLOAT32 = {"gpu": 0.5, "tpu": 1.0, "cpu": 1.0}
"""Speed of float32 products at JAX's default precision, TF32 or bfloat16, by that of bfloat16."""
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
"""What libtpu expects of a kernel."""


class Kernel(NamedTuple):
    """One instruction's FLOPs of matrix products, whether they are float32, and bytes of memory traffic, per run."""

    flops: float
    is_float32: bool
    traffic: float


class Cost(NamedTuple):
    """Of one call of a program on one device: seconds, and of them those by the compiler's own cycles; FLOPs of matrix
    products, bytes of memory traffic, kernels.
    """

    seconds: float
    by_cycles: float
    flops: float
    traffic: float
    kernels: int


def cost(program: Program, chip: Chip) -> Cost:
    """The sum over all kernels, without collectives."""
    seconds = by_cycles = flops = traffic = 0.0
    count = 0
    shapes = {name: {i.name: i.shape for i in lines} for name, lines in program.computations.items()}
    for instruction, computation, times in program.executed(fusions=False):
        if instruction.op in FREE or is_exchange(instruction.op) or ALLOCATION in instruction.rest:
            continue
        one = kernel(program, instruction, shapes[computation])
        speed = chip.flops * (FLOAT32[chip.platform] if one.is_float32 else 1.0)
        if chip.clock and (cycles := CYCLES.search(instruction.rest)):
            by_cycles += times * int(cycles[1]) / chip.clock
        else:
            seconds += times * max(one.flops / speed, one.traffic / chip.bandwidth)
        flops, traffic, count = flops + times * one.flops, traffic + times * one.traffic, count + times
    return Cost(seconds + by_cycles, by_cycles, flops, traffic, count)


def is_exchange(op: str) -> bool:
    """Collectives, and what begins or ends something asynchronous."""
    starts = op.removesuffix("-start") in COLLECTIVES or op in ("async-start", "copy-start")
    return starts or op.endswith(("-done", "-update"))


def kernel(program: Program, instruction: Instruction, shapes: dict[str, str]) -> Kernel:
    """What one run of an instruction costs; ``shapes`` are those of its computation."""
    if instruction.op != "fusion":
        flops, wide = product(instruction, shapes)
        return Kernel(flops, wide, _traffic(instruction, shapes))
    inside = [line for name in instruction.called for line in program.computations.get(name, [])]
    own = {line.name: line.shape for line in inside}
    products = [product(line, own) for line in inside]
    flops = sum(found for found, _ in products)
    return Kernel(flops, any(wide for found, wide in products if found), _fused_traffic(instruction, inside, shapes))


def product(instruction: Instruction, shapes: dict[str, str]) -> tuple[float, bool]:
    """FLOPs of a matrix product, 2 per multiply-add, and whether it is of float32; 0 for anything else."""
    operands = [arrays(shapes.get(name, "")) for name in instruction.operands[:2]]
    if len(operands) < 2 or not all(operands) or not instruction.arrays:
        return 0.0, False
    left, right = operands[0][0], operands[1][0]
    out = math.prod(instruction.arrays[0][1])
    if instruction.op == "convolution":
        return 2.0 * out * _window(instruction.rest, right[1]), left[0] == "f32"
    contracted = re.search(r'lhs_contracting_dim(?:s|ensions)"?[=:][\[{]([\d",]*)[\]}]', instruction.rest)
    if instruction.op not in ("dot", "custom-call") or contracted is None:
        return 0.0, False
    axes = [int(axis) for axis in re.findall(r"\d+", contracted[1])]
    return 2.0 * out * math.prod(left[1][axis] for axis in axes), left[0] == "f32"


def _window(rest: str, kernel: tuple[int, ...]) -> float:
    """Multiply-adds per result of a convolution.

    XLA on TPU writes a batched product as a convolution whose window slides over a dilated batch, so that only one of
    the window's places meets a value: such an axis is not counted.
    """
    labels = re.search(r"dim_labels=\w+_(\w+)->", rest)
    if labels is None:
        return 0.0
    window = {key: values.split("x") for key, values in re.findall(r"(size|stride|lhs_dilate)=([\dx]+)", rest)}
    count = 1.0
    for label, side in zip(labels[1], kernel, strict=True):
        if label == "o":
            continue
        if label.isdigit() and (dilate := window.get("lhs_dilate")) and int(dilate[int(label)]) > 1:
            continue
        count *= side
    return count


def _traffic(instruction: Instruction, shapes: dict[str, str]) -> float:
    """Bytes that an instruction outside of fusions reads and writes."""
    out = size_of(instruction.arrays)
    operands = [size_of(arrays(shapes.get(name, ""))) for name in instruction.operands]
    if instruction.op in ("dynamic-slice", "gather", "slice"):
        return 2.0 * out
    if instruction.op == "dynamic-update-slice":
        return 2.0 * operands[1] if len(operands) > 1 else 0.0
    if instruction.op == "custom-call" and "gemm" in instruction.rest + instruction.shape:
        out = size_of(instruction.arrays[:1])  # behind the result there is only scratch
    return float(out + sum(operands))


def _fused_traffic(fusion: Instruction, inside: list[Instruction], shapes: dict[str, str]) -> float:
    """A fusion reads of an operand that it only slices the slices, and writes of an updated array the update."""
    sizes = {line.name: size_of(line.arrays) for line in inside}
    read = 0.0
    for line in inside:
        if line.op != "parameter":
            continue
        users = [user for user in inside if line.name in user.operands]
        if users and all(_slices(user, line.name) for user in users):
            read += sum(sizes[user.name] for user in users)
        elif not (users and all(_updates(user, line.name) for user in users)):
            read += sizes[line.name]
    updates = [line for line in inside if line.op == "dynamic-update-slice" and len(line.operands) > 1]
    if updates and any(line.is_root for line in updates):
        return read + sum(sizes.get(line.operands[1], 0) for line in updates)
    return read + size_of(fusion.arrays)


def _slices(user: Instruction, name: str) -> bool:
    """Whether an instruction reads only a part of the array, which is not its index."""
    return user.op in ("dynamic-slice", "gather") and user.operands[:1] == [name]


def _updates(user: Instruction, name: str) -> bool:
    """Whether an instruction only overwrites a part of the array."""
    return user.op == "dynamic-update-slice" and user.operands[:1] == [name]
