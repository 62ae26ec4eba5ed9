"""The layout of activations over the devices of a mesh.

XLA's partitioner propagates the layout of parameters and inputs. Where a kernel is split over ``fsdp`` along the axis
that a product sums over, it may as well split the activations that way, compute every device's part for the whole
global batch and sum the parts: much more to exchange than the kernel, which is what FSDP gathers. So the models say of
their activations that the first axis is the batch's.
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
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def activations_on(mesh: Mesh) -> Iterator[None]:
    """Programs traced in the block lay activations out over ``mesh``; elsewhere :func:`split_batch` does nothing."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def split_batch(x: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
    """The same array, its first axis split over :data:`BATCH_AXES`; of the other axes nothing is said.

    The first axis may also count several things of each sample, sample after sample, such as images. One that the
    devices do not divide stays as it is, and so do vectors.
    """
    mesh = _mesh.get()
    if mesh is None or x.ndim < 2:
        return x
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if parts == 1 or x.shape[0] % parts:
        return x
    rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(BATCH_AXES, *rest)))
