"""The layout of activations over the devices of a mesh.

XLA's partitioner propagates the layout of parameters and inputs. Where a kernel is split over ``fsdp`` along the axis
that a product sums over, it may as well split the activations that way, compute every device's part for the whole
global batch and sum the parts: much more to exchange than the kernel, which is what FSDP gathers. So the models say of
their activations that the first axis is the batch's.

Of the last axis they say whether it is split over ``tensor``, as Megatron-LM does (Shoeybi et al. 2019,
arXiv:1909.08053): the heads of attention and the hidden units of an MLP are, the residual stream between them is whole.
Each half of a block then exchanges one activation per pass: the sum of its last product. If the residual stream were
split as well, every layer would gather it.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

BATCH_AXES = ("data", "fsdp")
"""The axes of a mesh that the batch is split over."""
TENSOR = "tensor"
"""The axis of a mesh that heads and hidden units are split over."""
TENSOR_NAMES = ("mlp", "heads", "kv", "vocab")
"""Logical names of the axes that are split over :data:`TENSOR`, in kernels and in what they make."""
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def activations_on(mesh: Mesh) -> Iterator[None]:
    """Programs traced in the block lay activations out over ``mesh``; elsewhere :func:`split_batch` does nothing."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def divides(mesh: Mesh, axis: str, size: int, heads: int | None) -> bool:
    """Whether an axis of the mesh divides one of an array, and splits no head in it.

    Args:
        mesh: the mesh.
        axis: its axis.
        size: of the array's axis.
        heads: the number of heads in the array's axis; None if it has none.

    """
    return size % mesh.shape[axis] == 0 and (heads is None or heads % mesh.shape[axis] == 0)


def tensor_devices() -> int:
    """The number of devices along :data:`TENSOR` of the mesh that is traced for; 1 without a mesh."""
    mesh = _mesh.get()
    return 1 if mesh is None else mesh.shape[TENSOR]


def gather_rows(table: Shaped[Array, "rows width"], rows: str) -> Shaped[Array, "rows width"]:
    """A table to look rows up in: where rows are split over :data:`TENSOR`, by their logical name, each is whole.

    If both axes of a table are split, XLA looks parts of rows up and has no good way to lay them out by the batch.
    """
    mesh = _mesh.get()
    if mesh is None or mesh.shape[TENSOR] == 1:
        return table
    is_split = rows in TENSOR_NAMES and divides(mesh, TENSOR, table.shape[0], None)
    spec = PartitionSpec(TENSOR if is_split else None, None)
    return jax.lax.with_sharding_constraint(table, NamedSharding(mesh, spec))


def split_batch(
    x: Shaped[Array, "batch ..."], last: str | None = None, heads: int | None = None
) -> Shaped[Array, "batch ..."]:
    """The same array, its first axis split over :data:`BATCH_AXES` and its last one by its name, all others whole.

    A first axis that the devices do not divide stays as it is, and so do vectors.

    Args:
        x: its first axis may also count several things of each sample, sample after sample, such as images.
        last: the logical name of the last axis; those of :data:`TENSOR_NAMES` are split, others are whole.
        heads: the number of heads in the last axis, which are not split.

    """
    mesh = _mesh.get()
    if mesh is None or x.ndim < 2 or mesh.size == 1:
        return x
    samples = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    first = PartitionSpec.UNCONSTRAINED if x.shape[0] % samples else BATCH_AXES
    is_split = last in TENSOR_NAMES and divides(mesh, TENSOR, x.shape[-1], heads)
    spec = PartitionSpec(first, *(None,) * (x.ndim - 2), TENSOR if is_split else None)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
