"""What the devices of a mesh exchange in one training step: which kinds of collectives, of what, and how much.

Equal losses on all meshes cannot tell that a mesh moves ten times too much. The network is tiny and the batch large, so
that a single exchange of activations would be more than all parameters together.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import QUICK_FUSIONS

ROOT = Path(__file__).parents[2]
BATCH = 1024
JOBS: dict[str, dict[str, Any]] = {
    "fsdp": {"lora": False, "half": False, "fsdp": 8, "tensor": 1},
    "fsdp, layout left to XLA": {"lora": False, "half": False, "fsdp": 8, "tensor": 1, "guess": True},
    "fsdp, LoRA": {"lora": True, "half": False, "fsdp": 8, "tensor": 1},
    "tensor": {"lora": False, "half": False, "fsdp": 1, "tensor": 2},
    "tensor, LoRA": {"lora": True, "half": False, "fsdp": 1, "tensor": 2},
    "fsdp, tensor": {"lora": False, "half": False, "fsdp": 2, "tensor": 2},
    "fsdp, tensor, LoRA": {"lora": True, "half": False, "fsdp": 2, "tensor": 2},
    "data, half, LoRA": {"lora": True, "half": True, "fsdp": 1, "tensor": 1},
    "data, half, LoRA, cast": {"lora": True, "half": True, "fsdp": 1, "tensor": 1, "cast": True},
}
QUICKLY = f"--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true {QUICK_FUSIONS}"
"""Nothing is run: machine code need not be fast."""
METRICS = 0.04
"""Megabytes: losses, norms, and the world metrics' means of every horizon, position and channel."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    path = tmp_path_factory.mktemp("collectives") / "jobs.json"
    path.write_text(json.dumps([{"devices": 8, "batch": BATCH, **job} for job in JOBS.values()]))
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {QUICKLY}"}
    line = [sys.executable, "-m", "tests.trainer.network", "collectives", str(path)]
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(JOBS, map(json.loads, done.stdout.splitlines()), strict=True))


def megabytes(one: dict[str, Any], *kinds: str) -> float:
    """Of all collectives, or of some kinds."""
    return sum(row["mb"] for kind, row in one["collectives"].items() if not kinds or kind in kinds)


@pytest.mark.long
def test_data_parallel_devices_sum_the_gradients_once_and_in_float32(found: dict[str, Any]) -> None:
    one = found["data, half, LoRA"]
    assert set(one["collectives"]) == {"all-reduce"}, one["largest"]
    row = one["collectives"]["all-reduce"]
    assert set(row["mb_by_dtype"]) <= {"f32", "s32"}, one["largest"]
    assert row["mb"] == pytest.approx(one["trained_mb"], abs=METRICS), one["largest"]


@pytest.mark.long
def test_the_measure_sees_gradients_that_are_summed_in_bfloat16(found: dict[str, Any]) -> None:
    assert found["data, half, LoRA, cast"]["collectives"]["all-reduce"]["mb_by_dtype"].get("bf16", 0) > 0.001


@pytest.mark.long
@pytest.mark.parametrize("name", ["fsdp", "fsdp, LoRA"])
def test_fsdp_moves_parameters_and_gradients_and_no_activations(found: dict[str, Any], name: str) -> None:
    """A kernel is gathered for the forward pass, again where that is repeated, and for the gradient of its input."""
    one = found[name]
    parameters = one["trained_mb"] + one["frozen_mb"]
    assert one["tokens_mb"] > 5 * parameters
    assert megabytes(one, "all-gather") <= 3 * parameters + METRICS, one["largest"]
    assert megabytes(one, "all-reduce", "reduce-scatter") <= 1.5 * one["trained_mb"] + METRICS, one["largest"]
    assert megabytes(one) < one["tokens_mb"], one["largest"]


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in JOBS if "tensor" in name])
def test_a_tensor_axis_sums_the_residual_stream_and_gathers_no_activations(found: dict[str, Any], name: str) -> None:
    """A layer sums it twice forward and once where that is repeated; backward, for each of at most five products that
    read it, of which XLA for GPUs joins some. Kernels may move as with fsdp.
    """
    one = found[name]
    parameters = one["trained_mb"] + one["frozen_mb"]
    assert megabytes(one, "all-reduce") <= 8 * one["streams_mb"] + 1.5 * one["trained_mb"] + METRICS, one["largest"]
    assert megabytes(one) - megabytes(one, "all-reduce") <= 3 * parameters + METRICS, one["largest"]
    assert one["tokens_mb"] > 5 * parameters


@pytest.mark.long
def test_the_measure_sees_what_xla_does_if_nothing_is_said(found: dict[str, Any]) -> None:
    assert megabytes(found["fsdp, layout left to XLA"]) > 5 * megabytes(found["fsdp"])
