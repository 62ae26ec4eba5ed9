"""Mesh and sharding rules: logical axis names on parameters, mapped to the axes of one mesh.

Modules mark each parameter dimension with a logical name (``models.stack.annotate(init, "embed", "mlp")``).
The rules below say which mesh axis a name is split over, as in MaxText and t5x. A dimension that the axis does
not divide stays whole.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from wmjax.core.errors import UserError
from wmjax.core.settings import Range, Settings, Width
from wmjax.core.shards import Shard
from wmjax.models.nn.layout import BATCH_AXES, TENSOR, TENSOR_NAMES, divides

AXES = (*BATCH_AXES, TENSOR)
BATCH = P(BATCH_AXES)
"""The batch dimension is split over the data and the fsdp axis."""

RULES: Mapping[str, str | None] = {
    "embed": "fsdp",
    **dict.fromkeys(TENSOR_NAMES, TENSOR),
    "patch": None,
    "layers": None,
}


@dataclasses.dataclass(frozen=True)
class MeshConfig(Settings, section="mesh"):
    """Devices along each axis; ``data = -1`` takes all that the others leave.

    ``shard_frozen`` splits a frozen backbone by the rules too; by default it is replicated, which is faster
    where it fits (7.5 GB at 3B) because nothing has to be gathered.
    """

    data: Annotated[int, Range(-1, 1_000_000)] = -1
    fsdp: Width = 1
    tensor: Width = 1
    shard_frozen: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data == 0:
            raise UserError("mesh.data is 0; give a number of devices, or -1 for all that the other axes leave")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over ``devices``, by default all that all processes have.

    Raises:
        UserError: the axes do not multiply to the number of devices.

    """
    chosen = jax.devices() if devices is None else list(devices)
    count = len(chosen)
    fixed = config.fsdp * config.tensor
    data = count // fixed if config.data == -1 else config.data
    if data * fixed != count:
        raise UserError(
            f"mesh is data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} but there are {count} devices; "
            f"{_fitting(config, count)}"
        )
    # make_mesh defaults to Explicit axes, under which every op of a model would need a sharding in its type.
    return jax.make_mesh((data, config.fsdp, config.tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=chosen)


def _fitting(config: MeshConfig, devices: int) -> str:
    """The change of a mesh that makes it one of so many devices."""
    fixed = config.fsdp * config.tensor
    if devices % fixed == 0:
        return f"set mesh.data to {devices // fixed}, or to -1"
    nearest = min((n for n in range(1, devices + 1) if devices % n == 0), key=lambda n: abs(n - fixed))
    return f"mesh.fsdp x mesh.tensor has to divide them: take {nearest}, and -1 for mesh.data"


def partition_spec(
    shape: tuple[int, ...], logical: tuple[str | None, ...] | None, mesh: Mesh, heads: int | None = None
) -> P:
    """The PartitionSpec of one parameter, by :data:`RULES`; ``heads`` are those in its axis of heads.

    Raises:
        ValueError: as many names as dimensions are needed, or a name is not in the rules (a bug in a model).

    """
    if logical is None:
        return P()
    if len(logical) != len(shape):
        raise ValueError(f"logical axes {logical} do not fit shape {shape}")
    used: list[str | None] = []
    for size, name in zip(shape, logical, strict=True):
        axis = RULES[name] if name is not None else None
        inside = heads if name in ("heads", "kv") else None
        is_split = axis is not None and axis not in used and divides(mesh, axis, size, inside)
        used.append(axis if is_split else None)
    return P(*used)


def logical_axes(leaf: Any) -> tuple[str | None, ...] | None:
    """The names a parameter was annotated with, if any."""
    return leaf.get_metadata().get("out_sharding") if isinstance(leaf, nnx.Variable) else None


def shardings(tree: Any, mesh: Mesh, *, replicate: bool = False) -> Any:
    """A tree like ``tree`` with a NamedSharding in place of each array (values inside NNX variables included)."""

    def of(leaf: Any) -> Any:
        value = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
        heads = leaf.get_metadata().get("heads") if isinstance(leaf, nnx.Variable) else None
        spec = P() if replicate else partition_spec(np.shape(value), logical_axes(leaf), mesh, heads)
        sharding = NamedSharding(mesh, spec)
        return leaf.replace(sharding) if isinstance(leaf, nnx.Variable) else sharding

    return jax.tree.map(of, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Each process's slice of the global batch (numpy) as one global array, split over the batch dimension."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Arrays (numpy) that all processes have, as global arrays that every device holds whole."""
    sharding = NamedSharding(mesh, P())
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), tree)


def batch_shard(mesh: Mesh) -> Shard:
    """The slice of every global batch that this process loads: index and count."""
    processes = np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)
    return slice_of(processes.reshape(batch_parts(mesh), -1), jax.process_index())


def slice_of(holders: Int[np.ndarray, "parts devices"], process: int) -> Shard:
    """Index and count of the slices of a batch, given the processes whose devices hold each part of it.

    Processes that hold the same parts, as those along a tensor axis do, load the same slice.

    Raises:
        UserError: two processes share some parts but not all.

    """
    parts_of = {int(p): tuple(np.flatnonzero((holders == p).any(axis=1))) for p in np.unique(holders)}
    slices = sorted(set(parts_of.values()))
    if sum(map(len, slices)) != len(holders) or len({len(parts) for parts in slices}) != 1:
        raise UserError(
            f"mesh.tensor is {holders.shape[1]} and makes processes share a part of their samples; let it divide the "
            "number of devices of a process, or be a multiple of it"
        )
    return slices.index(parts_of[process]), len(slices)


def batch_parts(mesh: Mesh) -> int:
    """The number of parts that a global batch is split in."""
    return int(mesh.shape["data"] * mesh.shape["fsdp"])


def fetch(tree: Any) -> Any:
    """Gathers arrays over the mesh as numpy arrays on every process; all processes must call it."""
    return multihost_utils.process_allgather(tree, tiled=True)


def require_divisible(batch_size: int, mesh: Mesh) -> None:
    """Refuses a global batch that the mesh cannot split.

    Raises:
        UserError: names the batch size and a size that works.

    """
    parts = batch_parts(mesh)
    if over := batch_size % parts:
        near = [str(size) for size in (batch_size - over, batch_size - over + parts) if size]
        raise UserError(f"train.batch_size is {batch_size}, the mesh splits it in {parts}; use {' or '.join(near)}")
