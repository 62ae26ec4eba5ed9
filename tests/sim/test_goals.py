"""The goals of a suite's tasks in one scene."""

import pytest

from wmjax.sim.env import LiberoEnv
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import OBSERVATION_SPEC

pytestmark = pytest.mark.sim


def test_every_goal_of_libero_goal_is_judged_in_the_scene_that_its_tasks_share():
    env = LiberoEnv("libero_goal", 8, OBSERVATION_SPEC)
    assert env.sentences()[7:9] == ["turn on the stove", env.instruction]
    env.reset(EpisodeId("libero_goal", 8, "random", 3))
    assert env.goals_held() == ()
    before, data = env.sim_state(), env.sim.data
    data.set_joint_qpos("wooden_cabinet_1_middle_level", -0.16)
    data.set_joint_qpos("flat_stove_1_button", 1.5)
    env.sim.forward()
    assert env.goals_held() == (0, 7)  # the middle drawer is open, the stove is on
    env.restore(before)
    assert env.goals_held() == ()
    plate = data.get_body_xpos("plate_1_main")
    bowl = data.get_joint_qpos("akita_black_bowl_1_joint0")
    data.set_joint_qpos("akita_black_bowl_1_joint0", [*plate[:2], plate[2] + 0.01, *bowl[3:]])
    assert any(env.step([0, 0, 0, 0, 0, 0, -1]) for _ in range(10))  # the episode's own goal
    assert env.goals_held() == (8,)
    env.close()


def test_a_suite_with_one_goal_tells_nothing(env):
    env.reset(EpisodeId("libero_spatial", 2, "random", 0))
    assert env.goals_held() is None
