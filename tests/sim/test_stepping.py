"""The quick control step is robosuite's, bit for bit."""

import numpy as np
import pytest

from wmjax.sim.episode import EpisodeId
from wmjax.sim.stepping import control_step

from .conftest import SUITE, TASK

pytestmark = pytest.mark.sim


def test_equals_robosuite_step(env):
    actions = np.random.default_rng(3).uniform(-1, 1, (25, 7))
    actions[10:, 2] = -1.0  # into the table: contacts
    trajectories = []
    for step in (lambda action: env._env.step(action)[2], lambda action: control_step(env._env, action)):
        env.reset(EpisodeId(SUITE, TASK, "random", 0))
        trajectory = []
        for action in actions:
            success = bool(step(action))
            trajectory.append(np.append(env.sim_state(), success))
        trajectories.append(np.stack(trajectory))
    np.testing.assert_array_equal(*trajectories)
    assert env.sim.data.ncon > 0
