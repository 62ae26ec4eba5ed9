"""Half-precision layers whose float32 parameters have float32 gradients, and exact products where it matters."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wmjax.encoders.vjepa2.encoder import VJEPA2, VJEPA2Settings
from wmjax.models.nn.lora import Linear, LoRAConfig
from wmjax.models.nn.precision import matmul, spread
from wmjax.models.nn.transformer import linear
from wmjax.models.world.linear_skip import LinearSkip
from wmjax.scaling.flops import bodies

ROWS, INPUTS, OUT = 4096, 8, 4


def values(*shape: int, seed: int = 0) -> jax.Array:
    """Around 1, so that long sums are large and half precision rounds them."""
    return jnp.asarray(1.0 + 0.1 * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def exact(x: jax.Array, dy: jax.Array) -> np.ndarray:
    return np.asarray(x, np.float64).T @ np.asarray(dy, np.float64)


def test_the_gradient_of_a_product_is_summed_in_float32() -> None:
    x, dy = values(ROWS, INPUTS).astype(jnp.bfloat16), values(ROWS, OUT, seed=1).astype(jnp.bfloat16)
    kernel = values(INPUTS, OUT, seed=2)
    y, back = jax.vjp(matmul, x, kernel)
    dx, dk = back(dy)
    assert (y.dtype, dx.dtype, dk.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(y, x @ kernel.astype(jnp.bfloat16))
    np.testing.assert_array_equal(dx, dy @ kernel.astype(jnp.bfloat16).T)
    np.testing.assert_allclose(dk, exact(x, dy), rtol=1e-5)  # float32 sums of exact products
    plain = jax.vjp(lambda kernel: x @ kernel.astype(jnp.bfloat16), kernel)[1](dy)[0]
    assert np.abs(plain / exact(x, dy) - 1).max() > 1e-4  # what a cast before the product would give


def test_the_gradient_of_a_bias_is_summed_in_float32() -> None:
    like, dy = values(16, ROWS, OUT).astype(jnp.bfloat16), values(16, ROWS, OUT, seed=1).astype(jnp.bfloat16)
    bias = values(OUT)
    y, back = jax.vjp(lambda bias: spread(bias, like), bias)
    assert y.dtype == jnp.bfloat16 and y.shape == like.shape
    found = back(dy)[0]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.asarray(dy, np.float64).sum((0, 1)), rtol=1e-5)


@pytest.mark.parametrize("param", ["float32", "bfloat16"])
def test_a_parameter_that_is_not_wider_is_used_as_it_is(param: str) -> None:
    x, kernel = values(16, INPUTS), values(INPUTS, OUT).astype(param)
    text = str(jax.make_jaxpr(matmul)(x, kernel)) + str(jax.make_jaxpr(spread)(kernel[0], kernel.astype("float32")))
    assert "custom_vjp" not in text
    np.testing.assert_array_equal(matmul(x, kernel), x @ kernel.astype(jnp.float32))


def gradients(module: nnx.Module, x: jax.Array) -> dict[str, jax.Array]:
    graph, state = nnx.split(module)
    found = jax.grad(lambda state: nnx.merge(graph, state)(x).astype(jnp.float32).sum())(state)
    return {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(found)}


def test_layers_have_float32_gradients_of_what_they_would_compute_in_float32() -> None:
    lora = LoRAConfig(rank=2, alpha=2.0)
    x = values(64, 64, INPUTS)
    modules = {
        dtype: [
            Linear(INPUTS, OUT, ("embed", "mlp"), rngs=nnx.Rngs(0), bias=True, name="q_proj", lora=lora,
                   adapted=("q_proj",), dtype=dtype),
            linear(INPUTS, OUT, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)),
        ]
        for dtype in ("bfloat16", "float32")
    }  # fmt: skip
    for half, full in zip(modules["bfloat16"], modules["float32"], strict=True):
        low, high = gradients(half, x), gradients(full, x)
        assert low.keys() == high.keys() and len(low) >= 2
        for name, value in low.items():
            assert value.dtype == jnp.float32, name
            # The inputs and the output are rounded to 8 bits; the sum over 4096 rows is not.
            np.testing.assert_allclose(value, high[name], rtol=1e-2, atol=1e-2 * float(jnp.abs(high[name]).max()))


def products(function: Callable[..., Any], *arguments: Any) -> list[tuple[str, Any]]:
    """The type of the operands and the precision of every matrix product in a function and its gradient."""

    def found(jaxpr: Any) -> Iterator[tuple[str, Any]]:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield str(equation.invars[0].aval.dtype), equation.params["precision"]
            for value in equation.params.values():
                for body in bodies(value):
                    yield from found(body)

    return list(found(jax.make_jaxpr(function)(*arguments).jaxpr))


EXACT = (jax.lax.Precision.HIGHEST,) * 2


def test_latents_are_exact_on_accelerators_which_round_products_otherwise() -> None:
    encoder = VJEPA2(VJEPA2Settings(cameras=("agentview",)))
    clips = jax.ShapeDtypeStruct((1, 4, 112, 112, 3), jnp.uint8)
    found = products(encoder.apply, encoder.params, clips)
    assert len(found) > 5 and set(found) == {("float32", EXACT)}


def test_dense_layers_in_float32_are_exact_and_those_in_bfloat16_as_fast_as_can_be() -> None:
    for dtype, precision in ((None, EXACT), (jnp.float32, EXACT), (jnp.bfloat16, None)):
        graph, state = nnx.split(linear(INPUTS, OUT, dtype=dtype, rngs=nnx.Rngs(0)))
        loss = jax.grad(lambda state, x, graph=graph: nnx.merge(graph, state)(x).astype(jnp.float32).sum(), (0, 1))
        found = products(loss, state, values(3, INPUTS))
        assert len(found) == 3 and {precision for _, precision in found} == {precision}


def test_the_ridge_regression_of_a_prophet_is_exact() -> None:
    graph, state = nnx.split(LinearSkip(3, history=2, future=2, tokens=4, dim=8, rngs=nnx.Rngs(0)))
    found = products(lambda state, x: nnx.merge(graph, state)(x), state, values(3, 2, 4, 8))
    assert found == [("float32", EXACT)] * 2
