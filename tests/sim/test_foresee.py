"""Trying a future out in the real simulator: it is undone without a trace, and the expert can take over at any time."""

import numpy as np
import pytest

from wmjax.recording.expert import Expert
from wmjax.recording.primitives.motion import Phase
from wmjax.sim.env import LiberoEnv
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import OBSERVATION_SPEC
from wmjax.sim.worker import Execute, Foresee, Host, Reset, WorkerSettings

from .conftest import SUITE, TASK

pytestmark = pytest.mark.sim
EPISODE = EpisodeId(SUITE, TASK, "random", 1_000_003)
DECISION = 4
"""Control steps between two take-overs."""


@pytest.fixture(scope="module")
def course(env):
    """An episode in which the expert takes over at every decision: its actions, its states, and the phases."""
    env.reset(EPISODE)
    expert, actions, states, phases = Expert(env), [], [], []
    success = False
    while not success and len(actions) < 220:
        if len(actions) % DECISION == 0:
            expert = Expert(env)
        states.append(env.sim_state())
        actions.append(expert.act().astype(np.float32))
        phases.append(expert.phase)
        success = env.step(actions[-1])
    return np.stack(actions), np.stack(states), phases, success


def test_an_expert_that_takes_over_at_every_decision_arrives(course):
    actions, _, phases, success = course
    assert success and len(actions) < 160
    assert {Phase.APPROACH, Phase.DESCEND, Phase.LOWER} < set(phases) and phases[0] == Phase.APPROACH


def test_taking_over_from_where_the_task_is_done_lets_it_stand(env, course):
    _, states, _, _ = course
    env.restore(states[-1])
    for _ in range(3):
        env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    expert = Expert(env)
    for _ in range(8):
        success = env.step(expert.act())
    assert success


def test_looking_for_the_first_time_changes_nothing_also_not_for_another_simulation(env):
    env.reset(EPISODE)
    picture = env.render()
    fresh = LiberoEnv(SUITE, TASK, OBSERVATION_SPEC)
    try:
        fresh.reset(EPISODE)
        state = fresh.sim_state()
        np.testing.assert_array_equal(fresh.render(), picture)
        np.testing.assert_array_equal(fresh.sim_state(), state)
        np.testing.assert_array_equal(env.render(), picture)
    finally:
        fresh.close()
    np.testing.assert_array_equal(env.render(), picture)


def test_a_future_leaves_no_trace(env, course):
    """Before the grasp, with the object in the hand, and near the end: physics and pictures are those of before."""
    actions, states, _, _ = course
    settings = WorkerSettings(env.spec, 4)
    host = Host(settings, np.zeros(settings.frames_shape, np.uint8))
    host._task._env, host._task._task = env, (SUITE, TASK)
    host.run(Reset(EPISODE))
    for step in range(0, len(actions), 2 * DECISION):
        np.testing.assert_array_equal(env.sim_state(), states[step])
        if step in (0, 24, 48, 72):
            before = env.render()
            reply = host.run(Foresee(4, actions[:0]))
            assert reply.frame_steps == (step + 4, step + 8, step + 12, step + 16)
            assert not np.array_equal(host._buffer[0], host._buffer[3])
            np.testing.assert_array_equal(env.render(), before)
            np.testing.assert_array_equal(env.sim_state(), states[step])
        host.run(Execute(actions[step : step + 2 * DECISION], render=False))


def test_a_future_in_which_everything_is_decided_is_the_one_that_comes(env, course):
    actions, states, _, _ = course
    settings = WorkerSettings(env.spec, 4)
    host = Host(settings, np.zeros(settings.frames_shape, np.uint8))
    host._task._env, host._task._task = env, (SUITE, TASK)
    host.run(Reset(EPISODE))
    host.run(Execute(actions[:40], render=False))
    host.run(Foresee(4, actions[40:60]))
    foreseen = host._buffer.copy()
    host.run(Execute(actions[40:56]))
    np.testing.assert_array_equal(host._buffer, foreseen)
    np.testing.assert_array_equal(env.sim_state(), states[56])
