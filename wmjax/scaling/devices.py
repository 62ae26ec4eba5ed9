"""The devices of a topology: simulated ones of this CPU, or a description of accelerators that are not available."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmjax.core.errors import UserError
from wmjax.scaling.chips import Chip, Topology

TARGET = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  {fields}
}}
runtime_version: {{ major: 12 minor: 8 patch: 0 }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "NVIDIA {name}"
"""
"""XLA's description of a GPU as a compilation target (``GpuTargetConfigProto``)."""


def devices(topology: Topology) -> Sequence[Any]:
    """The devices for a mesh. The environment must be that of :func:`environment`, before jax starts.

    Raises:
        UserError: the compiler knows no such topology.

    """
    import jax
    from jax.experimental import topologies

    if topology.chip is None:
        return jax.devices()[: topology.devices]
    shape = "x".join(map(str, topology.shape))
    try:
        if topology.platform == "tpu":
            found = topologies.get_topology_desc(platform="tpu", topology_name=f"{topology.name}:{shape}")
        else:
            grid = "x".join(["1", *map(str, (1, *topology.shape)[-2:])])
            found = topologies.get_topology_desc(
                topology.name, "cuda", target_config=target_config(topology.name, topology.chip), topology=grid
            )
    except Exception as error:  # plugins raise what they like
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"--topology {topology.name}:{shape}: its compiler refuses it ({reason}); take another shape"
        ) from error
    return found.devices


def target_config(name: str, chip: Chip) -> str:
    """The description of a GPU that XLA compiles for."""
    values = dict(chip.target)
    major, minor = values.pop("major"), values.pop("minor")
    fields = " ".join(
        f"{field}: {value:g}" if field == "clock_rate_ghz" else f"{field}: {value:.0f}"
        for field, value in values.items()
    )
    return TARGET.format(major=major, minor=minor, fields=fields, name=name.upper())


def environment(topology: Topology, site: Path, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of the process that compiles; no accelerator is looked for.

    Args:
        topology: what is compiled for.
        site: the interpreter's folder of packages, where CUDA's tools lie.
        given: the variables of this process.

    """
    found = {**given, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}
    flags = [flag for flag in given.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    if topology.platform == "cpu":
        flags.append(f"--xla_force_host_platform_device_count={topology.devices}")
    if topology.platform == "tpu":
        found |= {
            "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_MIN_LOG_LEVEL": "3",
        }  # fmt: skip
    if topology.platform == "gpu":
        found["CUDA_VISIBLE_DEVICES"] = "-1"
        # Without a GPU no kernel can be timed, and Triton's products are chosen by timing.
        flags += ["--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false"]
        tools = site / "nvidia" / "cuda_nvcc"
        if tools.is_dir():
            found["PATH"] = f"{tools / 'bin'}{os.pathsep}{given.get('PATH', '')}"
            flags.append(f"--xla_gpu_cuda_data_dir={tools}")
    return found | {"XLA_FLAGS": " ".join(flags)}
