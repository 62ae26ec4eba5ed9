"""Every mesh shape of 1, 2, 4 and 8 simulated devices trains, validates and saves, and ends at the same numbers."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.kill_chain import metrics
from tests import QUICK_FUSIONS
from tests.data.synthetic import make_store

BOUND = 2e-5
"""Largest difference of a metric between meshes, relative to 1 or the value: float32 sums in another order. A sample
that one mesh sees and another does not, or an update with another scale, makes 1e-3 or more."""
ROOT = Path(__file__).parents[2]
SHAPES = [
    (devices, fsdp, tensor)
    for devices, fsdp, tensor in itertools.product((1, 2, 4, 8), repeat=3)
    if devices % (fsdp * tensor) == 0
]
CODE = """
import json, sys
from pathlib import Path
import numpy as np
from benchmarks.kill_chain import trees
from tests.trainer.toy import fit_toy, toy_config, toy_inputs
from wmjax.data.store import TrainingStore
from wmjax.trainer.sharding import MeshConfig
store, out, shapes = json.loads(sys.argv[1])
for fsdp, tensor in shapes:
    config = toy_config(steps=6, eval_every=3, checkpoint_every=3, eval_batches=4)
    mesh = MeshConfig(fsdp=fsdp, tensor=tensor)
    last = fit_toy(toy_inputs(TrainingStore(Path(store)), config), Path(out) / f"{fsdp}-{tensor}", config, mesh)
    floats = {name: value for name, value in trees(last).items() if "guard" not in name and len(value) > 8}
    np.savez(Path(out) / f"{fsdp}-{tensor}.npz", **{n: np.frombuffer(v, np.float32) for n, v in floats.items()})
"""


def train(devices: int, store: str, out: Path, code: str = CODE) -> None:
    """Trains on every mesh of so many devices, in a process of its own: their number is fixed when jax starts."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=1 {QUICK_FUSIONS}"
    environment = os.environ | {"XLA_FLAGS": flags}
    shapes = [(fsdp, tensor) for count, fsdp, tensor in SHAPES if count == devices]
    line = [sys.executable, "-c", code, json.dumps([store, str(out / str(devices)), shapes])]
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("meshes")
    store = str(make_store(out / "store").folder)
    for devices in (1, 2, 4, 8):
        train(devices, store, out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "fsdp", "tensor"), SHAPES)
def test_a_mesh_trains_as_one_device_does(runs: Path, devices: int, fsdp: int, tensor: int) -> None:
    found, expected = metrics(runs / str(devices) / f"{fsdp}-{tensor}"), metrics(runs / "1" / "1-1")
    assert [(x["step"], x["split"]) for x in found] == [(x["step"], x["split"]) for x in expected]
    assert len(found) == 8
    for line, reference in zip(found, expected, strict=True):
        assert line.keys() == reference.keys()
        for name, value in reference.items():
            if name not in ("step", "split"):
                np.testing.assert_allclose(line[name], value, rtol=BOUND, atol=BOUND, err_msg=f"{line['step']} {name}")


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "fsdp", "tensor"), SHAPES)
def test_a_mesh_ends_at_the_parameters_of_one_device(runs: Path, devices: int, fsdp: int, tensor: int) -> None:
    found, expected = (np.load(runs / place) for place in (f"{devices}/{fsdp}-{tensor}.npz", "1/1-1.npz"))
    assert set(found) == set(expected) and any("ema" in name for name in expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=BOUND, atol=BOUND, err_msg=name)
