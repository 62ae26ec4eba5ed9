"""A policy that continues what is executed while it decides: against its own decision without that knowledge."""

from typing import Any

import jax
import numpy as np
import pytest

from tests.rollout.runs import parameters, plain_specs, tiny_experiment
from wmjax.core.errors import UserError
from wmjax.data.observation import Observation
from wmjax.models.prompts import join_prompts
from wmjax.policy.policy import Policy
from wmjax.sim.libero import OBSERVATION_SPEC

INSTRUCTION = "pick up the black bowl next to the plate and place it on the plate"
DELAY = 2


def make(head: str, **options: Any) -> Policy:
    experiment = tiny_experiment("e0", head)
    found = plain_specs(OBSERVATION_SPEC) | {"encoder": None}
    return Policy(experiment, found, parameters(experiment), batch_size=2, open_loop_horizon=4, **options)


@pytest.fixture(scope="module")
def rtc() -> Policy:
    return make("flow", realtime="rtc", execution_delay=DELAY)


@pytest.fixture(scope="module")
def blend() -> Policy:
    return make("regression", realtime="blend", execution_delay=DELAY)


def decide(policy: Policy, pending: np.ndarray | None, other: int = 0) -> np.ndarray:
    """The chunks of two rows; ``other`` changes what the second one sees."""
    random, size = np.random.default_rng(0), OBSERVATION_SPEC.image_size
    images = random.integers(0, 256, (2, 1, 2, size, size, 3), np.uint8)
    images[1] += np.uint8(other)
    state = random.normal(size=(2, 8)).astype(np.float32)
    prompt = join_prompts([policy.prompt(INSTRUCTION)] * 2)
    keys = jax.random.split(jax.random.key(0), 2)
    observation = Observation(images, state, prompt, np.zeros(2, bool))
    return np.asarray(policy(policy.initial_carry(), observation, keys, pending=pending)[1])


PENDING = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 4, 7)).astype(np.float32)
PENDING[..., 6] = -1


def test_a_first_decision_is_that_of_the_policy_without_real_time_execution(rtc: Policy) -> None:
    np.testing.assert_array_equal(decide(rtc, None), decide(make("flow"), None))


def test_a_chunk_begins_with_the_executed_actions_and_continues_without_a_jump(rtc: Policy) -> None:
    plain, led = decide(rtc, None)[..., :6], decide(rtc, PENDING)[..., :6]

    def error(chunk: np.ndarray) -> float:
        return float(np.abs(chunk[:, :DELAY] - PENDING[:, :DELAY, :6]).mean())

    def jump(chunk: np.ndarray) -> float:
        return float(np.linalg.norm(chunk[:, DELAY] - PENDING[:, DELAY - 1, :6], axis=-1).mean())

    assert error(led) < 0.1 < 0.3 < error(plain)
    assert jump(led) < 0.8 * jump(plain)


def test_rows_do_not_depend_on_each_other(rtc: Policy) -> None:
    led, other = decide(rtc, PENDING), decide(rtc, PENDING * np.array([1, -1], np.float32)[:, None, None], other=9)
    np.testing.assert_array_equal(other[0], led[0])
    assert np.abs(other[1] - led[1]).max() > 1e-2


def test_the_policy_is_traced_once(rtc: Policy) -> None:
    decide(rtc, None), decide(rtc, PENDING)
    programs = rtc._step._cache_size()
    assert programs == 2
    decide(rtc, -PENDING, other=3)
    assert rtc._step._cache_size() == programs


def test_another_head_blends_its_chunk_with_the_one_before(blend: Policy) -> None:
    plain, mixed = decide(blend, None), decide(blend, PENDING)
    assert blend.handover is not None
    np.testing.assert_array_equal(mixed[:, :DELAY], PENDING[:, :DELAY])
    for row, weight in ((2, 2 / 3), (3, 1 / 3)):
        expected = weight * PENDING[:, row, :6] + (1 - weight) * plain[:, row, :6]
        np.testing.assert_allclose(mixed[:, row, :6], expected, atol=1e-5)
    np.testing.assert_array_equal(mixed[:, DELAY:, 6], plain[:, DELAY:, 6])
    np.testing.assert_allclose(mixed[:, 4:], plain[:, 4:], atol=1e-5)


def test_inapplicable_real_time_execution_is_refused(blend: Policy) -> None:
    with pytest.raises(UserError, match=r"realtime is 'rtc', but the policy's head \(model.head.kind 'regression'\)"):
        make("regression", realtime="rtc", execution_delay=DELAY)
    with pytest.raises(UserError, match="realtime is 'blend' with an execution delay of 5, but chunks of 8 actions"):
        make("flow", realtime="blend", execution_delay=5)
    with pytest.raises(UserError, match="realtime is 'blend', but execution_delay is 0"):
        make("flow", realtime="blend")
    with pytest.raises(ValueError, match="3 pending actions; the policy takes 4"):
        decide(blend, PENDING[:, :3])
