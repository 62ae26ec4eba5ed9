"""Helpers of the stages that run JAX: the network's settings, and the kernels of a profile."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from benchmarks import qwen_3b
from benchmarks.accelerator_stages.session import Sizes
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig
from wmjax.models.nn.lora import LoRAConfig


def qwen_config(sizes: Sizes, **changes: Any) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL with the adapters of ``train/scales/3b.toml``, base and computation in bfloat16 unless changed."""
    config = qwen_3b.config_of(sizes.qwen)
    return dataclasses.replace(config, lora=LoRAConfig(rank=16, alpha=32.0), **changes)


def heaviest(folder: Path, top: int = 25) -> list[tuple[str, float, float]]:
    """The kernels of a profile that took longest: name, milliseconds and their share of all.

    Args:
        folder: where ``jax.profiler.trace`` wrote.
        top: how many.

    """
    profile = jax.profiler.ProfileData.from_file(str(max(folder.rglob("*.xplane.pb"))))
    total: dict[str, float] = {}
    for plane in profile.planes:
        for line in plane.lines:
            if _holds_kernels(plane.name, line.name):
                for event in line.events:
                    total[event.name] = total.get(event.name, 0.0) + event.duration_ns / 1e6
    bookkeeping = [name for name in total if name.startswith(("Threadpool", "ThunkExecutor", "end: "))]
    for name in bookkeeping:
        del total[name]
    whole = sum(total.values()) or 1.0
    ordered = sorted(total.items(), key=lambda item: -item[1])[:top]
    return [(name[:90], round(ms, 3), round(ms / whole, 4)) for name, ms in ordered]


def _holds_kernels(plane: str, line: str) -> bool:
    """Streams of a GPU, operations of a TPU, threads of XLA on a CPU."""
    if plane.startswith("/device:GPU"):
        return line.startswith("Stream")
    if plane.startswith("/device:TPU"):
        return line == "XLA Ops"
    return line.startswith("tf_XLA")
