"""Pending actions of training samples: what is executed until the chunk begins, and the state that it leads to."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.data.synthetic import LENGTHS, make_episode
from wmjax.core.errors import UserError
from wmjax.data.labels import pending_actions
from wmjax.data.loader import BatchSource, LoaderConfig
from wmjax.data.motion import METRES, RADIANS, find_motion, roll_state
from wmjax.data.store import TrainingStore, finalize, write_part
from wmjax.experiment.config import load
from wmjax.models.prompts import PromptConfig
from wmjax.rollout.execution import Execution
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC
from wmjax.trainer.config import TrainConfig
from wmjax.trainer.inputs import make_inputs

DELAY = 8
EVERY = np.arange(len(LENGTHS))
SPEC = dataclasses.replace(OBSERVATION_SPEC, image_size=56, simulator="synthetic")
HOLD = np.array(ACTION_SPEC.hold, np.float32)
RECORDED = TrainingStore(Path(__file__).parents[1] / "fixtures" / "two_episodes")
MOTION = find_motion(OBSERVATION_SPEC, ACTION_SPEC)


def held(index: int, length: int):
    """A noise episode in which the robot first holds still while the expert says what it would do."""
    episode = make_episode(index, length)
    executed = episode.executed.copy()
    executed[:DELAY] = HOLD
    return dataclasses.replace(episode, executed=executed)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held")
    for index, length in enumerate(LENGTHS):
        write_part(folder, f"episode-{index:03d}", held(index, length), SPEC, ACTION_SPEC)
    return finalize(folder, SPEC, ACTION_SPEC)


def frame_of(store, episode: int, step: int) -> np.ndarray:
    return np.array([store.episodes[episode]["frame_start"] + step // 4])


@pytest.mark.parametrize("episode", [0, 3])
def test_they_are_what_is_executed_from_the_frame_on_until_the_chunk_begins(store, episode):
    executed, length = held(episode, LENGTHS[episode]).executed, LENGTHS[episode]
    for step in range(0, length - DELAY, 4):
        (found,) = pending_actions(store, frame_of(store, episode, step), DELAY)
        np.testing.assert_array_equal(found, executed[step : step + DELAY])
    (first,) = pending_actions(store, frame_of(store, episode, 0), DELAY)
    np.testing.assert_array_equal(first, Execution(4, DELAY, spec=ACTION_SPEC).planned())  # as a rollout begins
    last = (length - 1) // 4 * 4
    (ended,) = pending_actions(store, frame_of(store, episode, last), DELAY)
    np.testing.assert_array_equal(ended[: length - last], executed[last:])
    assert not ended[length - last :, :6].any() and (ended[length - last :, 6] == executed[-1, 6]).all()


def batch(store, **settings):
    config = LoaderConfig(**({"batch_size": 52, "delay": DELAY} | settings))
    return BatchSource(store, None, EVERY, config)[0]


def test_a_sample_has_those_of_its_frame_if_asked_for(store):
    plain, told = batch(store), batch(store, pending=True)
    assert told.keys() - plain.keys() == {"pending"}
    for name, column in plain.items():
        np.testing.assert_array_equal(told[name], column)
    np.testing.assert_array_equal(told["pending"], pending_actions(store, told["sample_id"], DELAY))
    known = told["action_mask"].any(1)
    row = store.frame_row[told["sample_id"][known]]
    for step in range(DELAY):  # wherever there is anything to learn, all of them were executed
        np.testing.assert_array_equal(told["pending"][known][:, step], store.executed[row + step])


@pytest.mark.parametrize("settings", [{"pending": True}, {"rolls_state": True}])
def test_nothing_of_the_time_from_the_chunk_on_is_in_a_sample(store, settings, monkeypatch):
    before = batch(store, shuffle=False, **settings)
    frame = 5
    row = store.frame_row[before["sample_id"][frame]]
    for changed, leaks in ((slice(row + DELAY, None), False), (slice(None, row), False), (row + DELAY - 1, True)):
        executed = store.executed.copy()
        executed[changed] += 0.5
        monkeypatch.setattr(store, "executed", executed)
        after = batch(store, shuffle=False, **settings)
        same = all(np.array_equal(before[name][frame], after[name][frame]) for name in before)
        assert same != leaks
        monkeypatch.undo()


def test_the_label_is_not_what_is_executed(store):
    found = batch(store, pending=True)
    row = store.frame_row[found["sample_id"]]
    assert not np.isclose(found["pending"][:, 0], store.action[row]).all(1).any()


def test_a_video_has_none(store):
    found = batch(store, pending=True, rolls_state=True, video_only=(1, 4))
    video = np.isin(store.frame_episode[found["sample_id"]], (1, 4))
    assert video.any() and not found["pending"][video].any() and found["pending"][~video].any()
    np.testing.assert_array_equal(found["state"][video], batch(store, video_only=(1, 4))["state"][video])


def test_the_settings_of_the_policy_say_what_a_sample_has(store):
    model = dataclasses.replace(load("e0state_flow").model, pending=DELAY)
    config = TrainConfig(validation_fraction=0.2, delay=DELAY)
    loader = make_inputs(store, None, PromptConfig(length=56), model, config).loader
    assert (loader.delay, loader.pending, loader.rolls_state) == (DELAY, True, True)
    plain = make_inputs(store, None, PromptConfig(length=56), load("e0_flow").model, config).loader
    assert (plain.delay, plain.pending, plain.rolls_state) == (DELAY, False, False)


def test_a_rolled_state_is_in_the_sample_and_nothing_else_changes(store):
    plain, rolled = batch(store), batch(store, rolls_state=True)
    assert plain.keys() == rolled.keys()
    expected = roll_state(plain["state"], pending_actions(store, plain["sample_id"], DELAY), MOTION)
    np.testing.assert_array_equal(rolled["state"], expected)
    assert rolled["state"].dtype == np.float32 and not np.array_equal(rolled["state"], plain["state"])
    for name in plain.keys() - {"state"}:
        np.testing.assert_array_equal(rolled[name], plain[name])


def random_states(count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    state = random.normal(size=(count, 8)).astype(np.float32)
    axis = random.normal(size=(count, 3))
    angle = random.uniform(0.1, 2 * np.pi - 1.0, (count, 1))  # LIBERO's hand is at about pi
    state[:, 3:6] = axis / np.linalg.norm(axis, axis=1, keepdims=True) * angle
    return state, random.uniform(-1, 1, (count, 5, 7)).astype(np.float32)


def test_positions_are_added_up_and_rotations_composed_about_the_axes_of_the_world():
    state, actions = random_states(64)
    rolled = roll_state(state, actions, MOTION)
    np.testing.assert_allclose(rolled[:, :3], state[:, :3] + METRES * actions[..., :3].sum(1), atol=1e-6)
    np.testing.assert_array_equal(rolled[:, 6:], state[:, 6:])
    expected = Rotation.from_rotvec(state[:, 3:6])
    for step in range(5):
        expected = Rotation.from_rotvec(RADIANS * actions[:, step, 3:6]) * expected
    error = (Rotation.from_rotvec(rolled[:, 3:6]) * expected.inv()).magnitude()
    assert error.max() < 1e-5
    # The hand turns less than 1 rad: its axis-angle goes on from where it is and does not jump to the other sheet.
    assert np.linalg.norm(rolled[:, 3:6] - state[:, 3:6], axis=1).max() < 3.0
    assert (np.linalg.norm(rolled[:, 3:6], axis=1) > np.pi).sum() > 10


def test_jax_and_numpy_roll_alike_and_no_action_changes_nothing():
    state, actions = random_states(16)
    rolled = roll_state(state, actions, MOTION)
    assert rolled.dtype == np.float32
    np.testing.assert_allclose(jax.jit(lambda s, a: roll_state(s, a, MOTION))(state, actions), rolled, atol=2e-6)
    still = roll_state(jnp.asarray(state), jnp.zeros((16, 5, 7)), MOTION)
    np.testing.assert_allclose(still, state, atol=2e-6)
    upright = np.zeros((1, 8), np.float32)
    np.testing.assert_array_equal(roll_state(upright, np.zeros((1, 2, 7), np.float32), MOTION), upright)


def test_a_rolled_position_is_nearer_to_the_recorded_one_than_the_position_before():
    """These hands turn by 0.03 rad in this time; ``sim/test_roll_state.py`` turns one."""
    frames = np.flatnonzero(RECORDED.frame_episode == 0)
    frames = frames[RECORDED.frame_row[frames] + DELAY < RECORDED.episodes[0]["length"]]
    before, after = (RECORDED.state[RECORDED.frame_row[frames] + ahead] for ahead in (0, DELAY))
    rolled = roll_state(before, pending_actions(RECORDED, frames, DELAY), MOTION)
    before_error, rolled_error = (np.linalg.norm((x - after)[:, :3], axis=1) for x in (before, rolled))
    assert len(frames) > 20
    assert rolled_error.mean() < 0.3 * before_error.mean()


def test_actions_of_unknown_effect_are_refused(store):
    slower = dataclasses.replace(OBSERVATION_SPEC, control_hz=10.0)
    joints = dataclasses.replace(ACTION_SPEC, definition="joint positions")
    for observation, action in (
        (slower, ACTION_SPEC),
        (OBSERVATION_SPEC, joints),
        (dataclasses.replace(OBSERVATION_SPEC, orientation=()), ACTION_SPEC),
    ):
        with pytest.raises(UserError, match=r"model\.roll_state is true, but it is not known how actions .* move"):
            find_motion(observation, action)
