"""Layers that compute in half precision and whose float32 parameters get float32 gradients.

A gradient is a sum over all positions of the batch. If the parameter is cast to bfloat16 first, the sum of its
gradient is rounded to bfloat16 on every device, and so is the sum over the devices. Here the products of the backward
pass accumulate in float32, and their result leaves the device as it is.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def matmul(x: Float[Array, "rows inputs"], kernel: Float[Array, "inputs out"]) -> Float[Array, "rows out"]:
    """``x @ kernel`` in the type of ``x``; the gradient of a wider kernel is summed in the kernel's own type."""
    return _matmul(x, kernel) if _is_wider(kernel, x) else x @ kernel.astype(x.dtype)


def _is_wider(parameter: Array, x: Array) -> bool:
    return jnp.finfo(parameter.dtype).bits > jnp.finfo(x.dtype).bits


@jax.custom_vjp
def _matmul(x: Float[Array, "rows inputs"], kernel: Float[Array, "inputs out"]) -> Float[Array, "rows out"]:
    return x @ kernel.astype(x.dtype)


def _matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel.astype(x.dtype), (x, kernel)


def _matmul_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return dy @ kernel.astype(x.dtype).T, jnp.matmul(x.T, dy, preferred_element_type=kernel.dtype)


_matmul.defvjp(_matmul_forward, _matmul_backward)


def spread(vector: Float[Array, " width"], like: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
    """The vector, such as a bias, in the shape and type of ``like``; a wider one's gradient is summed in its type."""
    if _is_wider(vector, like):
        return _spread(vector, like.shape, like.dtype)
    return jnp.broadcast_to(vector.astype(like.dtype), like.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _spread(vector: Float[Array, " width"], shape: tuple[int, ...], dtype: jnp.dtype) -> Float[Array, "*rows width"]:
    return jnp.broadcast_to(vector.astype(dtype), shape)


def _spread_forward(vector: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[Array, Array]:
    return _spread(vector, shape, dtype), jnp.zeros((), vector.dtype)


def _spread_backward(shape: tuple[int, ...], dtype: jnp.dtype, saved: Array, dy: Array) -> tuple[Array]:
    return (dy.astype(saved.dtype).sum(tuple(range(len(shape) - 1))),)


_spread.defvjp(_spread_forward, _spread_backward)
