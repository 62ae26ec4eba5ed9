"""The drifting target in the real simulator: constant speed, physics intact, the start's identity untouched."""

import numpy as np
import pytest

from wmjax.core.errors import UserError
from wmjax.sim.disturbance import REACH, ROOM, Disturbance
from wmjax.sim.env import SETTLE_ACTION, LiberoEnv
from wmjax.sim.episode import EpisodeId

from .conftest import SUITE, TASK

pytestmark = pytest.mark.sim
SPEED = 0.04
STEP = 0.05
MOVING = Disturbance(SPEED)


def _episode(index: int) -> EpisodeId:
    return EpisodeId(SUITE, TASK, "random", index)


def _start(env: LiberoEnv, index: int, disturbance: Disturbance = MOVING) -> None:
    env.reset(_episode(index))
    env.disturb(disturbance, _episode(index))


def _positions(env: LiberoEnv) -> dict[str, np.ndarray]:
    return {name: env.sim.data.get_body_xpos(o.root_body).copy() for name, o in env._env.objects_dict.items()}


def _states(env: LiberoEnv, steps: int, seed: int = 0) -> np.ndarray:
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, 7))
    states = []
    for action in actions:
        env.step(action)
        states.append(env.sim_state())
    return np.stack(states)


def _path(env: LiberoEnv, steps: int) -> list[dict[str, np.ndarray]]:
    """Where everything is, while the robot holds still."""
    path = [_positions(env)]
    for _ in range(steps):
        env.step(SETTLE_ACTION)
        path.append(_positions(env))
    return path


@pytest.mark.parametrize("index", [0, 100_003, 100_006])  # next to the plate: nothing, a falling bowl, a bowl at 1 mm
def test_the_plate_moves_at_constant_speed_along_a_line_and_touches_nothing(env, index):
    env.reset(_episode(index))
    still = _path(env, 120)
    _start(env, index)
    drift = env._drift
    assert drift is not None and ROOM <= drift.ahead <= REACH and 0 <= drift.behind <= REACH
    path = _path(env, 120)
    moved = np.stack([positions["plate_1"] for positions in path]) - path[0]["plate_1"]
    along = moved[:, :2] @ drift.direction
    np.testing.assert_allclose(np.abs(np.diff(along)), SPEED * STEP, rtol=0.01)
    across = moved[:, :2] @ np.array([-drift.direction[1], drift.direction[0]])
    assert np.abs(across).max() < 1e-4 and np.abs(moved[:, 2]).max() < 5e-4
    assert drift.ahead <= along.max() < drift.ahead + SPEED * STEP
    assert -drift.behind - SPEED * STEP < along.min()
    for name in set(path[0]) - {"plate_1"}:
        np.testing.assert_allclose(path[-1][name], still[-1][name], atol=1e-3, err_msg=name)


def test_the_direction_is_the_episodes_and_the_start_keeps_its_identity(env):
    directions, hashes = [], []
    for index in (0, 1, 2, 0):
        env.reset(_episode(index))
        still = env.settled_hash
        _start(env, index)
        assert env.settled_hash == still
        directions.append(env._drift.direction)
        hashes.append(still)
    np.testing.assert_array_equal(directions[0], directions[3])
    assert len({tuple(d) for d in directions}) == 3 and len(set(hashes)) == 3


def test_a_disturbed_episode_repeats_bit_for_bit_also_from_a_restored_state(env):
    _start(env, 5)
    first = _states(env, 40)
    _start(env, 6)
    _states(env, 3)
    _start(env, 5)
    np.testing.assert_array_equal(_states(env, 40), first)
    env.restore(first[19])
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 7))[20:]
    for action, expected in zip(actions, first[20:], strict=True):
        env.step(action)
        np.testing.assert_array_equal(env.sim_state(), expected)


def test_nothing_of_it_is_left_after_the_next_reset(env):
    env.reset(_episode(7))
    expected = _states(env, 10)
    _start(env, 7)
    assert not np.array_equal(_states(env, 10), expected)
    env.reset(_episode(7))
    np.testing.assert_array_equal(_states(env, 10), expected)
    _start(env, 7, Disturbance())
    np.testing.assert_array_equal(_states(env, 10), expected)


def test_what_lies_on_the_plate_is_carried_along_and_counts_as_success(env):
    _start(env, 100_000)
    item, data = env._env.objects_dict["akita_black_bowl_1"], env.sim.data
    pose = data.get_joint_qpos(item.joints[-1]).copy()
    pose[:3] = _positions(env)["plate_1"] + [0, 0, 0.03]
    data.set_joint_qpos(item.joints[-1], pose)
    success = [env.step(SETTLE_ACTION) for _ in range(40)]
    start = _positions(env)
    success += [env.step(SETTLE_ACTION) for _ in range(40)]
    carried = {name: position - start[name] for name, position in _positions(env).items()}
    assert success[-1] and np.linalg.norm(carried["plate_1"]) > 0.04
    np.testing.assert_allclose(carried["akita_black_bowl_1"][:2], carried["plate_1"][:2], atol=0.005)


@pytest.mark.parametrize("goal", [("turnon", "flat_stove_1"), ("on", "akita_black_bowl_1", "flat_stove_1_cook_region")])
def test_a_target_that_cannot_move_is_refused(env, monkeypatch, goal):
    env.reset(_episode(0))
    monkeypatch.setattr(env, "goal", goal)
    with pytest.raises(UserError, match=f"target_velocity is set, but the goal '{' '.join(goal)}' has no target"):
        env.disturb(MOVING, _episode(0))
    env.disturb(Disturbance(), _episode(0))
