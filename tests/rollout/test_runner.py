"""Closed loop with the fake simulator: executed actions, observations, and recovery from faults."""

import dataclasses
import json
import random

import numpy as np
import pytest

from tests.rollout.fake_policy import Continuing, FakePolicy, Told
from tests.rollout.fakes import PROTOCOL, SPEC, fault_name
from wmjax.core.errors import UserError
from wmjax.policy.policy_actor import PolicyActor
from wmjax.rollout.actors import Expert, Noop, Random, Scripted
from wmjax.rollout.results import actions_path, read_records

SAME = ("key", "success", "steps", "outcome", "decisions", "info", "settled_hash", "seed", "instruction")


def policy(batch_size: int = 2, horizon: int = 8) -> PolicyActor:
    return PolicyActor(FakePolicy(batch_size, horizon // SPEC.frame_stride), seed=3)


def verdicts(records):
    return {key: [getattr(record, name) for name in SAME] for key, record in records.items()}


def without_info(records):
    return {key: dataclasses.replace(record, info={}) for key, record in records.items()}


class Spy(Scripted):
    """Plans a fixed push and remembers the decisions."""

    name, needs_frames = "spy", True

    def __init__(self, push: float = 0.0) -> None:
        super().__init__(SPEC)
        self.seen, self.push = [], push

    def chunk(self, decision):
        self.seen.append(decision)
        actions = np.zeros((8, 7), np.float32)
        actions[:, 0] = self.push
        return actions


def test_results_do_not_depend_on_slots_batches_or_order(run, tmp_path):
    expected = run(policy(2), "one", workers=1)
    assert len(expected) == 12 and {record.success for record in expected.values()} == {True, False}
    assert verdicts(run(policy(2), "three", workers=3)) == verdicts(expected)
    for size in (1, 4):  # another batch size compiles to other roundings, which a log entry may show
        waits = {"batch": size, "max_wait": 30.0}
        other = run(policy(size), f"batch{size}", workers=3, evaluation=waits)
        assert verdicts(without_info(other)) == verdicts(without_info(expected))
    fill = json.loads((tmp_path / "batch4" / "summary.json").read_text())["batch_fill"]
    assert 0.25 < fill <= 0.75, "three workers never fill four rows, and seldom are two of them resetting"


def test_noise_depends_on_the_seed(run):
    changed = PolicyActor(FakePolicy(2, 2), seed=4)
    assert verdicts(run(changed, "a", tasks=(0,))) != verdicts(run(policy(), "b", tasks=(0,)))


@pytest.mark.slow
def test_forty_faults_lose_nothing_and_change_no_success(run, faults):
    expected = run(policy(), "calm", episodes_per_task=14)
    assert {record.success for record in expected.values()} == {True, False}
    kinds = ["kill"] * 16 + ["raise"] * 10 + ["nan_state"] * 5 + ["nan_image"] * 5 + ["stop"] * 4
    keys = random.Random(0).sample(sorted(expected), len(kinds))
    for key, kind in zip(keys, kinds, strict=True):
        (faults / f"{fault_name(key, random.Random(key).choice((0, 4, 9)))}.{kind}").touch()
    records = run(policy(), "stormy", episodes_per_task=14, workers=3, timeout=3.0)
    assert not list(faults.iterdir())
    assert verdicts(records) == verdicts(expected)
    assert all(record.attempts == 1 + len(record.faults) for record in records.values())
    assert sum(len(record.faults) for record in records.values()) >= len(kinds)


def test_an_episode_that_never_runs_is_a_crash_and_never_a_failure(run, faults):
    key = "libero_spatial/0/random/1"
    for step in (0, 3, 5):
        (faults / f"{fault_name(key, step)}.kill").touch()
    records = run(Noop(SPEC), tasks=(0,), workers=1)
    assert [records[key].outcome, records[key].attempts, records[key].faults] == ["crash", 3, ("crash",) * 3]
    assert {record.outcome for other, record in records.items() if other != key} == {"failure"}


def test_a_simulator_that_never_answers_is_the_users_to_fix(run):
    with pytest.raises(UserError, match=r"simulator does not run .*the fake cannot be built"):
        run(Noop(SPEC), tasks=(8,))
    with pytest.raises(UserError, match="the fake has no task 9"):
        run(Noop(SPEC), "other", tasks=(9,))


def test_an_interrupted_evaluation_resumes_to_the_same_table(run, tmp_path):
    expected = run(policy(), "whole")
    lines = (tmp_path / "whole" / "episodes.jsonl").read_text().splitlines(keepends=True)
    run(policy(), "torn", episodes=[])
    (tmp_path / "torn" / "episodes.jsonl").write_text("".join(lines[:5]) + lines[5][:40])
    resumed = run(policy(), "torn")
    assert verdicts(resumed) == verdicts(expected)
    text = (tmp_path / "torn" / "episodes.jsonl").read_text()
    assert text.startswith("".join(lines[:5])) and len(text.splitlines()) == 12
    assert json.loads((tmp_path / "torn" / "summary.json").read_text())["overall"]["successes"] == sum(
        record.success for record in expected.values()
    )


def test_another_evaluation_is_not_mixed_in(run, tmp_path):
    run(Noop(SPEC), tasks=(0,), header={"checkpoint": {"hash": "a"}})
    before = (tmp_path / "out" / "episodes.jsonl").read_bytes()
    for changes, name in (
        ({"header": {"checkpoint": {"hash": "b"}}}, "checkpoint.hash = 'a'"),
        ({"header": {"checkpoint": {"hash": "a"}}, "execution_delay": 8}, "protocol.execution_delay = 0"),
    ):
        with pytest.raises(UserError, match=name):
            run(Noop(SPEC), tasks=(0,), **changes)
    assert (tmp_path / "out" / "episodes.jsonl").read_bytes() == before


def test_the_policy_sees_every_due_frame_once_and_the_first_one_repeated(run):
    spy = Spy()
    run(spy, tasks=(0,), episodes_per_task=1, workers=1, max_steps=20)
    frames = [decision.frames[:, 0, 0, 0, 1].tolist() for decision in spy.seen]
    assert frames == [[0, 0], [4, 8], [12, 16]]
    assert [(d.number, d.step) for d in spy.seen] == [(0, 0), (1, 8), (2, 16)]
    renders = [int(decision.state[2]) for decision in spy.seen]
    assert renders == [1, 3, 5]


class Noting(PolicyActor):
    """A policy whose decisions and plans are noted."""

    def prepare(self, slots, horizon, action_spec):
        super().prepare(slots, horizon, action_spec)
        self.noted = []

    def act(self, decisions):
        plans = super().act(decisions)
        self.noted = [*getattr(self, "noted", []), *zip(decisions, plans, strict=True)]
        return plans


@pytest.mark.parametrize("delay", [1, 3, 4])
def test_a_decision_knows_what_is_executed_before_it_and_what_the_last_chunk_has_beyond(run, delay):
    actor = Noting(Continuing(2, delay=delay), seed=3)
    shape = {"tasks": (0,), "episodes_per_task": 1, "max_steps": 40, "open_loop_horizon": 4}
    (record,) = run(actor, **shape, execution_delay=delay, realtime="rtc").values()
    timeline = {step: np.array(actor._policy.action_spec.hold, np.float32) for step in range(delay)}
    for decision, plan in actor.noted:
        if decision.number == 0:
            assert decision.pending is None
        else:
            expected = [timeline[decision.step + ahead] for ahead in range(4)]
            np.testing.assert_array_equal(decision.pending, expected)
        timeline |= {decision.step + delay + row: action for row, action in enumerate(plan.actions)}
    assert len(actor.noted) == record.decisions >= 5
    later = [decision.step + delay for decision, _ in actor.noted if decision.number]
    jumps = [np.linalg.norm((timeline[step] - timeline[step - 1])[:6]) for step in later]
    assert record.info["action/jump"] == pytest.approx(np.mean(jumps), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(("delay", "horizon"), [(8, 4), (3, 4), (6, 8)])
def test_pending_actions_are_those_executed_during_the_delay(run, tmp_path, delay, horizon):
    actor = Noting(Told(2, horizon, delay), seed=3)
    shape = {"tasks": (0,), "episodes_per_task": 1, "max_steps": 40, "open_loop_horizon": horizon}
    (record,) = run(actor, **shape, execution_delay=delay).values()
    executed = np.load(actions_path(tmp_path / "out", record.key))
    np.testing.assert_array_equal(executed[:delay], np.tile(actor._policy.action_spec.hold, (delay, 1)))
    told = 0
    for decision, _ in actor.noted:
        if decision.number == 0:
            assert decision.pending is None
            continue
        assert decision.pending.shape == (delay, 7)
        happened = executed[decision.step : decision.step + delay]
        np.testing.assert_array_equal(decision.pending[: len(happened)], happened)
        told += len(happened)
    assert told >= 3 * delay


def test_a_policy_with_pending_actions_requires_its_training_delay(run):
    shape = {"tasks": (0,), "episodes_per_task": 1, "open_loop_horizon": 4}
    for delay in (0, 3):
        with pytest.raises(UserError, match=rf"execution_delay is {delay}, the policy was .* of 8 control .* to 8"):
            run(PolicyActor(Told()), **shape, execution_delay=delay)


def test_real_time_execution_needs_a_policy_that_was_loaded_for_it(run):
    shape = {"tasks": (0,), "episodes_per_task": 1, "open_loop_horizon": 4, "execution_delay": 3}
    with pytest.raises(UserError, match="realtime is 'rtc', the policy acts with 'none'"):
        run(policy(horizon=4), **shape, realtime="rtc")
    with pytest.raises(UserError, match="realtime is 'none', the policy acts with 'rtc'"):
        run(PolicyActor(Continuing()), **shape)


def test_the_step_limit_ends_an_episode_exactly(run):
    (record,) = run(Noop(SPEC), tasks=(0,), episodes_per_task=1, max_steps=13).values()
    assert (record.outcome, record.steps, record.decisions) == ("failure", 13, 2)


def test_actions_start_after_the_execution_delay(run):
    steps = {}
    for delay in (0, 3, 8, 16):
        (record,) = run(
            Spy(0.5), f"delay{delay}", tasks=(0,), episodes_per_task=1, execution_delay=delay, max_steps=100
        ).values()
        steps[delay] = record.steps
    assert [steps[delay] - steps[0] for delay in (3, 8, 16)] == [3, 8, 16]


def test_the_expert_acts_in_the_workers_and_needs_no_frames(run):
    records = run(Expert(SPEC), tasks=(0,), episodes_per_task=2)
    assert {record.outcome for record in records.values()} == {"success"}
    with pytest.raises(UserError, match="execution_delay is 8"):
        run(Expert(SPEC), "delayed", execution_delay=8)


def test_random_actions_depend_on_the_episode_only(run):
    first, second = run(Random(SPEC, 1), "a", tasks=(0,)), run(Random(SPEC, 1), "b", tasks=(0,), workers=1)
    assert verdicts(first) == verdicts(second)


def test_records_name_the_run(run, tmp_path):
    (record,) = run(Noop(SPEC), tasks=(1,), episodes_per_task=1, header={"recipe_hash": "r1"}, max_steps=8).values()
    assert dataclasses.asdict(record) | {"seconds": 0} == {
        "key": "libero_spatial/1/random/0",
        "suite": "libero_spatial",
        "task_id": 1,
        "instruction": "do the task number 1",
        "init": "random",
        "index": 0,
        "seed": record.seed,
        "settled_hash": f"{record.seed:016x}",
        "success": False,
        "steps": 8,
        "outcome": "failure",
        "attempts": 1,
        "faults": (),
        "seconds": 0,
        "decisions": 1,
        "info": {},
        "recipe_hash": "r1",
        "settled_state": ((record.seed % 1000) / 1000,),
        "open_loop_horizon": 8,
        "execution_delay": 0,
        "given_instruction": "do the task number 1",
        "given_task": 1,
        "reached": None,
    }
    assert record.seconds > 0 and read_records(tmp_path / "out") == [record]


def test_benchmark_runs_leave_a_numbered_record(run, tmp_path):
    for count in (1, 2):
        run(Noop(SPEC), init="benchmark", tasks=(0,), episodes_per_task=1, max_steps=8)
        assert len(list((tmp_path / "out" / "results").iterdir())) == 1, count
    content = json.loads((tmp_path / "out" / "results" / "test-000.json").read_text())
    assert content["overall"]["failures"] == 1 and content["header"]["protocol"] == json.loads(
        json.dumps(dataclasses.asdict(dataclasses.replace(PROTOCOL, init="benchmark", tasks=(0,), episodes_per_task=1,
                                                          max_steps=8)))
    )  # fmt: skip
