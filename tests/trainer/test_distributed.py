"""Two processes train as one: the numbers of one process, resume, one evaluation in parts, and no hang when one dies.

A run's folder is one that both see, or a URL; then each process works in a folder of its own that the other never
reads. Everything runs through the real train command (``tests/trainer/job.py``), on CPU devices of this machine.
"""

import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks.kill_chain import differences
from tests import QUICK_FUSIONS
from tests.data.synthetic import make_store
from tests.trainer.job import EVALUATED, small_model
from wmjax.core import distributed
from wmjax.core.errors import UserError
from wmjax.core.location import Remote
from wmjax.core.rng import named_key
from wmjax.core.shards import DETECT
from wmjax.models.parameters import split_model, to_named, trainable_filter
from wmjax.models.vla import VLA
from wmjax.rollout.results import read_records
from wmjax.trainer import checkpoint
from wmjax.trainer.mirror import Mirror
from wmjax.trainer.sharding import slice_of

TOLERANCE = 2e-5
"""Largest difference between process counts, relative to 1 or the value: sums over devices round in another order
(found: 2.4e-6)."""
MOVED, MOVED_BY_GATE = 0.02, 0.25
"""How differently a parameter may have moved from where it started, of the most that any of its array did (found: 1e-3;
0.02 of the gate, whose gradient is a sum that all but cancels; 0.1 of biases behind it). An array that did not move, or
moved by other samples, is at 1."""
MOVED_ALIKE = 0.5
"""The same for a bias that shifts all keys alike, which a softmax does not see: its gradient through the keys is a sum
that cancels to rounding errors, and it moves by 1e-9 (found: 0.26)."""
AUTO = {"remat": "auto"}
DEADLINE = 900
"""Seconds; a guard, not a measure: the machine may be busy."""
ROOT = Path(__file__).parents[2]
DEVICES = 4
"""Of all processes of a job together; with more of them compiling takes longer."""
ACROSS = {"fsdp": DEVICES}
"""A mesh on which each process holds a part of most parameters."""


class Job:
    """Runs the train command in ``count`` processes that share the devices; see ``tests/trainer/job.py``.

    Args:
        folder: the run's, which all processes see.
        count: of the processes.
        differing: settings of each process.
        devices: of all processes together.
        caches: with these the run is the URL of the folder, and each process has a cache of its own here.
        job: settings of all processes.

    """

    def __init__(
        self,
        folder: Path,
        count: int,
        *differing: dict[str, Any],
        devices: int = DEVICES,
        caches: Path | None = None,
        **job: Any,
    ) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)
        self.processes = []
        for index in range(count):
            run = f"file://{folder}" if caches else str(folder)
            settings = job | {"run": run} | (differing[index] if differing else {})
            path = folder.parent / f"{folder.name}-{index}.json"
            path.write_text(json.dumps(settings))
            environment = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "SLURM_"))} | {
                "WMJAX_CACHE": str(caches / str(index) if caches else folder.parent / "cache"),
                # Compiling is most of the time, and quick programs of this size are as good.
                "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "programs"),
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // count} "
                f"--xla_backend_optimization_level=0 {QUICK_FUSIONS}",
            }
            if count > 1:
                environment |= {
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(index),
                }
            with path.with_suffix(".log").open("w") as log:
                line = [sys.executable, "-m", "tests.trainer.job", str(path)]
                self.processes.append(subprocess.Popen(line, env=environment, cwd=ROOT, stdout=log, stderr=log))
        self.logs = [folder.parent / f"{folder.name}-{index}.log" for index in range(count)]

    def end(self, *, fails: bool = False) -> list[str]:
        """Waits for all processes; what each printed."""
        try:
            codes = [process.wait(DEADLINE) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        printed = [log.read_text() for log in self.logs]
        assert all(code != 0 if fails else code == 0 for code in codes), (codes, *printed)
        return printed


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_store(tmp_path_factory.mktemp("store")).folder)


@pytest.fixture(scope="module")
def one(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that was never interrupted."""
    run = tmp_path_factory.mktemp("one") / "run"
    Job(run, 1, store=store).end()
    return run


@pytest.fixture(scope="module")
def killed(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes whose first was killed at step 2, which the second survived by seconds only.

    It chose its rematerialisation by the memory of the first: by that of the second nothing would have fitted.
    """
    run = tmp_path_factory.mktemp("two") / "run"
    first, _ = Job(run, 2, {"free": 10**9}, {"free": 1}, store=store, dies_at=2, **AUTO).end(fails=True)
    assert "remat names: 0.0 of 1.0 GB" in first
    assert checkpoint.complete_steps(run / "checkpoints") == [2]
    return run


def remat(run: Path) -> str:
    """What the run has saved."""
    return str(json.loads((run / "config.json").read_text())["model"]["backbone"]["remat"])


def metrics(run: Path) -> dict[tuple[int, str], dict[str, float]]:
    """The metrics that do not depend on the clock, by step and split; a step that was done twice is there once."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("step", "split", "time", "samples_per_second", "tokens_per_second")
    return {(x["step"], x["split"]): {k: v for k, v in x.items() if k not in clock} for x in lines}


def parameters(run: Path) -> dict[str, np.ndarray]:
    """The averaged parameters that the first process loaded as a policy."""
    with np.load(run / "ema.npz") as file:
        return dict(file)


@functools.cache
def starting_parameters() -> dict[str, np.ndarray]:
    """What the job's seed starts from."""
    model = VLA(small_model(), rngs=nnx.Rngs(named_key(0, "parameters")))
    named = to_named(split_model(model, trainable_filter("all"))[1])
    return {name.replace("/", "."): np.asarray(value) for name, value in named.items()}


def shapes_of(arrays: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays as a checkpoint has them."""
    return {name.replace(".", "/"): jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def assert_same_evaluations(found: Path, expected: Path) -> None:
    for step in (2, 4):
        ((mine, theirs),) = zip(*((run / "evaluations").glob(f"*{step}/*") for run in (found, expected)), strict=True)
        assert read_records(mine) == read_records(theirs) and len(read_records(mine)) == 4
        overall = [json.loads((folder / "summary.json").read_text())["overall"] for folder in (mine, theirs)]
        assert overall[0] == overall[1]


def assert_same_run(found: Path, expected: Path) -> None:
    assert_same_evaluations(found, expected)
    a, b = metrics(found), metrics(expected)
    assert a.keys() == b.keys() == {*((step, "train") for step in range(1, 5)), (4, "val")}
    for key in b:
        assert_close(a[key], b[key])
    losses = [b[step, "train"]["loss"] for step in range(1, 5)]
    assert np.abs(np.diff(losses)).min() > 20 * TOLERANCE, "other samples could pass for rounding"
    moved, reference = parameters(found), parameters(expected)
    start = starting_parameters()
    assert moved.keys() == reference.keys() == start.keys()
    for name, value in reference.items():
        most = np.abs(value - start[name]).max()
        # Behind a gate that is all but closed a scale of 1 moves by less than float32 can tell.
        assert most > 0 or name in {f"world.injection.{norm}_norm.scale.value" for norm in ("hidden", "memory")}, name
        share = MOVED_BY_GATE if name.startswith("world.injection") else MOVED
        share = MOVED_ALIKE if name == "world.injection.memory_norm.bias.value" else share
        assert np.abs(moved[name] - value).max() <= share * most, name


@pytest.mark.slow
def test_killed_and_resumed_by_two_processes_it_is_the_run_of_one(
    one: Path, killed: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They resume at a URL, from its copy alone."""
    run = killed.parent / "resumed"
    shutil.copytree(killed, run)
    first, second = Job(run, 2, store=store, free=1, caches=tmp_path, **AUTO).end()
    assert "fetched step 2" in first and "resumed at step 2" in first and "verdict: " in first
    assert "verdict: " not in second and "loss" not in second
    assert "remat" not in first and remat(run) == "names", "it does not choose again"
    assert_same_run(run, one)
    parts = [re.findall(r"^step 4: (.*)$", printed, re.MULTILINE) for printed in (first, second)]
    assert parts == [[episode.key for episode in EVALUATED.episodes()], []], "the first has the whole checkpoint"
    assert len(list((run / "tensorboard").iterdir())) == 1, "one process writes, and takes over what was there"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 5, "each line is written by one process"
    # What both wrote is whole there, and at the first process; a third machine, alone, can go on from it.
    (own,) = (tmp_path / "0/mirrored").iterdir()
    written = [checkpoint.read_manifest(root / "checkpoints/00000004")["sha256"] for root in (run, own)]
    assert written[0] == written[1] and any("ocdbt.process_1/d/" in name for name in written[0])
    checkpoint.verify(run / "checkpoints/00000004")
    (other,) = (tmp_path / "1/mirrored").iterdir()
    assert checkpoint.complete_steps(other / "checkpoints") == [2], "what it resumed from, and nothing that it wrote"
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path / "third"))
    mirror = Mirror(Remote(f"file://{run}"))
    mirror.fetch()
    averaged = checkpoint.restore(mirror.run / "checkpoints/00000004", "ema", shapes_of(parameters(run)))
    for name, value in parameters(run).items():
        np.testing.assert_array_equal(averaged[name.replace(".", "/")], value, err_msg=name)


@pytest.mark.long  # the test above starts in a common folder; here nothing is ever seen by both processes
def test_a_run_that_was_always_at_a_url_is_bit_for_bit_that_of_a_common_folder(
    one: Path, store: str, tmp_path: Path
) -> None:
    common, apart, alone = (tmp_path / name / "run" for name in ("common", "apart", "alone"))
    Job(common, 2, store=store, mesh=ACROSS, dies_at=2).end(fails=True)
    Job(common, 2, store=store, mesh=ACROSS).end()
    Job(apart, 2, store=store, mesh=ACROSS, caches=tmp_path / "first", dies_at=2).end(fails=True)
    shutil.copytree(apart, alone)
    Job(apart, 2, store=store, mesh=ACROSS, caches=tmp_path / "second").end()
    assert metrics(apart) == metrics(common)
    assert differences(apart, common) == []
    Job(alone, 1, store=store, mesh=ACROSS, caches=tmp_path / "third").end()
    assert_same_run(alone, one)


@pytest.mark.slow
def test_one_process_resumes_what_two_saved(one: Path, killed: Path, store: str) -> None:
    run = killed.parent / "alone"
    shutil.copytree(killed, run)
    (printed,) = Job(run, 1, store=store, **AUTO).end()
    assert "resumed at step 2" in printed
    assert_same_run(run, one)


@pytest.mark.long  # the tests above are of half as many devices
def test_two_processes_of_four_devices_are_one_of_eight(store: str, tmp_path: Path) -> None:
    for count in (1, 2):
        printed = Job(tmp_path / str(count), count, devices=8, store=store, mesh={"fsdp": 8}).end()
    parts = [re.findall(r"^step 4: (.*)$", each, re.MULTILINE) for each in printed]
    assert parts[0] + parts[1] == [episode.key for episode in EVALUATED.episodes()] and len(parts[0]) == 2
    assert_same_run(tmp_path / "2", tmp_path / "1")


@pytest.mark.long  # test_meshes.py has a tensor axis in one process
def test_processes_that_share_a_tensor_axis_train_on_the_same_samples(one: Path, store: str, tmp_path: Path) -> None:
    Job(tmp_path / "run", 2, store=store, mesh={"tensor": DEVICES}).end()
    assert_same_run(tmp_path / "run", one)


@pytest.mark.slow
@pytest.mark.long
def test_a_process_with_other_settings_ends_the_job(store: str, tmp_path: Path) -> None:
    _, second = Job(tmp_path / "run", 2, {}, {"seed": 1}, store=store).end(fails=True)
    assert "is not that of process 0; give all processes the same settings" in second
    assert "Traceback" not in second


@pytest.mark.long
def test_a_process_with_other_latents_ends_the_job(store: str, tmp_path: Path) -> None:
    _, second = Job(tmp_path / "run", 2, {}, {"offset": 1.0}, store=store, caches=tmp_path / "caches").end(fails=True)
    assert "error: latents of this process are not those of process 0; put them at a URL" in second


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The calls of jax.distributed.initialize."""
    calls: list[tuple] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: calls.append(arguments))
    return calls


def test_one_process_never_touches_jax_distributed(joined: list[tuple]) -> None:
    distributed.join({})
    distributed.join({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"})  # a batch script
    distributed.join({distributed.ADDRESS: "a:1", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"})
    assert joined == []


def test_the_launcher_announces_the_others(joined: list[tuple]) -> None:
    distributed.join({distributed.ADDRESS: "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"})
    slurm = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NODEID": "3"}
    distributed.join({**slurm, "CUDA_VISIBLE_DEVICES": ""})
    # One task per host has all of its GPUs; jax would give it the first.
    distributed.join({**slurm, "CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"})
    # The address of a TPU slice's first host is found by jax, as Slurm's.
    distributed.join({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"})
    assert joined == [("a:1", 2, 1, None), (None, 4, 3, None), (None, 4, 3, [0, 1, 2, 3]), (None, 2, 1, None)]


@pytest.mark.parametrize(
    ("tasks", "node", "own", "visible", "there", "gpus"),
    [
        ("1(x2)", 1, 0, 8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("8(x2)", 0, 5, 8, 8, [5]),
        ("4(x2)", 0, 1, 8, 8, [2, 3]),
        ("4", 0, 1, 2, 8, [0, 1]),  # bound by Slurm
        ("2(x3),1", 3, 0, 4, 4, [0, 1, 2, 3]),
        ("2(x3),1", 2, 1, 4, 4, [2, 3]),
        ("4", 0, 0, 0, 0, None),
    ],
)
def test_tasks_of_a_host_share_its_gpus(
    tasks: str, node: int, own: int, visible: int, there: int, gpus: list[int] | None
) -> None:
    environment = {
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(own),
        "SLURM_GPUS_ON_NODE": str(there),
        "CUDA_VISIBLE_DEVICES": ",".join(f"GPU-{number}" for number in range(visible)),
    }
    assert distributed.slurm_gpus(environment) == gpus
    assert distributed.slurm_gpus(environment | {"JAX_LOCAL_DEVICE_IDS": "0"}) is None


def test_tasks_that_cannot_share_a_host_are_refused() -> None:
    environment = {"SLURM_STEP_TASKS_PER_NODE": "3", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
    with pytest.raises(UserError, match="8 GPUs of this host do not divide over its 3 tasks"):
        distributed.slurm_gpus(environment)


def test_how_many_devices_of_the_host_are_used_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.host_devices({}) == "2 of 2 devices of this host"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert distributed.host_devices({"SLURM_GPUS_ON_NODE": "8"}) == "2 of 8 devices of this host"


def dry_run(**variables: str) -> str:
    """The error of a train command that a launcher starts with these variables, in a process of its own: jax refuses to
    join a job once it has computed anything."""
    environment = {k: v for k, v in os.environ.items() if not re.match("JAX_CO|SLURM_|OMPI_|TPU_", k)} | variables
    line = [sys.executable, "-m", "wmjax.train", "--dry-run"]
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    return done.stderr


def test_jax_finds_the_job_by_itself_when_told_to(joined: list[tuple]) -> None:
    distributed.join({DETECT: "auto", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"})
    assert joined == [()]
    with pytest.raises(UserError, match="WMJAX_DISTRIBUTED is 'yes'; set it to auto"):
        distributed.join({DETECT: "yes"})
    printed = dry_run(WMJAX_DISTRIBUTED="auto")
    assert (
        printed.startswith("error: WMJAX_DISTRIBUTED is auto but jax finds no cluster here")
        and "\nTrace" not in printed
    )


def test_half_an_announcement_is_refused() -> None:
    with pytest.raises(UserError, match="'a:1' but the job has one process; set JAX_NUM_PROCESSES, JAX_PROCESS_ID"):
        distributed.join({distributed.ADDRESS: "a:1"})
    assert dry_run(JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1") == (
        "error: JAX_COORDINATOR_ADDRESS is missing for process 1 of 2; set it to HOST:PORT of process 0, everywhere\n"
    )


@pytest.mark.parametrize(
    ("holders", "slices"),
    [
        ([[0], [0], [1], [1]], [(0, 2), (1, 2)]),
        ([[0], [1], [0], [1]], [(0, 2), (1, 2)]),  # a torus does not number its devices by host
        ([[0, 0], [1, 1]], [(0, 2), (1, 2)]),
        ([[0, 0, 1, 1]], [(0, 1), (0, 1)]),
        ([[0, 1], [2, 3]], [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ],
)
def test_a_process_loads_the_samples_that_its_devices_hold(
    holders: list[list[int]], slices: list[tuple[int, int]]
) -> None:
    assert [slice_of(np.array(holders), process) for process in range(len(slices))] == slices


def test_processes_that_share_some_samples_are_refused() -> None:
    with pytest.raises(UserError, match=r"mesh\.tensor is 2 and makes processes share a part"):
        slice_of(np.array([[0, 0], [0, 1], [1, 1]]), 0)
