"""Identity, observations and restoring of the environment in the real simulator."""

import dataclasses

import numpy as np
import pytest

from benchmarks.placements import draws
from wmjax.core.errors import UserError
from wmjax.data.observation import build_state, resize_image
from wmjax.sim.env import SETTLE_ACTION, SETTLE_STEPS, LiberoEnv
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import OBSERVATION_SPEC, import_libero, load_task
from wmjax.sim.placement import Motion, object_poses
from wmjax.sim.render import Renderer

from .conftest import SUITE, TASK

pytestmark = pytest.mark.sim


def _episode(init: str, index: int) -> EpisodeId:
    return EpisodeId(SUITE, TASK, init, index)


def _wander(env: LiberoEnv, steps: int, seed: int = 0) -> None:
    for action in np.random.default_rng(seed).uniform(-1, 1, (steps, 7)):
        env.step(action)


@pytest.fixture(scope="module")
def published():
    """A fresh robosuite environment under the published protocol: seed, hard reset, initial state, settling."""
    task = load_task(SUITE, TASK)
    control_env = import_libero().wrapper.ControlEnv
    env = control_env(bddl_file_name=task.bddl_file, use_camera_obs=False, has_offscreen_renderer=False)
    yield env, task.initial_states
    env.close()


def test_an_episode_starts_as_in_a_fresh_environment_whatever_came_before(env, published):
    fresh, initial_states = published
    _wander(env, 5)
    env.reset(_episode("random", 1))
    _wander(env, 15)
    episode = _episode("benchmark", 7)
    env.reset(episode)
    # The one reset that the environment under `published` has ever seen.
    fresh.seed(episode.seed)
    fresh.reset()
    fresh.set_init_state(initial_states[episode.index])
    for _ in range(SETTLE_STEPS):
        fresh.step(SETTLE_ACTION)
    ours, theirs = env.sim, fresh.sim
    np.testing.assert_array_equal(ours.get_state().flatten(), theirs.get_state().flatten())
    np.testing.assert_array_equal(ours.data.qacc_warmstart, theirs.data.qacc_warmstart)
    np.testing.assert_array_equal(ours.model.body_pos, theirs.model.body_pos)
    np.testing.assert_array_equal(ours.model.body_quat, theirs.model.body_quat)


def test_random_starts_vary_like_the_benchmarks(env):
    """Without it every random episode starts from one arm pose, and a policy never sees the benchmark's."""
    joints = env._env.robots[0]._ref_joint_pos_indexes
    spread = {}
    for init in ("random", "benchmark"):
        poses = []
        for index in range(12):
            env.reset(_episode(init, index))
            poses.append(env.sim.data.qpos[joints].copy())
        spread[init] = np.std(poses, axis=0).mean()
    assert spread["random"] == pytest.approx(spread["benchmark"], rel=0.35)
    assert 0.01 < spread["random"] < 0.03


@pytest.mark.parametrize(("init", "index"), [("random", 3), ("benchmark", 0)])
def test_the_settled_state_does_not_depend_on_history(env, init, index):
    hashes = []
    for seed in range(2):
        env.reset(_episode("random", 10 + seed))
        _wander(env, 12, seed)
        env.reset(_episode(init, index))
        hashes.append(env.settled_hash)
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(("index", "drawn"), [(100001, 1), (100003, 2)])
def test_a_placement_in_which_objects_throw_each_other_about_is_drawn_again(env, index, drawn):
    """With the first placement of 100003 a bowl flies 77 cm."""
    episode = _episode("random", index)
    assert drawn == 1 or 0.7 < env.settle(episode, 0).moved.max() < 0.8
    assert draws(env, episode) == drawn  # and leaves the last one
    expected = env.sim_state()
    _wander(env, 5)
    env.reset(episode)
    np.testing.assert_array_equal(env.settled_state, expected)
    for _ in range(20):
        env.step(SETTLE_ACTION)
    before = object_poses(env._env)
    for _ in range(20):
        env.step(SETTLE_ACTION)
    assert np.abs(object_poses(env._env).position - before.position).max() < 0.002, "objects stand"


def test_a_task_whose_objects_never_stand_is_named(env, monkeypatch):
    monkeypatch.setattr(Motion, "disturbed", ["plate_1"])
    monkeypatch.setattr("wmjax.sim.env.PLACEMENTS", 3)
    with pytest.raises(UserError, match=r"random/5: plate_1 were not at rest in any of 3 placements"):
        env.reset(_episode("random", 5))
    env.reset(_episode("benchmark", 5))


def test_different_episodes_differ(env):
    hashes = set()
    for episode in (_episode("random", 0), _episode("random", 1), _episode("benchmark", 0), _episode("benchmark", 1)):
        env.reset(episode)
        hashes.add(env.settled_hash)
    assert len(hashes) == 4


def test_the_state_is_what_robosuite_observes(env):
    env.reset(_episode("random", 0))
    _wander(env, 8)
    sensors = env._env._observables
    position, quaternion, fingers = (
        np.asarray(sensors[f"robot0_{name}"]._sensor({})) for name in ("eef_pos", "eef_quat", "gripper_qpos")
    )
    from robosuite.utils.transform_utils import quat2axisangle

    state = env.state()
    assert state.dtype == np.float32 and state.shape == (8,)
    np.testing.assert_array_equal(state, build_state(position, quaternion, fingers))
    # robosuite computes in the quaternion's float64 as well; the states meet at float32.
    np.testing.assert_allclose(state[3:6], quat2axisangle(quaternion.copy()), atol=1e-6)


def test_images_are_rotated_cameras_of_the_spec(env):
    env.reset(_episode("random", 0))
    images = env.render()
    assert images.shape == (2, 112, 112, 3) and images.dtype == np.uint8
    for image, camera in zip(images, env.spec.cameras, strict=True):
        raw = env.sim.render(camera_name=camera, width=112, height=112)
        np.testing.assert_array_equal(image, np.rot90(raw, 2))
    top, bottom = images[0][:20].mean((0, 1)), images[0][-20:].mean((0, 1))
    assert bottom[0] - bottom[2] > 20 and abs(top[0] - top[2]) < 10  # the wooden table is below the grey wall


def test_restoring_a_state_restores_what_is_seen_and_what_follows(env):
    env.reset(_episode("random", 2))
    _wander(env, 5)
    state, images, proprioception = env.sim_state(), env.render(), env.state()
    _wander(env, 10, seed=1)
    end = env.sim_state()
    env.reset(_episode("random", 4))
    env.restore(state)
    np.testing.assert_array_equal(env.render(), images)
    np.testing.assert_array_equal(env.state(), proprioception)
    _wander(env, 10, seed=1)
    np.testing.assert_array_equal(env.sim_state(), end)


def test_foreign_episodes_and_states_are_refused(env):
    with pytest.raises(UserError, match="is not of libero_spatial task 2"):
        env.reset(EpisodeId(SUITE, TASK + 1, "random", 0))
    with pytest.raises(UserError, match="50 initial states"):
        env.reset(_episode("benchmark", 50))
    with pytest.raises(UserError, match="simulator state has 3 values"):
        env.restore(np.zeros(3))
    with pytest.raises(UserError, match=r"ObservationSpec\.simulator is 'other==1'"):
        LiberoEnv(SUITE, TASK, dataclasses.replace(OBSERVATION_SPEC, simulator="other==1"))


def test_an_unknown_camera_is_named(env):
    from wmjax.sim.render import Renderer

    with pytest.raises(UserError, match="unknown camera 'agentvew'; did you mean agentview"):
        Renderer(env.sim, dataclasses.replace(env.spec, cameras=("agentvew",)))


def test_a_policy_of_published_demonstrations_sees_images_made_as_those_were():
    published = dataclasses.replace(OBSERVATION_SPEC, 
        image_size=112, resize_filter="bilinear", drawn_size=256, reflection=True, mesh_detail_mm=0.0,
        simulator="as published in HuggingFaceVLA/libero",
    )  # fmt: skip
    env = LiberoEnv(SUITE, TASK, published)
    env.reset(_episode("random", 0))
    seen = env.render()
    drawn = Renderer(env.sim, dataclasses.replace(published, image_size=256, resize_filter="none")).render()
    env.close()
    assert drawn.shape == (2, 256, 256, 3)
    np.testing.assert_array_equal(seen, [resize_image(image, 112) for image in drawn])


def test_images_whose_drawn_size_is_not_known_are_refused(env):
    with pytest.raises(UserError, match="drawn_size is 0 for images of 112 px; convert the dataset again"):
        Renderer(env.sim, dataclasses.replace(env.spec, resize_filter="bilinear"))
