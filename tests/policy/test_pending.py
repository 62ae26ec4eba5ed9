"""A policy whose input has its pending actions, or the state that they lead to."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.rollout.runs import parameters, plain_specs, tiny_experiment
from wmjax.core.errors import UserError
from wmjax.data.motion import find_motion, roll_state
from wmjax.data.observation import Observation
from wmjax.data.store import TrainingStore
from wmjax.models.prompts import join_prompts
from wmjax.policy.policy import Policy
from wmjax.policy.recorded_decisions import decide_on_recording
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

DELAY = 2
SENTENCE = "pick up the black bowl next to the plate and place it on the plate"
HOLD = np.tile(np.array(ACTION_SPEC.hold, np.float32), (2, DELAY, 1))
RANDOM = np.random.default_rng(1)
PENDING = RANDOM.uniform(-0.5, 0.5, (2, DELAY, 7)).astype(np.float32)
STATE = RANDOM.normal(size=(2, 8)).astype(np.float32)


def make(head: str = "regression", delay: int = DELAY, options: dict[str, Any] | None = None, **model: Any) -> Policy:
    experiment = tiny_experiment("e0", head)
    experiment = dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, **model),
        train=dataclasses.replace(experiment.train, delay=delay),
    )
    found = plain_specs(OBSERVATION_SPEC) | {"encoder": None}
    found["action"]["offset"], found["action"]["scale"] = [0.1] * 6 + [0.0], [0.5] * 6 + [1.0]
    return Policy(experiment, found, parameters(experiment), batch_size=2, open_loop_horizon=4, **(options or {}))


@pytest.fixture(scope="module")
def told() -> Policy:
    return make(pending=DELAY)


@pytest.fixture(scope="module")
def rolling() -> Policy:
    return make(roll_state=True)


def decide(policy: Policy, pending: np.ndarray | None, state: np.ndarray = STATE, first: bool = False) -> np.ndarray:
    size = OBSERVATION_SPEC.image_size
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 2, size, size, 3), np.uint8)
    prompt, keys = join_prompts([policy.prompt(SENTENCE)] * 2), jax.random.split(jax.random.key(0), 2)
    observation = Observation(images, state, prompt, np.full(2, first))
    return np.asarray(policy(policy.initial_carry(), observation, keys, pending=pending)[1])


@pytest.mark.parametrize("name", ["told", "rolling"])
def test_an_episode_begins_with_a_robot_that_holds_still(name: str, request: pytest.FixtureRequest) -> None:
    policy = request.getfixturevalue(name)
    assert policy.pending_steps == DELAY and policy.committed == 0
    np.testing.assert_array_equal(decide(policy, None, first=True), decide(policy, HOLD))
    assert np.abs(decide(policy, PENDING) - decide(policy, HOLD)).max() > 1e-4
    assert policy._step._cache_size() == 1


def test_rows_do_not_depend_on_each_other(told: Policy) -> None:
    changed = PENDING * np.array([1, -1], np.float32)[:, None, None]
    plain, other = decide(told, PENDING), decide(told, changed)
    np.testing.assert_array_equal(other[0], plain[0])
    assert np.abs(other[1] - plain[1]).max() > 1e-4


def test_the_network_gets_them_in_its_units(told: Policy) -> None:
    """The same parameters on actions that are normalised already."""
    plain = make(pending=DELAY)
    plain.pending_input = dataclasses.replace(plain.pending_input, spec=dataclasses.replace(ACTION_SPEC, chunk=8))
    units = (PENDING - np.float32([0.1] * 6 + [0.0])) / np.float32([0.5] * 6 + [1.0])
    np.testing.assert_allclose(decide(plain, units), decide(told, PENDING), atol=1e-6)


def test_a_rolling_policy_is_the_plain_one_in_the_state_that_will_be(rolling: Policy) -> None:
    plain, ahead = make(), roll_state(STATE, PENDING, find_motion(OBSERVATION_SPEC, ACTION_SPEC))
    np.testing.assert_allclose(decide(rolling, PENDING), decide(plain, None, ahead), atol=1e-5)
    assert np.abs(decide(plain, None, ahead) - decide(plain, None)).max() > 1e-4
    still = make(delay=0, roll_state=True)
    assert still.pending_steps == 0
    np.testing.assert_array_equal(decide(still, None), decide(make(delay=0), None))


def test_with_real_time_execution_the_first_pending_actions_are_an_input_and_the_rest_is_continued(
    told: Policy,
) -> None:
    late = make(options={"realtime": "blend", "execution_delay": 4}, pending=DELAY)
    assert (late.pending_steps, late.committed) == (DELAY + 4, 2)
    longer = np.concatenate([PENDING, RANDOM.uniform(-0.5, 0.5, (2, 4, 7)).astype(np.float32)], 1)
    alone, led = decide(told, PENDING), decide(late, longer)
    np.testing.assert_allclose(led[:, 4:], alone[:, 4:], atol=1e-5)  # behind the overlap
    np.testing.assert_array_equal(led[:, :2], longer[:, DELAY : DELAY + 2])
    np.testing.assert_allclose(decide(late, None, first=True), decide(told, HOLD), atol=1e-6)


def test_on_a_recording_the_pending_actions_are_the_executed_ones(
    told: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, seen = TrainingStore(Path(__file__).parents[1] / "fixtures" / "two_episodes"), []

    def note(self: Policy, carry: Any, observation: Observation, keys: Any, **given: Any) -> tuple[Any, Any, dict]:
        seen.append(given["pending"])
        return carry, np.zeros((1, 8, 7), np.float32), {}

    monkeypatch.setattr(Policy, "__call__", note)
    decide_on_recording(told, store, 1)
    episode = store.episode(1)
    assert len(seen) == len(episode.frame_step) > 10
    for pending, step in zip(seen[:-1], episode.frame_step, strict=False):
        np.testing.assert_array_equal(pending, episode.executed[step : step + DELAY][None])


def test_pending_actions_of_another_shape_are_refused(told: Policy) -> None:
    with pytest.raises(ValueError, match="pending actions are missing after an episode's first decision; give 2"):
        decide(told, None)
    with pytest.raises(ValueError, match="1 pending actions; the policy takes 2"):
        decide(told, PENDING[:, :1])
    with pytest.raises(ValueError, match="2 pending actions; the policy takes 0"):
        decide(make(), PENDING)
    experiment = tiny_experiment("e0", "flow")
    rolls = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, roll_state=True))
    unknown = plain_specs(OBSERVATION_SPEC) | {"encoder": None}
    unknown["action"]["definition"] = "joint velocities"
    with pytest.raises(UserError, match="it is not known how actions"):
        Policy(rolls, unknown, {}, batch_size=1, open_loop_horizon=4)
