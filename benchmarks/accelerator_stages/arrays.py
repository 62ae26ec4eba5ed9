"""Helpers of the stages that run JAX: random weights made on the device, compiled programs and what they need."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import qwen_3b
from benchmarks.accelerator_stages.session import DENSE_BFLOAT16, Sizes, clocked
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig
from wmjax.models.nn.lora import LoRAConfig

KNUTH = 2654435761
"""The multiplier of Knuth's multiplicative hash (The Art of Computer Programming, volume 3, section 6.4)."""


def filled(shapes: Any) -> Any:
    """Arrays of the given shapes on the device: noise of variance 1 / inputs, ones for scales, zeros for integers.

    The noise is a hash of the index: one program that compiles in seconds, where the model's own initialisation takes
    longer than its training step. Products of noise run slower than products of zeros, as real weights' would.
    """

    def one(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> jax.Array:
        if "scale" in jax.tree_util.keystr(path) or not shape.ndim:
            return jnp.ones(shape.shape, shape.dtype)
        if not jnp.issubdtype(shape.dtype, jnp.floating):
            return jnp.zeros(shape.shape, shape.dtype)
        hashed = jax.lax.iota(jnp.uint32, shape.size) * jnp.uint32(KNUTH)
        uniform = (hashed >> 8).astype(jnp.float32) / 2**24 - 0.5
        inputs = shape.shape[-2] if shape.ndim > 1 else shape.shape[-1]
        return (uniform * (12 / inputs) ** 0.5).astype(shape.dtype).reshape(shape.shape)

    return jax.jit(lambda: jax.tree_util.tree_map_with_path(one, shapes))()


def filled_model(make: Callable[[], nnx.Module]) -> Any:
    """The module that ``make`` builds, with :func:`filled` parameters."""
    graph, shapes = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graph, filled(shapes))


def qwen_config(sizes: Sizes, **changes: Any) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL with the adapters of ``train/scales/3b.toml``, base and computation in bfloat16 unless changed."""
    config = qwen_3b.config_of(sizes.qwen)
    return dataclasses.replace(config, lora=LoRAConfig(rank=16, alpha=32.0), **changes)


def compiled(function: Any, *arguments: Any) -> tuple[Any, dict[str, float]]:
    """The program of a jitted function for these arguments, and what it took and needs."""
    lowered, lowering = clocked(lambda: function.lower(*arguments))
    program, compiling = clocked(lowered.compile)
    memory = program.memory_analysis()
    return program, {
        "lower_s": lowering,
        "compile_s": compiling,
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
    }


def peak_gb() -> float | None:
    """The largest memory that this process has used on the device so far; None where the device does not say."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 1e9 if "peak_bytes_in_use" in stats else None


def throughput(batch: int, seconds: float, flops: float) -> dict[str, float | None]:
    """Samples and model FLOPs per second; ``flops`` are those of one sample, without recomputation.

    ``mfu`` (model FLOPs utilisation, arXiv:2204.02311) is their share of the data sheet's; None on unknown devices.
    """
    kind = jax.devices()[0].device_kind
    peak = next((value for name, value in DENSE_BFLOAT16.items() if name.lower() in kind.lower()), None)
    rate = batch * flops / seconds
    return {
        "s_per_step": seconds,
        "samples_per_s": batch / seconds,
        "model_tflop_per_s": rate / 1e12,
        "mfu": rate / peak if peak else None,
    }


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
