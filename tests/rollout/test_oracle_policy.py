"""The policy's side of the oracle bracket: the encoded future, and its mixture by alpha."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rollout.runs import parameters, plain_specs, tiny_experiment
from wmjax.core import specs
from wmjax.core.errors import UserError
from wmjax.data.observation import Observation
from wmjax.data.statistics import normalise_latents
from wmjax.data.store import TrainingStore
from wmjax.data.windows import clip_indices
from wmjax.encoders.encode import LATENT_BOUNDS
from wmjax.encoders.vjepa2.encoder import VJEPA2, VJEPA2Settings
from wmjax.models.world.config import WorldMemoryConfig
from wmjax.policy.interventions import mix
from wmjax.policy.policy import Policy

STORE = TrainingStore(Path(__file__).parents[1] / "fixtures" / "two_episodes")
EPISODE = STORE.episode(0)
AHEAD = 2
"""Frames between two decisions."""


@pytest.fixture(scope="module")
def make():
    """``make(oracle, change)`` builds a policy of the same random parameters, one of which may be changed."""
    experiment = tiny_experiment("e2", "flow")
    params = parameters(experiment)
    plain = plain_specs(STORE.spec)

    def _make(oracle: float | None, change: str = "") -> Policy:
        changed = {name: value + 1.0 if name == change else value for name, value in params.items()}
        assert change in ("", *params)
        return Policy(experiment, plain, changed, batch_size=1, open_loop_horizon=8, oracle=oracle)

    return _make


def observation(policy: Policy, decision: int) -> Observation:
    newest = AHEAD * decision
    frames = EPISODE.images[np.maximum(np.arange(newest - AHEAD + 1, newest + 1), 0)]
    prompt = policy.prompt(STORE.episodes[0]["instruction"])
    return Observation(frames[None], EPISODE.state[[4 * newest]], prompt, np.array([decision == 0]))


def decide(policy: Policy, future, decisions: int = 3):
    """Some decisions in a row; the last one's carry, chunk and numbers. ``future(newest)`` gives the frames to come."""
    carry = policy.initial_carry()
    for decision in range(decisions):
        keys = jax.random.split(jax.random.key(decision), 1)
        ahead = None if future is None else future(AHEAD * decision)[None]
        carry, chunk, info = policy(carry, observation(policy, decision), keys, ahead)
    return jax.tree.map(np.asarray, (carry, chunk, info))


def recorded(newest: int) -> np.ndarray:
    """What the recording shows next."""
    return EPISODE.images[newest + 1 : newest + 5]


@pytest.fixture(scope="module")
def ordinary(make):
    return decide(make(None), None)


@pytest.fixture(scope="module")
def truthful(make):
    return make(0.0)


@pytest.fixture(scope="module")
def perfect(truthful):
    return decide(truthful, recorded)


def test_alpha_one_is_the_ordinary_policy_bit_for_bit(make, ordinary):
    carry, chunk, info = decide(make(1.0), recorded)
    np.testing.assert_array_equal(chunk, ordinary[1])
    for mine, its in zip(carry, ordinary[0], strict=True):
        np.testing.assert_array_equal(mine, its)
    assert set(info) == {*ordinary[2], "oracle/error", "oracle/copy_error"}
    for name, values in ordinary[2].items():
        np.testing.assert_array_equal(info[name], values)


def test_alpha_zero_acts_on_the_future_that_is_shown_and_remembers_none_of_it(truthful, ordinary, perfect):
    carry, chunk, _ = decide(truthful, lambda newest: recorded(newest)[::-1])
    assert np.abs(chunk - perfect[1]).max() > 1e-4 and np.abs(chunk - ordinary[1]).max() > 1e-4
    for mine, its in zip(carry, ordinary[0], strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-5)


def test_a_memory_of_the_truth_makes_the_prediction_irrelevant(make, perfect):
    carry, chunk, _ = decide(make(0.0, "world/prophet/out/bias/value"), recorded)
    np.testing.assert_array_equal(chunk, perfect[1])
    assert np.abs(carry.prediction - perfect[0].prediction).min() > 0.9


def test_a_policy_whose_memory_is_the_true_future_acts_under_an_oracle_only():
    experiment = tiny_experiment("e1copy", "flow")
    memory = WorldMemoryConfig(input="future", world_loss=0.0)
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, memory=memory))
    settings = {"batch_size": 1, "open_loop_horizon": 8}
    build = functools.partial(Policy, experiment, plain_specs(STORE.spec), parameters(experiment), **settings)
    for oracle in (None, 0.5):
        with pytest.raises(UserError, match=rf"oracle is {oracle}, but the policy's memory is the true future"):
            build(oracle=oracle)
    policy = build(oracle=0.0)
    assert policy.future_frames == 4
    shown, other = (decide(policy, future)[1] for future in (recorded, lambda newest: recorded(newest)[::-1]))
    assert np.abs(shown - other).max() > 1e-4


def test_the_encoded_future_is_the_latents_of_the_frames_to_come(truthful):
    newest, encoder = 4, VJEPA2(VJEPA2Settings(cameras=("agentview",)))
    clips = EPISODE.images[clip_indices(np.arange(newest + 1, newest + 5), 0), 0]
    expected = encoder.encode(clips)
    policy, carry = truthful, truthful.initial_carry()
    for decision in range(3):
        keys = jax.random.split(jax.random.key(decision), 1)
        carry, _, _ = policy(carry, observation(policy, decision), keys, recorded(AHEAD * decision)[None])
    frames = jnp.asarray(recorded(newest)[None][:, :, policy._cameras])
    encode = policy._encode(policy._encoder.params)
    found = np.asarray(policy._true_future(policy._model, encode, carry, frames))[0]
    expected = normalise_latents(expected, policy.encoder_spec)
    scale = np.sqrt((expected**2).mean())
    assert np.abs(found - expected).max() / scale < LATENT_BOUNDS["float32"]
    assert np.abs(found[0] - found[3]).max() / scale > LATENT_BOUNDS["float32"]


def test_only_an_oracle_requests_and_accepts_the_future(make, truthful):
    for policy, future in ((truthful, None), (make(None), recorded)):
        with pytest.raises(ValueError, match="future frames belong to an oracle and to nothing else"):
            decide(policy, future, 1)


def test_prediction_and_truth_are_mixed_and_the_prediction_is_scored(make):
    model = make(None)._model
    history = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 16, 192)), jnp.float32)
    prediction = model.world.prophet(model.world.prepare(history))
    memory, errors = mix(model, history, prediction + 1.0, 0.25)
    np.testing.assert_allclose(memory, prediction + 0.75, atol=1e-5)
    np.testing.assert_allclose(errors.prediction, 1.0, rtol=1e-4)
    np.testing.assert_allclose(errors.copy, np.square(prediction + 1.0 - history[:, -1:]).mean(), rtol=1e-4)
    _, errors = mix(model, history, prediction, 0.25)
    np.testing.assert_allclose(errors.prediction, 0.0, atol=1e-10)


def test_a_policy_without_a_memory_of_the_future_has_no_oracle():
    experiment = tiny_experiment("e0", "regression")
    plain = {"observation": specs.to_dict(STORE.spec), "encoder": None, "action": plain_specs(STORE.spec)["action"]}
    with pytest.raises(UserError, match=r"oracle is 0\.5, but the policy acts without a memory .*memory\.input 'none'"):
        Policy(experiment, plain, {}, batch_size=1, open_loop_horizon=8, oracle=0.5)
