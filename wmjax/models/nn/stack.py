"""Stacks of equal layers: one module whose variables have a leading layer axis, run by ``jax.lax.scan``.

The compile time does not depend on the depth, and no NNX transform runs in the training step: the layers are
split once into a static graph and plain arrays, which the scan slices.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_policies

from wmjax.core.errors import UserError, unknown_name
from wmjax.models.nn.layout import split_batch

Remat = Literal["none", "full", "names", "dots", "dots_no_batch", "auto"]
"""The activations that the backward pass recomputes: none, all, or all but some.

``auto`` is for settings: a training replaces it by what fits into memory (:mod:`wmjax.scaling.fitting`). A network that
is built with it computes like ``full``.
``names`` keeps the output of each linear layer, the sum of product, bias and adapter. ``dots`` keeps every matrix
product, so that a layer with an adapter has three, and ``dots_no_batch`` those without a batch axis, which leaves out
the products of attention.
"""

LINEAR_OUTPUT = "linear_output"
"""The name of what ``names`` keeps (``jax.ad_checkpoint.checkpoint_name``)."""

M = TypeVar("M", bound=nnx.Module)
Carry = Any


_EVERY_VARIABLE: Any = {...: 0}


def annotate(initializer: Callable[..., jax.Array], *axes: str | None, heads: int | None = None) -> Callable[..., Any]:
    """Gives the parameter made by ``initializer`` logical axis names; the trainer maps them to mesh axes.

    Names are only recorded. Flax would otherwise look for mesh axes of these names when a module is built. ``heads`` is
    the number of heads in an axis named ``heads`` or ``kv``, which is split between heads only.
    """
    return nnx.with_partitioning(initializer, axes, eager_sharding=False, heads=heads)


def stack_layers(make: Callable[[nnx.Rngs], M], depth: int, rngs: nnx.Rngs) -> M:
    """Builds ``depth`` layers as one module; every variable has a leading axis named ``layers``.

    Layers must hold no random state: dropout keys are handed to them when they run.
    """

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=(nnx.StateAxes(_EVERY_VARIABLE),), transform_metadata={nnx.PARTITION_NAME: "layers"})
    def build(keys: nnx.Rngs) -> M:
        return make(keys)

    return build(rngs)


def run_layers(
    layers: nnx.Module,
    call: Callable[[Any, Carry, Any, int], Carry],
    carry: Carry,
    *,
    per_layer: Any = None,
    period: int = 1,
    remat: Remat = "none",
    unroll: int = 1,
    collect: bool = False,
    last_call: Callable[[Any, Carry, Any, int], Carry] | None = None,
) -> tuple[Carry, Carry | None]:
    """Runs stacked layers one after the other.

    Args:
        layers: the result of :func:`stack_layers`.
        call: ``call(layer, carry, extra, kind) -> carry``; ``extra`` is this layer's slice of ``per_layer`` and
            ``kind`` the static ``index % period``, so that layers may differ periodically.
        carry: what flows through the layers; its shapes and dtypes must not change. The first axis is the batch's.
        per_layer: a pytree of arrays with a leading layer axis, such as random keys.
        period: layers per scan step; must divide the depth.
        remat: the rematerialisation policy, applied to each layer.
        unroll: scan steps unrolled per loop iteration; the number of steps makes it a plain sequence.
        collect: whether to return the carry after every layer too.
        last_call: replaces ``call`` at the last layer, and may return a carry of other shapes, where the layers are a
            plain sequence: one layer per step, all unrolled, nothing collected. Ignored elsewhere.

    Returns:
        The last carry and, if collected, all carries with a leading layer axis.

    """
    graph, state = nnx.split(layers)
    arrays = nnx.as_pure(state)
    depth = jax.tree.leaves(arrays)[0].shape[0]
    if depth % period:
        raise UserError(f"period is {period}, which does not divide the depth {depth}; use a divisor")
    steps = depth // period

    run_one = _on_arrays(graph, call, remat)

    def step(carry: Carry, inputs: tuple[Any, Any]) -> tuple[Carry, Carry | None]:
        collected = []
        for kind in range(period):
            arrays, extra = jax.tree.map(lambda x, kind=kind: x[kind], inputs) if period > 1 else inputs
            carry = run_one(arrays, carry, extra, kind)
            collected.append(carry)
        return carry, jax.tree.map(lambda *x: jnp.stack(x), *collected) if collect else None

    inputs = (arrays, per_layer)
    if last_call is not None and period == 1 and steps <= unroll and not collect:
        if depth > 1:
            carry, _ = jax.lax.scan(step, carry, jax.tree.map(lambda x: x[:-1], inputs), unroll=depth - 1)
        last, extra = jax.tree.map(lambda x: x[-1], inputs)
        return _on_arrays(graph, last_call, remat)(last, carry, extra, 0), None
    if period > 1:
        inputs = jax.tree.map(lambda x: x.reshape(steps, period, *x.shape[1:]), inputs)
    carry, collected = jax.lax.scan(step, carry, inputs, unroll=min(unroll, steps))
    return carry, jax.tree.map(lambda x: x.reshape(depth, *x.shape[2:]), collected) if collect else None


def _on_arrays(
    graph: nnx.GraphDef, call: Callable[[Any, Carry, Any, int], Carry], remat: Remat
) -> Callable[..., Carry]:
    """``call`` as a function of a layer's arrays, laid out by the batch and rematerialised."""

    def one(arrays: Any, carry: Carry, extra: Any, kind: int) -> Carry:
        carry = jax.tree.map(split_batch, carry)
        return jax.tree.map(split_batch, call(nnx.merge(graph, arrays), carry, extra, kind))

    return _rematerialise(one, remat)


def _rematerialise(layer: Callable[..., Carry], remat: Remat) -> Callable[..., Carry]:
    """Wraps a layer in the named policy."""
    policies: dict[str, Any] = {
        **dict.fromkeys(("full", "auto"), checkpoint_policies.nothing_saveable),
        "names": checkpoint_policies.save_only_these_names(LINEAR_OUTPUT),
        "dots": checkpoint_policies.dots_saveable,
        "dots_no_batch": checkpoint_policies.dots_with_no_batch_dims_saveable,
    }
    if remat == "none":
        return layer
    if remat not in policies:
        raise unknown_name("remat policy", remat, get_args(Remat))
    return jax.checkpoint(layer, policy=policies[remat], static_argnums=(3,), prevent_cse=False)


def find_period(kinds: tuple[bool, ...]) -> int:
    """The shortest period of a sequence of layer kinds that divides its length."""
    depth = len(kinds)
    for period in range(1, depth + 1):
        if depth % period == 0 and all(kinds[i] == kinds[i % period] for i in range(depth)):
            return period
    return depth
