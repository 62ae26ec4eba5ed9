"""Which steps two chunks share, how much each counts there, and which delays are refused."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from wmjax.core.errors import UserError
from wmjax.core.handover import Handover, make_handover
from wmjax.sim.libero import ACTION_SPEC


def test_the_soft_mask_is_that_of_the_paper() -> None:
    found = Handover("rtc", chunk=10, horizon=4, delay=2)
    assert (found.committed, found.overlap, found.pending) == (2, 6, 6)
    steps = np.array([4, 3, 2, 1]) / 5
    expected = [1, 1, *(c * (math.exp(c) - 1) / (math.e - 1) for c in steps), 0, 0, 0, 0]
    np.testing.assert_allclose(found.weights(), expected, rtol=1e-6)


def test_blending_goes_from_the_old_chunk_to_the_new_in_equal_steps() -> None:
    np.testing.assert_allclose(Handover("blend", 10, 4, 2).weights(), [1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0], rtol=1e-6)


def test_a_chunk_that_was_trained_to_begin_late_has_less_that_is_committed() -> None:
    found = Handover("blend", chunk=8, horizon=4, delay=8, trained_delay=6)
    assert (found.committed, found.overlap, found.pending) == (2, 4, 10)
    pending = np.arange(20.0).reshape(1, 10, 2)
    np.testing.assert_array_equal(found.previous(pending), pending[:, 6:])
    learned = Handover("rtc", chunk=8, horizon=4, delay=8, trained_delay=8)
    assert learned.committed == 0 and 0 < learned.weights()[0] < 1


@pytest.mark.parametrize("xp", [np, jnp])
def test_blending_mixes_the_arm_and_never_a_gripper(xp) -> None:
    found, random = Handover("blend", 8, 4, 2), np.random.default_rng(0)
    old, new = (random.normal(size=(3, steps, 7)).astype(np.float32) for steps in (4, 8))
    old[..., 6], new[..., 6] = -1, 1
    mixed = np.asarray(found.blend(xp.asarray(new), xp.asarray(old), ACTION_SPEC))
    np.testing.assert_array_equal(mixed[:, :2], old[:, :2])
    for row, weight in ((2, 2 / 3), (3, 1 / 3)):
        np.testing.assert_allclose(mixed[:, row, :6], weight * old[:, row, :6] + (1 - weight) * new[:, row, :6], 1e-5)
    np.testing.assert_array_equal(mixed[:, 2:, 6], 1.0)
    np.testing.assert_array_equal(mixed[:, 4:], new[:, 4:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delay": 0}, "realtime is 'rtc', but execution_delay is 0, .*; set execution_delay, or realtime to 'none'"),
        (
            {"delay": 5},
            "delay of 5, but chunks of 8 .* overlap for 4 at open_loop_horizon 4; lower the delay or",
        ),
        ({"horizon": 8, "trained_delay": 3}, "overlap for 0 at open_loop_horizon 8"),
        ({"trained_delay": 4}, r"delay of 3, but the policy's chunks begin 4 .*; choose a delay of at least 4"),
    ],
)
def test_a_delay_that_does_not_fit_is_one_line(changes, message) -> None:
    fits = {"chunk": 8, "horizon": 4, "delay": 3}
    assert make_handover("rtc", **fits) is not None
    assert make_handover("none", **{**fits, **changes}) is None
    with pytest.raises(UserError, match=message) as found:
        make_handover("rtc", **{**fits, **changes})
    assert "\n" not in str(found.value)
