"""The expert solves a task, its demonstration is complete, and replaying it is exact."""

import numpy as np
import pytest

from wmjax.core.errors import UserError
from wmjax.data.episode import check_episode
from wmjax.recording.demonstration import DemonstrationConfig, demonstration_id, record_demonstration
from wmjax.recording.expert import Expert, Phase
from wmjax.recording.grasp import NoGraspError, plan_grasp
from wmjax.recording.privileged_scene import Scene, rotation_about, rotation_vector

from .conftest import SUITE, TASK

pytestmark = pytest.mark.sim
CONFIG = DemonstrationConfig(perturbed_fraction=1.0)


@pytest.fixture(scope="module")
def demonstration(env):
    data = record_demonstration(env, demonstration_id(SUITE, TASK, slot=0, attempt=0, seed=0), CONFIG)
    assert data is not None, "the expert failed"
    return data


def test_a_demonstration_is_fit_for_the_training_store(env, demonstration):
    check_episode(demonstration, env.spec, env.action_spec, "demonstration")
    meta = demonstration.meta
    assert demonstration.length == meta["success_step"] + CONFIG.steps_after_success
    assert meta["init"] == "random" and meta["settled_hash"] and set(meta["fixture_poses"]) == set(env.fixture_poses())


def test_noise_is_executed_but_not_learned(demonstration):
    difference = demonstration.executed - demonstration.action
    assert np.abs(difference[:, :6]).max() > 0.05
    np.testing.assert_array_equal(difference[:, 6], 0)
    assert set(np.unique(demonstration.action[:, 6])) == {-1.0, 1.0}


def test_the_last_labels_let_go(demonstration):
    assert demonstration.action[-1, 6] == -1.0


def test_replay_is_exact_and_succeeds(env, demonstration):
    env.restore(demonstration.settled_state)
    successes = []
    for step, action in enumerate(demonstration.executed):
        np.testing.assert_array_equal(env.state(), demonstration.state[step])
        if step in demonstration.frame_step[::8]:
            frame = int(np.flatnonzero(demonstration.frame_step == step)[0])
            np.testing.assert_array_equal(env.render(), demonstration.images[frame])
        successes.append(env.step(action))
    assert successes.index(True) + 1 == demonstration.meta["success_step"] and successes[-1]


def test_an_unsolvable_goal_is_named(env, monkeypatch):
    monkeypatch.setattr(env, "goal", ("turnon", "flat_stove_1"))
    with pytest.raises(UserError, match="cannot do 'turnon flat_stove_1'"):
        Expert(env)


def test_an_object_that_nothing_could_grasp_is_a_failed_attempt(env, demonstration, monkeypatch):
    def no_grasp(*args, **settings):
        raise NoGraspError("it fell over")

    env.restore(demonstration.settled_state)
    expert = Expert(env)
    monkeypatch.setattr("wmjax.recording.expert.plan_grasp", no_grasp)
    expert._enter(Phase.REGRASP)
    for _ in range(10):
        env.step(expert.act())
    assert expert.phase is Phase.RETREAT and expert.grasp.cost == np.inf
    episode = demonstration_id(SUITE, TASK, slot=0, attempt=0, seed=0)
    assert record_demonstration(env, episode, CONFIG) is None


def test_a_grasp_that_failed_is_tried_again_if_there_is_no_other(env, demonstration):
    env.restore(demonstration.settled_state)
    scene, (_, item, target) = Scene(env.sim), env.goal
    first = plan_grasp(scene, item, target, rim=True, clearance=0.008)
    other = plan_grasp(scene, item, target, rim=True, clearance=0.008, rejected=[first.angle])
    assert abs(other.angle - first.angle) >= 0.3
    every = np.linspace(-np.pi, np.pi, 30)
    again = plan_grasp(scene, item, target, rim=True, clearance=0.008, rejected=every)
    assert (again.angle, again.cost) == (first.angle, first.cost)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.3, 3.0])
def test_rotation_vector_inverts_rotation(angle):
    axis = np.array([2.0, -1.0, 0.5]) / np.linalg.norm([2.0, -1.0, 0.5])
    np.testing.assert_allclose(rotation_vector(rotation_about(axis, angle)), axis * angle, atol=1e-12)
