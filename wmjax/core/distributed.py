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
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from wmjax.core import signals
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
    _disable_preemption_service()
    try:
        gpus = slurm_gpus(environment) if "SLURM_PROCID" in environment else None
        jax.distributed.initialize(address, count, index, gpus or None)  # jax finds that of Slurm, GKE and mpirun
    except ValueError as error:
        raise UserError(
            f"{ADDRESS} is missing for process {index} of {count}; set it to HOST:PORT of process 0, everywhere"
        ) from error


def slurm_gpus(environment: Mapping[str, str]) -> list[int] | None:
    """Which of the GPUs that a Slurm task sees are its own, by index; None if it sees none, or if
    ``JAX_LOCAL_DEVICE_IDS`` names them.

    jax itself gives each task the one GPU of its number on the host, even if it is the only task of the host.

    Raises:
        UserError: the host's tasks cannot share its GPUs evenly.

    """
    visible = len(visible_gpus(environment))
    if not visible or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    tasks, own = _tasks_of_host(environment), int(environment.get("SLURM_LOCALID", 0))
    total = int(environment.get("SLURM_GPUS_ON_NODE", visible))
    if tasks == 1 or visible * tasks == total:  # Slurm has bound each task to its own already
        return list(range(visible))
    if visible % tasks:
        raise UserError(
            f"{visible} GPUs of this host do not divide over its {tasks} tasks; set --ntasks-per-node to 1 or to a "
            "divisor, or JAX_LOCAL_DEVICE_IDS for each task"
        )
    share = visible // tasks
    return list(range(own * share, (own + 1) * share))


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, else the numbers of all of the host."""
    if (listed := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in listed.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def _tasks_of_host(environment: Mapping[str, str]) -> int:
    """Tasks of this step on this host; Slurm writes ``2(x3),1`` for two on each of three hosts and one on the last."""
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, hosts = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(hosts or 1)
    return counts[min(int(environment.get("SLURM_NODEID", 0)), len(counts) - 1)]


def host_devices(environment: Mapping[str, str] = os.environ) -> str:
    """States how many of the host's devices this process uses, such as ``8 of 8 devices of this host``."""
    import jax

    used = jax.local_device_count()
    there = used
    if jax.default_backend() == "gpu":
        there = int(environment.get("SLURM_GPUS_ON_NODE", len(visible_gpus(environment))))
    return f"{used} of {max(used, there)} devices of this host"


def _detect(value: str) -> None:
    """Joins the job that jax finds in the cluster's own variables or metadata."""
    import jax

    if value != "auto":
        raise UserError(f"{DETECT} is {value!r}; set it to auto, or leave it out on a single host")
    _disable_preemption_service()
    try:
        jax.distributed.initialize()
    except ValueError as error:
        raise UserError(
            f"{DETECT} is auto but jax finds no cluster here ({error}); "
            f"set {ADDRESS}, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def _disable_preemption_service() -> None:
    """Leaves SIGTERM to :mod:`wmjax.core.signals`: jax's preemption service would catch it and end nothing."""
    import jax

    jax.config.update("jax_enable_preemption_service", False)


def is_first() -> bool:
    """Whether this is the process that writes metrics, records, encodes and evaluates."""
    import jax

    return jax.process_index() == 0


def wait(name: str | None = None) -> None:
    """Waits until all processes have called it equally often.

    Waits at jax's coordination service and not in a collective, which occupies devices and gives up in time.

    Args:
        name: of a wait outside the main thread, whose turn among the others is not the same everywhere; used once.

    """
    import jax
    import orbax.checkpoint as ocp

    if jax.process_count() > 1:
        ocp.multihost.get_barrier_sync_fn()(key=f"wmjax-{name or next(_waits)}", timeout_ms=WEEK_MS)


def connect(mesh: "Mesh") -> None:
    """Runs one collective over all devices of a mesh, while all processes are at the same point.

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
    """Runs ``body`` on the first process while the others wait."""
    if is_first():
        body()
    wait()


def first(body: Callable[[], T]) -> T:
    """Returns the result of ``body``: the first process computes it, then the others read it from shared files."""
    if not is_first():
        wait()
        return body()
    made = body()
    wait()
    return made


def broadcast_from_first(body: Callable[[], int]) -> int:
    """Broadcasts a number from the first process to all of them."""
    import jax
    from jax.experimental import multihost_utils

    found = body() if is_first() else 0
    if jax.process_count() == 1:
        return found
    wait()  # the exchange itself would give up on a process that is still busy with it
    return int(multihost_utils.broadcast_one_to_all(np.int32(found)))


def require_same(what: str, content_hash: str, fix: str) -> None:
    """Checks that all processes have the same of something; for one process there is nothing to check.

    Args:
        what: for the error, such as ``demonstrations``.
        content_hash: of what this process has, hexadecimal.
        fix: for the error.

    Raises:
        UserError: this process has another one than the first process.

    """
    own = int(content_hash[:7], 16)
    if broadcast_from_first(lambda: own) != own:
        raise UserError(f"{what} of this process are not those of process 0; {fix}")


class Stopping:
    """Whether any process of a job received a signal, so that all of them stop after the same step.

    With several processes the answer is that of the previous call, so that no process waits for the devices.
    """

    def __init__(self, mesh: "Mesh") -> None:
        self._mesh, self._asked = mesh, None
        self._any: Any = None

    def __call__(self) -> bool:
        """Returns the same answer on all processes, which must call it equally often."""
        import jax

        if jax.process_count() == 1:
            return signals.requested()
        before, self._asked = self._asked, self._ask(signals.requested())
        return before is not None and bool(before.addressable_data(0))

    def _ask(self, own: bool) -> Any:
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        everywhere = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        if self._any is None:
            self._any = jax.jit(lambda x: x.any(), out_shardings=NamedSharding(self._mesh, PartitionSpec()))
        flags = np.full(self._mesh.size, own)
        answer = self._any(jax.make_array_from_callback(flags.shape, everywhere, flags.__getitem__))
        return jax.block_until_ready(answer) if jax.default_backend() == "cpu" else answer


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
