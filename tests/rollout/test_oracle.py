"""The oracle bracket against the fake simulator: the true future is shown at every decision and leaves no trace."""

import numpy as np
import pytest

from tests.rollout.fake_policy import FakePolicy
from tests.rollout.fakes import ENV, SPEC, fault_name
from tests.rollout.test_runner import verdicts
from wmjax.core.errors import UserError
from wmjax.policy.policy_actor import PolicyActor
from wmjax.rollout.actors import Noop
from wmjax.sim.episode import EpisodeId
from wmjax.sim.worker import Execute, Foresee, Host, Reset, WorkerSettings

EXPERT = "tests.rollout.fakes:FakeExpert"
EPISODE = EpisodeId("libero_spatial", 0, "random", 7)
NOTHING = np.zeros((0, 7), np.float32)


class OraclePolicy(FakePolicy):
    """The fake policy with an oracle at alpha 1: it is shown the future and does what it would have done anyway."""

    future_frames = 3

    def __init__(self, batch_size: int = 2, frames_per_decision: int = 2) -> None:
        super().__init__(batch_size, frames_per_decision)
        self.shown = []

    def __call__(self, carry, observation, keys, future=None):
        self.shown.append((observation.images, future))
        return super().__call__(carry, observation, keys)


@pytest.fixture
def host():
    settings = WorkerSettings(SPEC, 4, ENV)
    made = Host(settings, np.zeros(settings.frames_shape, np.uint8))
    made.run(Reset(EPISODE))
    return made


@pytest.fixture
def oracle(run):
    """``oracle(policy, name, **more)`` evaluates with an oracle; the fake expert shows the future."""

    def _oracle(policy, name, **more):
        return run(PolicyActor(policy, seed=3), name, oracle=1.0, **more)

    return _oracle


def moves(host: Host, steps: int) -> Execute:
    return Execute(np.full((steps, 7), 0.1, np.float32))


def test_the_future_is_the_next_due_frames_with_the_expert_acting(host):
    host.run(moves(host, 6))
    reply = host.run(Foresee(3, NOTHING))
    assert (reply.frame_steps, reply.steps, reply.success) == ((8, 12, 16), 0, False)
    assert host._buffer[:3, 0, 0, 0, 1].tolist() == [8, 12, 16]
    assert host._expert.asked[0] == host._env.position


def test_the_future_begins_with_earlier_decisions(host):
    start = host._env.position
    host.run(Foresee(3, np.full((5, 7), 0.25, np.float32)))
    assert host._expert.asked[0] == pytest.approx(start + 1.25)
    asked = len(host._expert.asked)
    host.run(Foresee(1, np.full((50, 7), 0.25, np.float32)))  # the expert's turn never comes
    assert len(host._expert.asked) == asked


def test_foreseeing_does_not_change_the_episode(host):
    plain = Host(host._settings, np.zeros_like(host._buffer))
    plain.run(Reset(EPISODE))
    for steps in (8, 3, 8):
        host.run(Foresee(4, NOTHING))
        seen, expected = host.run(moves(host, steps)), plain.run(moves(plain, steps))
        assert seen.frame_steps == expected.frame_steps and seen.success == expected.success
        assert host._env.sim_state().tolist() == plain._env.sim_state().tolist()
        count = len(seen.frame_steps)
        np.testing.assert_array_equal(host._buffer[:count], plain._buffer[:count])
    expert = host._expert
    host.run(Reset(EPISODE))
    host.run(Foresee(1, NOTHING))
    assert host._expert is not expert


def test_every_decision_sees_its_own_future_and_the_episodes_stay_what_they_were(run, oracle):
    policy = OraclePolicy(1)
    shown = oracle(policy, "oracle", workers=2)
    expected = run(PolicyActor(FakePolicy(1), seed=3), "plain")
    assert verdicts(shown) == verdicts(expected)
    assert {record.success for record in shown.values()} == {True, False}
    _, *real = policy.shown  # the first call is compilation
    assert len(real) == sum(record.decisions for record in shown.values())
    for images, future in real:
        now = images[0, -1, 0, 0, 0].astype(int)
        assert future.shape == (1, 3, *images.shape[2:])
        assert future[0, :, 0, 0, 0, :2].tolist() == [[now[0], now[1] + ahead] for ahead in (4, 8, 12)]


def test_the_future_begins_with_what_the_delay_still_lets_pass(run, oracle):
    for delay in (3, 8):
        changes = {"execution_delay": delay, "tasks": (0,), "episodes_per_task": 1}
        shown = oracle(OraclePolicy(1), f"oracle{delay}", **changes)
        assert verdicts(shown) == verdicts(run(PolicyActor(FakePolicy(1), seed=3), f"plain{delay}", **changes))


def test_a_worker_that_dies_in_the_future_costs_no_episode(run, oracle, faults):
    expected = run(PolicyActor(FakePolicy(2), seed=3), "calm")
    keys = sorted(expected)[:6]
    for key, kind in zip(keys, ("kill", "raise", "nan_image") * 2, strict=True):
        (faults / f"{fault_name(key, 15)}.{kind}").touch()  # step 15 is seen at the decision of step 8 already
    shown = oracle(OraclePolicy(2), "stormy", workers=3)
    assert not list(faults.iterdir()) and verdicts(shown) == verdicts(expected)
    assert all(shown[key].attempts == 2 for key in keys)


def test_an_oracle_needs_a_policy_that_was_loaded_for_it(run):
    with pytest.raises(UserError, match=r"oracle is 0\.5, the noop takes 0 frames of the true future"):
        run(Noop(SPEC), oracle=0.5)
    with pytest.raises(UserError, match=r"corruption is 'zero', the noop acts with 'none'; evaluate a policy"):
        run(Noop(SPEC), corruption="zero")
    with pytest.raises(UserError, match="oracle is None, the policy takes 3 frames of the true future"):
        run(PolicyActor(OraclePolicy()), "other")
