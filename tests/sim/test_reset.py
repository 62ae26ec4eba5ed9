"""A used environment starts an episode exactly as one that was never used: what the cheap reset must not forget.

One task of each suite, with something to open or to switch on where the suite has it; all but the first are long.
"""

import mujoco
import numpy as np
import pytest

from wmjax.sim.env import LiberoEnv
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import OBSERVATION_SPEC

pytestmark = pytest.mark.sim

OTHERS = [("libero_goal", 7), ("libero_10", 3), ("libero_object", 0)]
TASKS = [("libero_spatial", 4), *(pytest.param(*task, marks=pytest.mark.long) for task in OTHERS)]
"""A drawer; a stove; a drawer of a kitchen; a basket."""


def numbers(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """Every array of the model: poses, colours, damping, ..."""
    arrays = {name: getattr(model, name) for name in dir(model) if not name.startswith("_")}
    return {name: value.copy() for name, value in arrays.items() if isinstance(value, np.ndarray)}


def start(env: LiberoEnv, suite: str, task: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    env.reset(EpisodeId(suite, task, "random", 0))
    sim = env.sim
    return numbers(sim.model._model), env.sim_state(), sim.data.qacc_warmstart.copy(), env.render()


@pytest.mark.parametrize(("suite", "task"), TASKS)
def test_a_used_environment_starts_like_a_fresh_one(suite: str, task: int) -> None:
    spec = OBSERVATION_SPEC
    fresh = LiberoEnv(suite, task, spec)
    expected = start(fresh, suite, task)
    fresh.close()
    env = LiberoEnv(suite, task, spec)
    env.reset(EpisodeId(suite, task, "benchmark", 3))
    model, data = env.sim.model._model, env.sim.data
    hinged = (model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE) | (model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE)
    data.qpos[model.jnt_qposadr[hinged]] = model.jnt_range[hinged, 1]  # all is open and switched on, the arm stretched
    env.sim.forward()
    for action in np.random.default_rng(0).uniform(-1, 1, (12, 7)):
        env.step(action)
    found = start(env, suite, task)
    env.close()
    for name, value in expected[0].items():
        np.testing.assert_array_equal(found[0][name], value, err_msg=name)  # a NaN equals a NaN
    for before, after in zip(expected[1:], found[1:], strict=True):
        np.testing.assert_array_equal(after, before)
