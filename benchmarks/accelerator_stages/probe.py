"""The device and its software: versions, matrix products in both frameworks, copies between host and device."""

import contextlib
import functools
import importlib
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator_stages.session import Session
from wmjax.scaling.clock import timed

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax.checkpoint", "grain", "torch", "transformers", "peft", "mujoco")
QUERY = (
    "nvidia-smi",
    "--query-gpu=name,memory.total,driver_version,clocks.sm,temperature.gpu",
    "--format=csv,noheader",
)
COPIED = 100 << 20
"""Bytes of a copy between host and device."""
MOVED = 2 << 30
"""Bytes of a copy on the device: many times its caches."""


def run(session: Session) -> None:
    """The stage."""
    session.attempt(software, needs=0, what="software")
    for work in (products, device_put, torch_products, torch_copies):
        session.attempt(functools.partial(work, session), needs=8, what=work.__name__)


def software() -> dict[str, Any]:
    """Versions, and what the driver says of the GPU; a missing package is left out."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(ImportError):
            versions[name] = str(getattr(importlib.import_module(name), "__version__", "?"))
    driver = None
    with contextlib.suppress(OSError):
        driver = subprocess.run(QUERY, capture_output=True, text=True).stdout.strip()
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "driver": driver,
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "versions": versions,
    }


def products(session: Session) -> dict[str, Any]:
    """Square products in JAX, and what the device's default precision does to float32.

    A relative error near 3e-4 says that float32 products are computed in TF32, one near 3e-3 in bfloat16.
    """
    edge = session.sizes.product
    half = [jax.random.normal(jax.random.key(i), (edge, edge), jnp.bfloat16) for i in range(2)]
    a, b = (x.astype(jnp.float32) for x in half)
    multiply = jax.jit(jnp.matmul)
    seconds, _ = timed(lambda: multiply(*half), jax.block_until_ready)
    seconds32, _ = timed(lambda: multiply(a, b), jax.block_until_ready)
    rows = min(edge, 512)
    exact = jax.jit(functools.partial(jnp.matmul, precision="highest"))(a[:rows], b)
    error = jnp.linalg.norm(multiply(a, b)[:rows] - exact) / jnp.linalg.norm(exact)
    flops = 2 * edge**3
    return {
        "edge": edge,
        "bfloat16_tflop_per_s": flops / seconds / 1e12,
        "float32_default_tflop_per_s": flops / seconds32 / 1e12,
        "float32_default_error": float(error),
    }


def device_put(session: Session) -> dict[str, Any]:
    """From pageable host memory to the device, by JAX."""
    host = np.zeros(COPIED, np.uint8)
    seconds, _ = timed(lambda: jax.device_put(host), jax.block_until_ready, rounds=5, warm_up=1)
    return {"gb_per_s": host.nbytes / seconds / 1e9}


def torch_products(session: Session) -> dict[str, Any]:
    """The same product in PyTorch."""
    import torch

    device, edge = ("cuda" if torch.cuda.is_available() else "cpu"), session.sizes.product
    a, b = (torch.randn(edge, edge, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds, _ = timed(lambda: a @ b, _torch_wait)
    return {"edge": edge, "bfloat16_tflop_per_s": 2 * edge**3 / seconds / 1e12}


def torch_copies(session: Session) -> dict[str, Any]:
    """On the device, and to it from pageable and from pinned memory; on a GPU only."""
    import torch

    if not torch.cuda.is_available():
        return {"skipped": "PyTorch sees no GPU"}
    source = torch.empty(MOVED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds, _ = timed(lambda: target.copy_(source), _torch_wait)
    found = {"on_device_tb_per_s": 2 * MOVED / seconds / 1e12}
    host = torch.empty(COPIED, dtype=torch.uint8)
    for name, memory in (("pageable", host), ("pinned", host.pin_memory())):
        seconds, _ = timed(lambda memory=memory: memory.to("cuda", non_blocking=True), _torch_wait)
        found[f"{name}_gb_per_s"] = COPIED / seconds / 1e9
    return found


def _torch_wait(result: Any) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
