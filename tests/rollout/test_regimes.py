"""Evaluation regimes in closed loop against the fake simulator: dropout, ensembling, long horizons, disturbances."""

import dataclasses

import numpy as np
import pytest

from tests.rollout.fake_policy import FakePolicy
from tests.rollout.fakes import SPEC, FakeEnv
from wmjax.core.errors import UserError
from wmjax.core.specs import ObservationSpec
from wmjax.policy.policy_actor import PolicyActor
from wmjax.rollout.actors import Expert, Noop, Scripted
from wmjax.rollout.execution import dropped_cameras
from wmjax.rollout.results import read_header
from wmjax.sim.disturbance import Disturbance
from wmjax.sim.libero import OBSERVATION_SPEC

ONE = {"tasks": (0,), "episodes_per_task": 1, "workers": 1}


class Watcher(Scripted):
    """Plans long chunks, pushing right for as long as the decision's number says, and remembers what it saw."""

    name, needs_frames = "watcher", True

    def __init__(self, length: int = 8, spec: ObservationSpec = SPEC) -> None:
        super().__init__(spec)
        self.seen, self.length = [], length

    def chunk(self, decision):
        self.seen.append(decision)
        actions = np.zeros((self.length, 7), np.float32)
        actions[:, 0] = 0.01 * (decision.number + 1)
        return actions


def test_dropped_cameras_are_black_for_the_policy_and_recorded(run):
    watcher = Watcher()
    (record,) = run(watcher, **ONE, first_index=5, camera_dropout=0.4, max_steps=64).values()
    dropped = [dropped_cameras(d.episode, d.number, 2, 0.4) for d in watcher.seen]
    assert 0 < np.sum(dropped) < len(dropped) == 8
    for decision, black in zip(watcher.seen, dropped, strict=True):
        shown = decision.frames.any((2, 3, 4))  # the fake's frames are never black in episode 5
        np.testing.assert_array_equal(shown, np.tile(~black, (2, 1)))
    assert record.info["observation/dropped_cameras"] == pytest.approx(np.sum(dropped) / len(dropped))


def test_dropout_leaves_scripted_actors_alone(run):
    expected = run(Noop(SPEC), "plain", **ONE)
    dropped = run(Noop(SPEC), "dropped", **ONE, camera_dropout=1.0)
    assert [r.info for r in dropped.values()] == [r.info for r in expected.values()] == [{}]


def test_dropout_needs_two_cameras(run):
    one_camera = dataclasses.replace(OBSERVATION_SPEC, cameras=("agentview",), image_size=4)
    with pytest.raises(UserError, match=r"camera_dropout is 0\.5, the watcher has one camera"):
        run(Watcher(spec=one_camera), camera_dropout=0.5)


def test_overlapping_chunks_are_averaged(run):
    watcher = Watcher(length=12)
    run(watcher, **ONE, open_loop_horizon=4, ensemble=0.5, max_steps=16)
    moved = [float(d.state[0]) for d in watcher.seen]
    weights = np.exp(-0.5 * np.arange(12).reshape(3, 4))  # age of the newest three predictions at each of four steps
    pushes = 0.01 * np.arange(1, 4)
    expected = [sum(np.average(pushes[: n + 1][::-1], weights=weights[: n + 1, i]) for i in range(4)) for n in range(3)]
    np.testing.assert_allclose(np.diff(moved), expected, atol=1e-6)


def test_ensembling_of_chunks_that_do_not_overlap_is_refused(run):
    with pytest.raises(UserError, match="do not overlap at open_loop_horizon 8"):
        run(Noop(SPEC), ensemble=0.01)
    with pytest.raises(UserError, match=r"ensemble is 0\.01, the expert acts anew at every control step"):
        run(Expert(SPEC), ensemble=0.01)


def test_a_long_horizon_needs_a_long_chunk(run):
    with pytest.raises(UserError, match="open_loop_horizon is 16, the policy predicts 8 actions; lower it"):
        run(PolicyActor(FakePolicy(2, 4)), open_loop_horizon=16)
    watcher = Watcher(length=16)
    run(watcher, "long", **ONE, open_loop_horizon=16, max_steps=40)
    frames = [decision.frames[:, 0, 0, 0, 1].tolist() for decision in watcher.seen]
    assert frames == [[0] * 4, [4, 8, 12, 16], [20, 24, 28, 32]]


def test_a_disturbance_reaches_every_episode_and_the_header_says_so(run, tmp_path):
    still = run(Noop(SPEC), "still", tasks=(0,))
    moved = run(Noop(SPEC), "moved", tasks=(0,), target_velocity=0.25)
    assert {r.outcome for r in still.values()} == {"failure"}
    assert {r.outcome for r in moved.values()} == {"success"}  # the fake drifts beyond its goal by itself
    assert {k: r.settled_hash for k, r in moved.items()} == {k: r.settled_hash for k, r in still.items()}
    assert read_header(tmp_path / "moved")["protocol"]["target_velocity"] == 0.25
    assert read_header(tmp_path / "still")["protocol"]["target_velocity"] == 0.0


def test_a_disturbance_comes_after_the_start_and_ends_with_the_episode():
    from tests.rollout.test_worker import EPISODE, still
    from wmjax.sim.worker import Execute, Host, Reset, WorkerSettings

    settings = WorkerSettings(SPEC, 4, "tests.rollout.fakes:FakeEnv")
    host = Host(settings, np.zeros(settings.frames_shape, np.uint8))
    reply = host.run(Reset(EPISODE, settled=np.array([0.5]), disturbance=Disturbance(0.25)))
    assert reply.state[0] == 0.5
    assert host.run(Execute(still(2))).state[0] == 1.0
    host.run(Reset(EPISODE))
    assert host.run(Execute(still(2))).state[0] == pytest.approx(EPISODE.seed % 1000 / 1000)
    assert isinstance(host._env, FakeEnv)
