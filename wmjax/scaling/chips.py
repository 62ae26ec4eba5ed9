"""Accelerators by name: figures of their data sheets, and topologies such as ``v5e:4x4``. Imports no jax."""

import dataclasses
import math
from typing import Literal

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.settings import parse_integer, quoted

Platform = Literal["tpu", "gpu", "cpu"]


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
        platform: which compiler makes programs for it.
        kinds: parts of JAX's names for it.
        flops: dense bfloat16 FLOP/s.
        bandwidth: bytes/s of its memory.
        memory: bytes of it that a program can use.
        link: bytes/s to the other devices of its host or slice, in one direction.
        target: GPUs only, fields that differ between them in XLA's description of a target.
        clock: TPUs only, cycles/s.

    """

    platform: Platform
    kinds: tuple[str, ...]
    flops: float
    bandwidth: float
    memory: float
    link: float
    target: tuple[tuple[str, float], ...] = ()
    clock: float = 0.0


def _gpu(kind: str, flops: float, link: float, major: int, **target: float) -> Chip:
    """A GPU; XLA's own descriptions (xla/backends/gpu/target_config/specs) have these numbers."""
    fields = {"major": major, "minor": 0, "fpus_per_core": 128, "threads_per_core_limit": 2048, **target}
    return Chip(
        "gpu", (kind,), flops, target["memory_bandwidth"], target["device_memory_size"], link, tuple(fields.items())
    )


_HOPPER = {
    "core_count": 132, "shared_memory_per_core": 233472, "shared_memory_per_block_optin": 232448,
    "l2_cache_size": 52428800, "clock_rate_ghz": 1.98,
}  # fmt: skip

CHIPS: dict[str, Chip] = {
    # cloud.google.com/tpu/docs: FLOP/s, bandwidth, and half of the interconnect's bidirectional bandwidth. libtpu
    # keeps some of the memory for itself (0.25 GiB of 16 on v5e). The clock is that at which the cycles that libtpu
    # estimates for a large product reach these FLOP/s: 2^17 per cycle on v5e, 2^18 on v5p, 2^19 on v6e.
    "v5e": Chip("tpu", ("v5 lite", "v5e"), 197e12, 819e9, 15.75 * 2**30, 100e9, clock=1.50e9),
    "v5p": Chip("tpu", ("v5p",), 459e12, 2765e9, 94.75 * 2**30, 300e9, clock=1.75e9),
    "v6e": Chip("tpu", ("v6",), 918e12, 1640e9, 31.25 * 2**30, 224e9, clock=1.75e9),
    # NVIDIA's data sheets of the SXM parts: dense bfloat16, and NVLink in one direction.
    "a100": _gpu(
        "A100", 312e12, 300e9, 8, core_count=108, fpus_per_core=64, shared_memory_per_core=167936,
        shared_memory_per_block_optin=166912, l2_cache_size=41943040, clock_rate_ghz=1.41,
        memory_bandwidth=2039040000000, device_memory_size=85100068864,
    ),
    "h100": _gpu(
        "H100", 989e12, 450e9, 9, **_HOPPER, memory_bandwidth=3352320000000, device_memory_size=84942979072
    ),
    "h200": _gpu(
        "H200", 989e12, 450e9, 9, **_HOPPER, memory_bandwidth=4800000000000, device_memory_size=151397597184
    ),
    "b200": _gpu(
        "B200", 2250e12, 900e9, 10, core_count=148, shared_memory_per_core=233472,
        shared_memory_per_block_optin=232448, l2_cache_size=132644864, clock_rate_ghz=1.965,
        memory_bandwidth=7672320000000, device_memory_size=191514411008,
    ),
    # NVIDIA's Ada whitepaper: dense bfloat16 that sums in float32; between cards there is PCIe 4.0 x16. XLA ships no
    # description of a card with 24 GB; it compiles for compute capability 8.9 by these numbers.
    "rtx4090": _gpu(
        "RTX 4090", 165.2e12, 32e9, 8, minor=9, core_count=128, shared_memory_per_core=102400,
        shared_memory_per_block_optin=101376, threads_per_core_limit=1536, l2_cache_size=75497472, clock_rate_ghz=2.52,
        memory_bandwidth=1008096000000, device_memory_size=25386352640,
    ),
}  # fmt: skip


def peak_flops(kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device by JAX's name for its kind; None if its data sheet is not known here."""
    found = (chip.flops for chip in CHIPS.values() if any(name.lower() in kind.lower() for name in chip.kinds))
    return next(found, None)


SLICES = {"v5e": 2, "v6e": 2, "v5p": 3}
"""Axes of a TPU slice."""
EXAMPLES = "v5e:4x4, v5p:2x2x1, v6e:2x4, h100:8, h100:8x8 (hosts x GPUs), h200:1, b200:8, a100:8, rtx4090:1 or cpu:8"
MOST = 4096
"""Devices of a topology; more is taken for a slip of the finger."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of one kind; ``chip`` is None for simulated CPU devices. ``shape`` is as it was written."""

    name: str
    shape: tuple[int, ...]
    chip: Chip | None

    @property
    def platform(self) -> Platform:
        """The platform of the compiler that makes programs for it."""
        return "cpu" if self.chip is None else self.chip.platform

    @property
    def devices(self) -> int:
        """The number of devices."""
        return math.prod(self.shape)

    @property
    def link(self) -> float:
        """Bytes/s between devices in one direction; between hosts of GPUs 400 Gbit/s for each."""
        if self.chip is None:
            return math.inf
        return 50e9 if self.platform == "gpu" and len(self.shape) > 1 and self.shape[0] > 1 else self.chip.link


def parse_topology(text: str) -> Topology:
    """Reads ``chip:shape``.

    Raises:
        UserError: no such chip, or a shape that it has not.

    """
    name, _, rest = text.partition(":")
    if name != "cpu" and name not in CHIPS:
        raise unknown_name("chip of --topology", name, [*CHIPS, "cpu"])
    shape = tuple(parse_integer(side) or 0 for side in rest.split("x"))
    if 0 in shape:
        raise UserError(f"--topology is {quoted(text)}; write a chip and its number, such as {EXAMPLES}")
    axes = {SLICES[name]} if name in SLICES else {1} if name == "cpu" else {1, 2}
    if len(shape) not in axes:
        wanted = " or ".join(map(str, sorted(axes)))
        raise UserError(f"--topology is {text!r} with {len(shape)} numbers; {name} has {wanted}, such as in {EXAMPLES}")
    if math.prod(shape) > MOST:
        raise UserError(f"--topology is {text!r}, which are {math.prod(shape)} devices; give at most {MOST}")
    return Topology(name, shape, CHIPS.get(name))
