"""The expert solves a task, its demonstration is complete, and replaying it is exact."""

import dataclasses

import numpy as np
import pytest

from benchmarks.expert_takeover import try_reset
from wmjax.core.errors import UserError
from wmjax.data.episode import check_episode
from wmjax.recording.demonstration import DemonstrationConfig, demonstration_id, record_demonstration, undisturbed
from wmjax.recording.expert import Expert
from wmjax.recording.failures import FailureConfig
from wmjax.recording.primitives.canonical import usual_grasp
from wmjax.recording.primitives.grasp import Grasp, GraspStyle, NoGraspError, plan_grasp
from wmjax.recording.primitives.motion import CLOSE, OPEN, Phase, reach_and_close
from wmjax.recording.primitives.privileged_scene import Scene, SceneState, rotation_about, rotation_vector
from wmjax.sim.disturbance import Disturbance
from wmjax.sim.env import LiberoEnv
from wmjax.sim.libero import OBSERVATION_SPEC

from .conftest import SUITE, TASK

pytestmark = pytest.mark.sim
CONFIG = DemonstrationConfig(perturbed_fraction=1.0, failures=FailureConfig(fraction=0.0))


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
    monkeypatch.setattr(env, "predicates", (env.goal, ("under", "plate_1", "akita_black_bowl_1")))
    with pytest.raises(UserError, match=r"no primitive reaches 'under plate_1 akita_black_bowl_1'; there are"):
        Expert(env)


def test_an_object_that_nothing_could_grasp_is_a_failed_attempt(env, demonstration, monkeypatch):
    def no_grasp(*args, **settings):
        raise NoGraspError("it fell over")

    env.restore(demonstration.settled_state)
    monkeypatch.setattr("wmjax.recording.primitives.put.plan_grasp", no_grasp)
    expert = Expert(env)
    assert expert.plan() is None
    action = expert.act()
    assert expert.phase is Phase.RETREAT and action[6] == -1.0 and action[2] >= 0.0
    episode = demonstration_id(SUITE, TASK, slot=0, attempt=0, seed=0)
    assert record_demonstration(env, episode, CONFIG) is None


def test_an_action_follows_from_the_state_whatever_led_to_it(env, demonstration):
    """Another expert, asked in another order after restoring, gives the recorded labels and chunks bit for bit."""
    env.restore(demonstration.settled_state)
    states = []
    for action in demonstration.executed:
        states.append(env.sim_state())
        env.step(action)
    expert = Expert(env)
    for step in reversed(range(len(states))):
        env.restore(states[step])
        np.testing.assert_array_equal(expert.act().astype(np.float32), demonstration.action[step])
    for frame in (0, 3, 11):
        env.restore(states[demonstration.frame_step[frame]])
        chunk, _ = undisturbed(env, Expert(env), 8)
        np.testing.assert_array_equal(chunk, demonstration.action_chunk[frame])


def test_chunks_of_an_undisturbed_recording_are_what_was_executed(env):
    config = DemonstrationConfig(perturbed_fraction=0.0, failures=FailureConfig(fraction=0.0))
    data = record_demonstration(env, demonstration_id(SUITE, TASK, slot=1, attempt=0, seed=0), config)
    assert data is not None and not data.injected.any()
    np.testing.assert_array_equal(data.executed, data.action)
    for frame, step in enumerate(data.frame_step):
        rest = data.executed[step : step + config.label_steps]
        np.testing.assert_array_equal(data.action_chunk[frame, : len(rest)], rest)


def test_provoked_failures_are_mended_marked_and_not_learned(env):
    failures = FailureConfig(fraction=1.0, most=1, push=0.0, miss=1.0, drop=0.0, beside=0.0)
    config = DemonstrationConfig(perturbed_fraction=0.0, failures=failures)
    data = record_demonstration(env, demonstration_id(SUITE, TASK, slot=2, attempt=0, seed=0), config)
    assert data is not None and data.meta["failures"] == ["miss"] and data.injected.sum() == 18
    differs = (data.executed != data.action).any(axis=1)
    assert differs.any() and not differs[~data.injected].any()
    closing = np.flatnonzero(np.diff(data.executed[:, 6]) > 0)
    assert len(closing) == 2, "closed on nothing, and then on the bowl"


def test_a_drifting_target_is_recorded_from_a_robot_that_first_holds_still(env):
    config = DemonstrationConfig(
        perturbed_fraction=0.0, failures=FailureConfig(fraction=0.0), target_velocity=0.04, hold_steps=8,
        branch_frames=4,
    )  # fmt: skip
    episode = demonstration_id(SUITE, TASK, slot=0, attempt=0, seed=0)
    data = record_demonstration(env, episode, config)
    assert data is not None and data.meta["target_velocity"] == 0.04 and not data.injected.any()
    np.testing.assert_array_equal(data.executed[:8], np.tile(env.action_spec.hold, (8, 1)))
    assert (data.action[:8] != data.executed[:8]).any() and np.array_equal(data.action[8:], data.executed[8:])
    # From the third frame on the expert acts, so what was seen is the branch; before, the expert would not have waited.
    following = np.stack([data.images[frame + 1 : frame + 5] for frame in range(len(data.images) - 4)])
    np.testing.assert_array_equal(data.branch_images[2:-4], following[2:])
    for frame in (0, len(data.images) - 1):
        env.reset(episode)
        env.disturb(Disturbance(0.04), episode)
        for action in data.executed[: data.frame_step[frame]]:
            env.step(action)
        chunk, images = undisturbed(env, Expert(env), 16, frames=4)
        np.testing.assert_array_equal(chunk[:8], data.action_chunk[frame])
        np.testing.assert_array_equal(np.stack(images), data.branch_images[frame])
    assert (data.branch_images[0] != following[0]).any()

    env.reset(episode)
    env.disturb(Disturbance(config.target_velocity), episode)
    start = env.sim.data.get_body_xpos("plate_1_main").copy()
    for step, action in enumerate(data.executed):
        np.testing.assert_array_equal(env.state(), data.state[step])
        success = env.step(action)
        if step == 7:
            moved = np.linalg.norm(env.sim.data.get_body_xpos("plate_1_main") - start)
            assert abs(moved - 8 * 0.04 / 20) < 1e-3, "the target drifts while the robot waits"
    assert success
    # From the state in which the hold ends, the undisturbed expert does what is recorded, with the drift going on.
    np.testing.assert_array_equal(data.action_chunk[2], data.executed[8:16])


def test_the_usual_grasp_is_kept_for_the_task(env, demonstration):
    assert demonstration.meta["grasp"] == dataclasses.asdict(usual_grasp(env, env.goal))
    grasps = set()
    for slot in range(6):
        env.reset(demonstration_id(SUITE, TASK, slot, attempt=0, seed=3))
        grasps.add(Expert(env).plan().style)
    assert grasps == {usual_grasp(env, env.goal)}


def test_a_style_that_does_not_fit_is_left_for_the_best_grasp(env, demonstration):
    env.restore(demonstration.settled_state)
    scene, (_, item, target) = Scene(env.sim), env.goal
    best = plan_grasp(scene, item, target, rim=True, clearance=0.008)
    other = plan_grasp(scene, item, target, rim=True, clearance=0.008, style=GraspStyle(7, 1, 0.0))
    assert (other.style, other.cost) == (best.style, best.cost)
    assert plan_grasp(scene, item, target, rim=True, clearance=0.008, style=best.style).style == best.style


@pytest.mark.slow
@pytest.mark.parametrize("task", [2, *(pytest.param(task, marks=pytest.mark.long) for task in (0, 1, 4, 6))])
def test_taking_over_every_four_steps_succeeds(task):
    env = LiberoEnv(SUITE, task, OBSERVATION_SPEC)
    try:
        lengths = [try_reset(env, demonstration_id(SUITE, task, slot, 0, seed=90), every=4)[0] for slot in range(3)]
    finally:
        env.close()
    assert None not in lengths


@pytest.mark.parametrize("closing", [-0.1, 0.0, 0.1])
@pytest.mark.parametrize("command", [0.0, 0.04, 0.08])
@pytest.mark.parametrize(
    ("opening", "height", "phase", "gripper"),
    [
        (0.002, 0.0, Phase.REGRASP, CLOSE),
        (0.002, 0.025, Phase.REGRASP, CLOSE),
        (0.010, 0.0, Phase.CLOSE, CLOSE),
        (0.060, 0.015, Phase.CLOSE, CLOSE),
        (0.002, 0.04, Phase.DESCEND, OPEN),
        (0.060, 0.04, Phase.DESCEND, OPEN),
        (0.078, 0.04, Phase.DESCEND, OPEN),
        (0.078, 0.0, Phase.CLOSE, CLOSE),
    ],
)
def test_the_opening_decides_and_not_the_fingers_direction(closing, command, opening, height, phase, gripper):
    """A frame shows how far apart the fingers are, and neither their speed nor what the gripper was told."""
    grasp = Grasp(0.0, np.zeros(3), np.eye(3), np.zeros(3), 0.2, 0.0, GraspStyle(0, 1, 0.0))
    hand = np.array([0.0, 0.0, height])
    item, place = np.array([0.05, 0.0, -0.03]), np.array([0.3, 0.0, 0.0])
    state = SceneState(hand, np.eye(3), 0.0, opening, closing, command, item, np.eye(3), place, 0, True)
    happens, action = reach_and_close(state, grasp)
    assert (happens, action[6]) == (phase, gripper)
    if phase is Phase.REGRASP:
        assert action[2] > 0.2, "it rises"


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.3, 3.0])
def test_rotation_vector_inverts_rotation(angle):
    axis = np.array([2.0, -1.0, 0.5]) / np.linalg.norm([2.0, -1.0, 0.5])
    np.testing.assert_allclose(rotation_vector(rotation_about(axis, angle)), axis * angle, atol=1e-12)
