"""Prototypes of a faster training step, patched into the model for as long as a program is traced.

None of them is part of wmjax. They measure what a change would bring before anybody makes it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, UInt8

from wmjax.models.backbones.qwen2_5_vl.vision import VisionTower
from wmjax.models.nn import lora
from wmjax.models.nn.stack import LINEAR_OUTPUT


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def adapted(
    x: Float[Array, "rows inputs"],
    kernel: Float[Array, "inputs out"],
    a: Float[Array, "inputs rank"],
    b: Float[Array, "rank out"],
    scale: float,
) -> Float[Array, "rows out"]:
    """``x W + s (x A) B`` as one product, ``[x, s x A] [W; B]``; the adapters' gradients are summed in float32.

    ``W`` is frozen: its gradient is zero.
    """
    return _product(x, kernel, a, b, scale)[0]


def _product(x: Array, kernel: Array, a: Array, b: Array, scale: float) -> tuple[Array, Array]:
    low = (x @ a.astype(x.dtype)) * scale
    return jnp.concatenate([x, low], 1) @ jnp.concatenate([kernel, b.astype(x.dtype)], 0), low


def _forward(x: Array, kernel: Array, a: Array, b: Array, scale: float) -> tuple[Array, tuple[Array, ...]]:
    y, low = _product(x, kernel, a, b, scale)
    return y, (x, kernel, a, b, low)


def _backward(scale: float, saved: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    x, kernel, a, b, low = saved
    wide = dy @ jnp.concatenate([kernel, b.astype(x.dtype)], 0).T
    dlow = wide[:, x.shape[1] :] * scale
    da = jnp.matmul(x.T, dlow, preferred_element_type=jnp.float32)
    db = jnp.matmul(low.T, dy, preferred_element_type=jnp.float32)
    return wide[:, : x.shape[1]] + dlow @ a.astype(x.dtype).T, jnp.zeros_like(kernel), da, db


adapted.defvjp(_forward, _backward)


def _linear(self: lora.Linear, x: Array, adapter: Any = None) -> Array:
    """``Linear.__call__`` without dropout and without a choice of layers, which the 3b scale does not use."""
    if self.dropout or (adapter is not None and adapter.active is not None):
        raise NotImplementedError("the variant knows neither adapter dropout nor lora.layers")
    flat, kernel = x.astype(self.dtype).reshape(-1, x.shape[-1]), self.kernel[...].astype(self.dtype)
    if self.lora_a is None or self.lora_b is None:
        y = flat @ kernel
    else:
        y = adapted(flat, kernel, self.lora_a[...], self.lora_b[...], self.scale)
    if self.bias is not None:
        y = y + self.bias[...].astype(self.dtype)
    return checkpoint_name(y, LINEAR_OUTPUT).reshape(*x.shape[:-1], -1)


@contextlib.contextmanager
def one_product() -> Iterator[None]:
    """Adapters and base as one product, see :func:`adapted`."""
    with mock.patch.object(lora.Linear, "__call__", _linear):
        yield


def _stored_features(
    self: VisionTower, images: UInt8[Array, "images height width channels"], key: Any = None
) -> Float[Array, "images groups out"]:
    """Noise of the tower's output shape that depends on the images, so that it is no constant of the program."""
    vision = self.config.vision
    groups = (images.shape[1] // vision.factor) * (images.shape[2] // vision.factor)
    noise = jax.random.normal(jax.random.key(0), (1, groups, vision.out), self.config.dtype)
    return noise + images[:, :1, 0, :1].astype(self.config.dtype) / 255


@contextlib.contextmanager
def cached_vision() -> Iterator[None]:
    """The frozen vision tower's output comes from a store. Reading it (0.5 MB per view at 3b) is not measured."""
    with mock.patch.object(VisionTower, "__call__", _stored_features):
        yield


VARIANTS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "one_product": one_product,
    "cached_vision": cached_vision,
}


@contextlib.contextmanager
def patched(names: Sequence[str]) -> Iterator[None]:
    """All of the named variants together."""
    with contextlib.ExitStack() as every:
        for name in names:
            every.enter_context(VARIANTS[name]())
        yield
