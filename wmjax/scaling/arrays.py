"""Random weights and data, made on the device, and the memory and speed of compiled programs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wmjax.data.packing import VALUES, pack
from wmjax.experiment.config import Experiment
from wmjax.models.inputs import ModelInput
from wmjax.scaling.chips import peak_flops
from wmjax.scaling.clock import clocked
from wmjax.scaling.shapes import batch_shapes, decision_shapes

KNUTH = 2654435761
"""The multiplier of Knuth's multiplicative hash (The Art of Computer Programming, volume 3, section 6.4)."""


def filled(shapes: Any) -> Any:
    """Arrays of the given shapes on the device: noise of variance 1 / inputs, ones for scales, zeros for integers.

    The noise is a hash of the index: one program that compiles in seconds, where the model's own initialisation takes
    longer than its training step. Products of noise run slower than products of zeros, as real weights' would. Shapes
    with a sharding are made in that layout.
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

    placed = jax.tree.map(lambda shape: shape.sharding, shapes)
    return jax.jit(lambda: jax.tree_util.tree_map_with_path(one, shapes), out_shardings=placed)()


def filled_model(make: Callable[[], nnx.Module]) -> Any:
    """The module that ``make`` builds, with :func:`filled` parameters."""
    graph, shapes = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graph, filled(shapes))


def random_batch(experiment: Experiment, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of noise in the form that the loader delivers."""
    rng = np.random.default_rng(seed)
    return {name: _random(rng, shape) for name, shape in batch_shapes(experiment, batch).items()}


def _random(rng: np.random.Generator, shape: jax.ShapeDtypeStruct) -> np.ndarray:
    """Noise; zeros for indices, everything present."""
    if shape.dtype == jnp.bool_:
        return np.ones(shape.shape, bool)
    if shape.dtype == jnp.int32:
        return np.zeros(shape.shape, np.int32)
    if shape.dtype in (jnp.uint8, jnp.int8):
        return rng.integers(jnp.iinfo(shape.dtype).min, jnp.iinfo(shape.dtype).max + 1, shape.shape, shape.dtype)
    noise = rng.uniform(-1, 1, shape.shape).astype(np.float32)
    return pack(noise, "bfloat16")[VALUES] if shape.dtype == jnp.uint16 else noise.astype(shape.dtype)


def random_inputs(experiment: Experiment, rows: int, seed: int = 0) -> ModelInput:
    """Noise in the form in which a policy sees so many robots."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: jnp.asarray(_random(rng, shape)), decision_shapes(experiment, rows))


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
    """The largest memory that this process has used on the device so far; None if the device does not report it."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 1e9 if "peak_bytes_in_use" in stats else None


def throughput(batch: int, seconds: float, flops: float, devices: int = 1) -> dict[str, float | None]:
    """Samples and model FLOPs per second; ``flops`` are those of one sample, without recomputation.

    ``batch`` is over all ``devices``. ``mfu`` (model FLOPs utilisation, arXiv:2204.02311) is their share of the data
    sheet's; None on unknown devices.
    """
    peak = peak_flops(jax.devices()[0].device_kind)
    rate = batch * flops / seconds
    return {
        "s_per_step": seconds,
        "samples_per_s": batch / seconds,
        "model_tflop_per_s": rate / 1e12,
        "mfu": rate / peak / devices if peak else None,
    }
