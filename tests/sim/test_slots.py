"""The worker processes of recordings, with the fake simulator: which process records what, and what faults cost."""

import functools
import os
from pathlib import Path

import pytest

from tests.rollout.fakes import ENV, FAULTS, SPEC, fault_name
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
