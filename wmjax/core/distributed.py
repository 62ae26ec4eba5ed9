"""Training with several processes or hosts: they join, take turns, and fail together.

The launcher's environment tells a process that it is one of several (:mod:`wmjax.core.shards`). In a single process
every function here does nothing, and jax.distributed is not used. jax is imported on use, because commands that do not
need jax import this module too.
"""

import itertools
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.shards import DETECT, own_shard

if TYPE_CHECKING:
    from jax.sharding import Mesh

T = TypeVar("T")
ADDRESS = "JAX_COORDINATOR_ADDRESS"
WEEK_MS = 7 * 24 * 3600 * 1000
"""Longer than any stage that the other processes wait for."""
_waits = itertools.count()


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of the job, if the launcher announces any; must precede every jax computation.

    Raises:
        UserError: several processes but no address to meet at, an address without the processes' number, or jax was to
            find the job by itself and found none.

    """
    import jax

    if jax.distributed.is_initialized():
        return
    if (detect := environment.get(DETECT)) is not None:
        _detect(detect)
        return
    index, count = own_shard(environment)
    address = environment.get(ADDRESS)
    if address is not None and "JAX_NUM_PROCESSES" not in environment and count == 1:
        raise UserError(f"{ADDRESS} is {address!r} but the job has one process; set JAX_NUM_PROCESSES, JAX_PROCESS_ID")
    if count == 1:
        return
    try:
        jax.distributed.initialize(address, count, index)  # Slurm's address is found by jax
    except ValueError as error:
        raise UserError(
            f"{ADDRESS} is missing for process {index} of {count}; set it to HOST:PORT of process 0, everywhere"
        ) from error


def _detect(value: str) -> None:
    """Joins the job that jax finds in the cluster's own variables or metadata."""
    import jax

    if value != "auto":
        raise UserError(f"{DETECT} is {value!r}; set it to auto, or leave it out on a single host")
    try:
        jax.distributed.initialize()
    except ValueError as error:
        raise UserError(
            f"{DETECT} is auto but jax finds no cluster here ({error}); "
            f"set {ADDRESS}, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def is_first() -> bool:
    """True on the one process that writes metrics, records, encodes and evaluates."""
    import jax

    return jax.process_index() == 0


def wait() -> None:
    """Returns when all processes have called it as often.

    Waits at jax's coordination service and not in a collective, which occupies devices and gives up in time.
    """
    import jax
    import orbax.checkpoint as ocp

    if jax.process_count() > 1:
        ocp.multihost.get_barrier_sync_fn()(key=f"wmjax-{next(_waits)}", timeout_ms=WEEK_MS)


def connect(mesh: "Mesh") -> None:
    """Lets all devices of a mesh exchange something once, while the processes are side by side.

    At the first exchange, gloo, by which CPUs talk, gives up after 30 s on a process that still compiles.
    """
    import jax
    from jax.experimental import multihost_utils
    from jax.sharding import NamedSharding, PartitionSpec

    if jax.process_count() > 1:
        wait()
        multihost_utils.sync_global_devices("wmjax")
        everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        ones = jax.make_array_from_callback((mesh.size,), everywhere, np.ones(mesh.size, np.float32).__getitem__)
        jax.block_until_ready(jax.jit(lambda x: x.sum())(ones))


def alone(body: Callable[[], object]) -> None:
    """The first process runs ``body`` while the others wait."""
    if is_first():
        body()
    wait()


def first(body: Callable[[], T]) -> T:
    """The result of ``body``: the first process computes it, then the others find it on the shared file system."""
    if not is_first():
        wait()
        return body()
    made = body()
    wait()
    return made


def together(body: Callable[[], int]) -> int:
    """Runs a command's body and returns its exit status; if that is not 0, the process ends here and now.

    Otherwise it would wait at its end for the others, and they for it. They notice when its connection breaks or,
    on backends that do not say so, after jax's heartbeat of 100 s.
    """
    status = 1
    try:
        status = body()
    finally:
        if status and _joined():
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return status


def _joined() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
