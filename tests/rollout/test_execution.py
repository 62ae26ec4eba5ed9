"""What is executed at each control step: delay, horizon and temporal ensembling, without a simulator."""

import numpy as np
import pytest

from wmjax.core.errors import UserError
from wmjax.rollout.execution import Execution, ensemble_actions
from wmjax.sim.libero import ACTION_SPEC


def chunk(decided_at: int, length: int) -> np.ndarray:
    """Rows that name the step of their decision, their place in the chunk, and open or close."""
    rows = np.zeros((length, 7), np.float32)
    rows[:, 0], rows[:, 1], rows[:, 6] = decided_at, np.arange(length), 1.0
    return rows


def executed(steps: int, horizon: int, delay: int, length: int, ensemble: float = 0.0) -> np.ndarray:
    execution = Execution(horizon, delay, ensemble, spec=ACTION_SPEC)
    taken = []
    for start in range(0, steps, horizon):
        execution.add(chunk(start, length))
        taken.append(execution.take(min(horizon, steps - start)))
    return np.concatenate(taken)


@pytest.mark.parametrize("horizon", [4, 8, 16])
@pytest.mark.parametrize("delay", [0, 3, 8, 16, 21])
@pytest.mark.parametrize("longer", [0, 5])
def test_what_is_decided_at_step_t_is_executed_from_step_t_plus_delay_on(horizon, delay, longer):
    actions = executed(60, horizon, delay, horizon + longer)
    assert actions.dtype == np.float32 and actions.shape == (60, 7)
    np.testing.assert_array_equal(actions[:delay], np.tile(ACTION_SPEC.hold, (delay, 1)))
    since = np.arange(60 - delay)
    np.testing.assert_array_equal(actions[delay:, 0], since // horizon * horizon)
    np.testing.assert_array_equal(actions[delay:, 1], since % horizon)


@pytest.mark.parametrize("delay", [0, 3, 11])
def test_planned_actions_are_executed_independent_of_the_new_decision(delay):
    execution, planned, taken = Execution(8, delay, spec=ACTION_SPEC), [], []
    for start in range(0, 40, 8):
        planned.append(execution.planned())
        execution.add(chunk(start, 8))
        taken.append(execution.take(8))
    actions = np.concatenate(taken)
    for start, plan in zip(range(0, 24, 8), planned, strict=False):
        assert plan.dtype == np.float32
        np.testing.assert_array_equal(plan, actions[start : start + delay])


def test_further_ahead_the_plan_is_executed_without_a_new_decision():
    execution = Execution(4, 3, spec=ACTION_SPEC)
    for start in (0, 4):
        execution.add(chunk(start, 8))
        execution.take(4)
    planned = execution.planned(7)
    np.testing.assert_array_equal(planned[:, 0], 4)
    np.testing.assert_array_equal(planned[:, 1], np.arange(1, 8))
    np.testing.assert_array_equal(execution.take(7), planned)


def test_a_jump_is_the_distance_of_the_arms_actions_at_the_hand_over():
    execution = Execution(4, 3, spec=ACTION_SPEC)
    execution.add(chunk(0, 4))
    execution.take(4)
    new = chunk(4, 4)
    new[:, 6] = -1.0
    execution.add(new)
    assert execution.jump() == pytest.approx(5.0)  # from (0, 3) to (4, 0), without the gripper


@pytest.mark.parametrize("decay", [0.05, -0.05])
@pytest.mark.parametrize("delay", [0, 6])
def test_ensembling_averages_every_prediction_of_a_step(decay, delay):
    horizon, length = 4, 12
    actions = executed(40, horizon, delay, length, decay)
    for step in range(delay, 40):
        ages = [age for age in range((step - delay) % horizon, length, horizon) if step - delay - age >= 0]
        weights = np.exp(-decay * np.array(ages))
        decided = [step - delay - age for age in ages]
        expected = [np.average(decided, weights=weights), np.average(ages, weights=weights)]
        np.testing.assert_allclose(actions[step, :2], expected, rtol=1e-6, err_msg=str(step))
    np.testing.assert_array_equal(actions[:delay], np.tile(ACTION_SPEC.hold, (delay, 1)))


def test_weights_are_acts_with_the_opposite_sign():
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 7)).astype(np.float32)
    ages = np.array([4, 3, 2, 1, 0])  # oldest first, a decision every step, as in ACT's code
    weights = np.exp(-0.3 * np.arange(5))
    act = (actions * (weights / weights.sum())[:, None]).sum(0)
    np.testing.assert_allclose(ensemble_actions(actions, ages, -0.3, ACTION_SPEC)[:6], act[:6], rtol=1e-6)


def test_the_gripper_opens_or_closes_by_majority_and_the_newest_breaks_a_tie():
    def gripper(*values: float, decay: float = 1e-9) -> float:
        actions = np.zeros((len(values), 7), np.float32)
        actions[:, 6] = values
        return float(ensemble_actions(actions, np.arange(len(values))[::-1] * 4, decay, ACTION_SPEC)[6])

    assert gripper(-1, 1, 1) == 1 and gripper(1, -1, -0.5) == -1
    assert gripper(1, -1, decay=0.5) == -1 and gripper(1, -1, decay=-0.5) == 1
    assert gripper(0.3, 0, -0.3, decay=0.0) == -1
    assert gripper(0.2) == 1


def test_strong_weights_do_not_overflow():
    actions = np.linspace(-1, 1, 14).reshape(2, 7).astype(np.float32)
    for decay, row in ((1e3, 1), (-1e3, 0)):
        np.testing.assert_array_equal(
            ensemble_actions(actions, np.array([8, 0]), decay, ACTION_SPEC)[:6], actions[row, :6]
        )


def test_chunks_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="open_loop_horizon is 16, the policy predicts 8 actions; lower it"):
        Execution(16, spec=ACTION_SPEC).add(chunk(0, 8))
    with pytest.raises(UserError, match=r"ensemble is 0\.01, but chunks of 8 .* lower open_loop_horizon"):
        Execution(8, 0, 0.01, spec=ACTION_SPEC).add(chunk(0, 8))
