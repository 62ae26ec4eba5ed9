"""Worker processes: results, faults, replacement, clean-up."""

import functools
import os
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest

from tests.rollout.fakes import ENV, FAULTS, SPEC, fault_name
from wmjax.core.errors import UserError
from wmjax.sim.episode import EpisodeId
from wmjax.sim.pool import Fault, Pool
from wmjax.sim.preparation import render_variables
from wmjax.sim.rollout_pool import RolloutPool
from wmjax.sim.worker import Execute, Reply, Reset, WorkerSettings

EPISODE = EpisodeId("libero_spatial", 0, "random", 7)
STILL = np.zeros((8, 7), np.float32)


def run(pool: Pool, slot: int, command):
    pool.send(slot, command)
    ((done, event),) = pool.wait()
    assert done == slot
    return event


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """The fault folder, whose name the workers inherit."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FAULTS, str(folder))
        yield folder


@pytest.fixture(scope="module")
def pool(faults):
    with RolloutPool(WorkerSettings(SPEC, 4, ENV), workers=2, timeout=4.0, startup=120.0) as made:
        yield made


def test_commands_and_frames_come_back_from_both_slots(pool):
    for slot in (0, 1):
        pool.send(slot, Reset(EpisodeId("libero_spatial", 0, "random", slot)))
    waiting = {0, 1}
    while waiting:
        waiting -= {slot for slot, _ in pool.wait()}
    for slot in (0, 1):
        reply = run(pool, slot, Execute(STILL))
        assert reply.frame_steps == (4, 8)
        assert pool.frames(slot, 2)[:, 0, 0, 0, :2].tolist() == [[slot, 4], [slot, 8]]


@pytest.mark.parametrize(
    ("kind", "fault"),
    [("kill", "crash"), ("raise", "crash"), ("nan_image", "crash"), ("stop", "timeout"), ("hang", "timeout")],
)
def test_a_faulty_worker_is_reported_and_replaced(pool, faults, kind, fault):
    assert isinstance(run(pool, 0, Reset(EPISODE)), Reply)
    (faults / f"{fault_name(EPISODE.key, 4)}.{kind}").touch()
    before = pool.process_ids
    event = run(pool, 0, Execute(STILL))
    assert isinstance(event, Fault) and event.kind == fault and event.raised == (kind in ("raise", "nan_image"))
    assert pool.process_ids[0] != before[0] and pool.process_ids[1] == before[1]
    with pytest.raises(ProcessLookupError):
        os.kill(before[0], 0)
    assert isinstance(run(pool, 0, Reset(EPISODE)), Reply)


def test_bad_input_in_a_worker_reaches_the_user(pool):
    pool.send(1, Reset(EpisodeId("libero_spatial", 9, "random", 0)))
    with pytest.raises(UserError, match="the fake has no task 9"):
        pool.wait()


def test_closing_leaves_no_process_and_no_memory():
    pool = RolloutPool(WorkerSettings(SPEC, 4, ENV), workers=1)
    run(pool, 0, Reset(EPISODE))
    (process,), name = pool.process_ids, pool._memories[0].name
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)


class Report:
    """A worker that says where it runs; it is closed when its process ends in order."""

    def __init__(self, closed: Path) -> None:
        self._closed = closed

    def run(self, command: str) -> tuple[int, str | None]:
        """This process, and a variable of its environment."""
        return os.getpid(), os.environ.get(command)

    def close(self) -> None:
        """Leaves a sign."""
        self._closed.touch()


def test_a_worker_uses_one_thread_and_is_closed_before_another_takes_its_place(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    with Pool([functools.partial(Report, tmp_path / "closed")], timeout=60) as pool:
        first, threads = run(pool, 0, "OMP_NUM_THREADS")
        assert (threads, run(pool, 0, "MKL_NUM_THREADS")) == ("1", (first, "3"))
        assert first == pool.process_ids[0] and not (tmp_path / "closed").exists()
        pool.restart(0)
        assert (tmp_path / "closed").exists() and run(pool, 0, "x")[0] == pool.process_ids[0] != first
        pool.send(0, "x")
        with pytest.raises(RuntimeError, match="worker 0 is still busy"):
            pool.restart(0)
    assert "OMP_NUM_THREADS" not in os.environ and os.environ["MKL_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("given", "devices", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "4, 5"}, (), [("4,5", None), ("5,4", None), ("4,5", None)]),
        ({"CUDA_VISIBLE_DEVICES": "4,5"}, (0, 7), [("4,5", "0"), ("4,5", "7"), ("4,5", "0")]),
        ({"CUDA_VISIBLE_DEVICES": "4"}, (), [("4", None)] * 3),
        ({"CUDA_VISIBLE_DEVICES": "4,5", "MUJOCO_EGL_DEVICE_ID": "1"}, (0, 7), [("4,5", "1")] * 3),
        ({"CUDA_VISIBLE_DEVICES": "4,5", "MUJOCO_GL": "osmesa"}, (), [("4,5", None)] * 3),
    ],
)
def test_workers_draw_on_the_gpus_in_turn(given, devices, expected):
    """A worker draws on the device of its number or, without, on the first of the visible ones."""
    seen = []
    for worker in range(3):
        environment = given | render_variables(worker, devices, given)
        seen.append(tuple(environment.get(name) for name in ("CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID")))
    assert [(visible.replace(" ", ""), device) for visible, device in seen] == expected


def test_a_replaced_worker_draws_on_the_same_gpu(tmp_path, monkeypatch):
    for name in ("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID"):
        monkeypatch.delenv(name, raising=False)
    with Pool([functools.partial(Report, tmp_path / "closed")] * 2, timeout=60, render_devices=(3, 6)) as pool:
        assert [run(pool, slot, "MUJOCO_EGL_DEVICE_ID")[1] for slot in (0, 1)] == ["3", "6"]
        pool.restart(1)
        assert run(pool, 1, "MUJOCO_EGL_DEVICE_ID")[1] == "6"


def test_misuse_is_refused(pool):
    with pytest.raises(UserError, match="workers is 0"):
        Pool([], timeout=1)
    with pytest.raises(UserError, match="workers is 0"):
        RolloutPool(WorkerSettings(SPEC), workers=0)
    with pytest.raises(RuntimeError, match="no worker is busy"):
        pool.wait()
