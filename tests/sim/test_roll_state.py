"""A state that is rolled forward by actions, against the simulator that executes them."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from wmjax.data.motion import find_motion, roll_state
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

from .conftest import SUITE, TASK

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("axis", range(6))
def test_it_is_nearer_to_where_the_robot_will_be_than_the_state_before(env, axis):
    env.reset(EpisodeId(SUITE, TASK, "random", 0))
    action = np.zeros(7, np.float32)
    action[[axis, 6]] = 0.5 if axis < 3 else -0.5, -1.0
    for _ in range(4):  # it is moving already, as a robot under a delay is
        env.step(action)
    before = env.state()
    for _ in range(8):
        env.step(action)
    after = env.state()
    rolled = roll_state(before, np.tile(action, (8, 1)), find_motion(OBSERVATION_SPEC, ACTION_SPEC))
    if axis < 3:
        way = after[:3] - before[:3]
        assert abs(way[axis]) > 0.02
        assert np.linalg.norm(after[:3] - rolled[:3]) < 0.5 * np.linalg.norm(way)
    else:
        first, reached, guess = (Rotation.from_rotvec(state[3:6]) for state in (before, after, rolled))
        assert (reached * first.inv()).magnitude() > 0.1
        assert (reached * guess.inv()).magnitude() < 0.5 * (reached * first.inv()).magnitude()
