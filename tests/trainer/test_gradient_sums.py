"""What computes in bfloat16 sums the gradients of its parameters over the samples in float32.

On a mesh this is the type of the sum over the devices too: each device's product is a part of the sum, and XLA adds the
parts in the type of the product's result.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.trainer.network import built_for, step_shapes
from wmjax.scaling.flops import bodies

SAMPLES = 13
"""A batch whose size divides no side of the network's arrays but those that count samples."""
JOBS: dict[str, dict[str, Any]] = {
    "adapters, Prophet, head": {"lora": True},
    "everything, injection between layers": {"lora": False, "layers": (0, 1)},
    "adapters, Prophet that reads hidden states": {"lora": True, "variant": "e2aux"},
}


def sums_over_samples(jaxpr: Any) -> Iterator[tuple[str, jnp.dtype]]:
    """Names and result types of the operations that add something of all samples, those in loops included."""
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for body in bodies(value):
                yield from sums_over_samples(body)
        name, first = equation.primitive.name, equation.invars[0].aval if equation.invars else None
        summed: list[int] = []
        if name == "dot_general":
            summed = [first.shape[axis] for axis in equation.params["dimension_numbers"][0][0]]
        elif name == "reduce_sum":
            summed = [first.shape[axis] for axis in equation.params["axes"]]
        elif name == "scatter-add" and not any(side % SAMPLES == 0 for side in first.shape):
            summed = list(equation.invars[2].aval.shape)
        if any(side % SAMPLES == 0 for side in summed):
            yield name, equation.outvars[0].aval.dtype


@pytest.mark.parametrize("name", JOBS)
def test_no_gradient_is_summed_over_samples_in_bfloat16(name: str) -> None:
    job = {"half": True, "devices": 1, "fsdp": 1, "tensor": 1, "batch": SAMPLES, **JOBS[name]}
    built, mesh = built_for(job)
    step = jax.make_jaxpr(built.update)(*step_shapes(built, mesh, SAMPLES))
    found = list(sums_over_samples(step.jaxpr))
    kernels = sum(leaf.ndim > 1 for leaf in jax.tree.leaves(built.shapes.state.params))
    assert sum(operation == "dot_general" for operation, _ in found) > kernels / 4  # a scan has one for several layers
    assert ("scatter-add", jnp.float32) in found or JOBS[name]["lora"]  # a trained embedding table
    assert jnp.bfloat16 not in {dtype for _, dtype in found}


def test_the_measure_sees_the_sum_of_a_parameter_that_is_cast() -> None:
    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum((x @ kernel.astype(x.dtype)).astype(jnp.float32))

    step = jax.make_jaxpr(jax.grad(loss))(jnp.ones((8, 4)), jnp.ones((SAMPLES, 8), jnp.bfloat16))
    assert ("dot_general", jnp.bfloat16) in list(sums_over_samples(step.jaxpr))
