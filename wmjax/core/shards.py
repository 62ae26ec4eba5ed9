"""The part of a job that this process does when several processes or hosts share it. Imports no jax."""

import os
import sys
from collections.abc import Mapping

from wmjax.core.errors import UserError
from wmjax.core.settings import parse_integer, quoted

Shard = tuple[int, int]
"""Index and count."""
UNSHARDED: Shard = (0, 1)
COUNTERS = (
    ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
"""The variables in which a launcher numbers its processes: jax.distributed's own, those of ``srun`` and ``mpirun``.

``SLURM_NTASKS`` would not do: it is set in a batch script as well, which is one process in spite of its value.
"""

DETECT = "WMJAX_DISTRIBUTED"
"""``auto`` leaves it to jax to find the other processes where no variable tells: Cloud TPU, Kubernetes."""


def own_shard(environment: Mapping[str, str] = os.environ) -> Shard:
    """Returns this process's shard: from jax.distributed if it runs, else from the launcher's variables.

    Raises:
        UserError: only jax could tell, and it has not been asked: every process would take the whole job.

    """
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        return jax.process_index(), jax.process_count()
    for index, count in COUNTERS:
        if index in environment and count in environment:
            return check_shard((_number(environment, index), _number(environment, count)))
    if (host := _tpu_host(environment)) is not None:
        return check_shard(host)
    if DETECT in environment:
        raise UserError(f"{DETECT} is set, but only training lets jax find the other processes; give --shard i/n")
    return UNSHARDED


def _tpu_host(environment: Mapping[str, str]) -> Shard | None:
    """A host of a TPU slice, or of several slices, by the variables that GKE sets and jax reads; None elsewhere."""
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    if hosts is None or "TPU_WORKER_ID" not in environment:
        return None
    count = len(hosts.split(","))
    slices, own = (
        _number(environment, name) if environment.get(name) else default
        for name, default in (("MEGASCALE_NUM_SLICES", 1), ("MEGASCALE_SLICE_ID", 0))
    )
    return own * count + _number(environment, "TPU_WORKER_ID"), slices * count


def _number(environment: Mapping[str, str], name: str) -> int:
    """A launcher's variable as a number.

    Raises:
        UserError: it is none.

    """
    if (number := parse_integer(environment[name])) is None:
        raise UserError(
            f"the environment variable {name} is {quoted(environment[name])}; set it to a number, or unset it"
        )
    return number


def parse_shard(text: str | None) -> Shard:
    """Reads ``i/n``; None is :func:`own_shard`.

    Raises:
        UserError: not of that form, or i outside [0, n).

    """
    if text is None:
        return own_shard()
    index, count = (parse_integer(part) for part in text.partition("/")[::2])
    if index is None or count is None:
        raise UserError(f"shard {quoted(text)} is not i/n with 0 <= i < n; for example --shard 0/4")
    return check_shard((index, count))


def check_shard(shard: Shard) -> Shard:
    """The shard itself.

    Raises:
        UserError: its index is not below its count.

    """
    index, count = shard
    if not 0 <= index < count:
        raise UserError(f"shard '{index}/{count}' is not i/n with 0 <= i < n; for example --shard 0/{max(count, 1)}")
    return shard
