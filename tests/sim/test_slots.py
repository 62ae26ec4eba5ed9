"""The worker processes of recordings, with the fake simulator: which process records what, and what faults cost."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.rollout.fakes import ENV, FAULTS, SPEC, fault_name
from wmjax.core.command import run_command
from wmjax.core.errors import UserError
from wmjax.recording.slots import TASKS_PER_PROCESS, Slot, record_slots
from wmjax.sim.episode import EpisodeId
from wmjax.sim.pool import Fault

SUITE = "libero_spatial"


def episode(slot: Slot) -> EpisodeId:
    return EpisodeId(slot.suite, slot.task_id, "random", slot.number)


def job(env, slot: Slot, folder: Path) -> int:
    """Resets the slot's episode and notes the process."""
    env.reset(episode(slot))
    (folder / f"{slot.task_id}-{slot.number}").touch()
    return os.getpid()


def record(folder: Path, slots: list[Slot], workers: int, retries: int = 0) -> tuple[dict[Slot, int], list[Fault]]:
    done: dict[Slot, int] = {}
    faults: list[Fault] = []

    def failed(slot: Slot, fault: Fault) -> bool:
        faults.append(fault)
        return len(faults) <= retries

    work = functools.partial(job, folder=folder)
    record_slots(work, SPEC, slots, workers, 3.0, done.__setitem__, failed, ENV)
    return done, faults


def test_a_process_keeps_its_task_and_builds_a_few_environments(tmp_path: Path) -> None:
    slots = [Slot(SUITE, task, number) for task in range(TASKS_PER_PROCESS + 1) for number in range(2)]
    done, faults = record(tmp_path, slots, workers=1)
    assert list(done) == slots and not faults and len(list(tmp_path.iterdir())) == len(slots)
    early, late = ({done[slot] for slot in slots if (slot.task_id == TASKS_PER_PROCESS) == last} for last in (0, 1))
    assert len(early) == len(late) == 1 and early != late


@pytest.mark.parametrize(("kind", "fault"), [("kill", "crash"), ("raise", "crash"), ("hang", "timeout")])
@pytest.mark.parametrize("retries", [0, 1])
def test_a_fault_costs_one_slot_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fault: str, retries: int
) -> None:
    monkeypatch.setenv(FAULTS, str(tmp_path / "faults"))
    (tmp_path / "faults").mkdir()
    (tmp_path / "done").mkdir()
    slots = [Slot(SUITE, task, number) for task in (0, 1) for number in range(2)]
    (tmp_path / "faults" / f"{fault_name(episode(slots[1]).key, 0)}.{kind}").touch()
    done, faults = record(tmp_path / "done", slots, workers=2, retries=retries)
    assert set(done) == set(slots if retries else [slots[0], *slots[2:]])
    assert [(found.kind, found.raised) for found in faults] == [(fault, kind == "raise")]


def test_bad_input_of_a_job_ends_the_recording(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the fake has no task 9"):
        record(tmp_path, [Slot(SUITE, 9, 0)], workers=2)


def hang(env, slot: Slot, folder: Path) -> None:
    """Says which process hangs."""
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(1000)


def record_forever(folder: str) -> int:
    """A command whose two workers hang."""

    def body() -> int:
        work = functools.partial(hang, folder=Path(folder))
        slots = [Slot(SUITE, task, 0) for task in (0, 1)]
        record_slots(work, SPEC, slots, 2, 1000.0, lambda slot, done: None, lambda slot, fault: True, ENV)
        return 0

    return run_command(body)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_recording_and_its_workers(tmp_path: Path, number: signal.Signals) -> None:
    line = f"import sys; from tests.sim.test_slots import record_forever; sys.exit(record_forever({str(tmp_path)!r}))"
    command = subprocess.Popen([sys.executable, "-c", line], stderr=subprocess.PIPE, text=True, process_group=0)
    deadline = time.monotonic() + 300
    while len(workers := [int(path.stem) for path in tmp_path.glob("*.pid")]) < 2:
        assert time.monotonic() < deadline and command.poll() is None
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(command.pid, number)  # a terminal sends Ctrl-C to the workers too
    else:
        command.send_signal(number)
    _, error = command.communicate(timeout=60)
    assert command.returncode == 128 + number
    assert error.strip() == f"stopped by {number.name}; run the same command again to resume"
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
