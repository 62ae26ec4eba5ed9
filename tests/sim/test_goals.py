"""The goals of a suite's tasks in one scene."""

import numpy as np
import pytest

from wmjax.sim.episode import EpisodeId

pytestmark = pytest.mark.sim


def test_every_goal_of_libero_goal_is_judged_in_the_scene_that_its_tasks_share(stove):
    assert stove.sentences()[7:9] == [stove.instruction, "put the bowl on the plate"]
    stove.reset(EpisodeId("libero_goal", 7, "random", 3))
    assert stove.goals_held() == ()
    before, data = stove.sim_state(), stove.sim.data
    data.set_joint_qpos("wooden_cabinet_1_middle_level", -0.16)
    data.set_joint_qpos("flat_stove_1_button", 1.5)
    stove.sim.forward()
    assert stove.goals_held() == (0, 7)  # the middle drawer is open, the stove is on
    stove.restore(before)
    assert stove.goals_held() == ()
    hold = np.array(stove.action_spec.hold)
    plate = data.get_body_xpos("plate_1_main")
    bowl = data.get_joint_qpos("akita_black_bowl_1_joint0")
    data.set_joint_qpos("akita_black_bowl_1_joint0", [*plate[:2], plate[2] + 0.01, *bowl[3:]])
    held = {(stove.step(hold), stove.goals_held()) for _ in range(10)}
    assert (False, (8,)) in held and held <= {(False, ()), (False, (8,))}


def test_a_suite_with_one_goal_tells_nothing(env):
    env.reset(EpisodeId("libero_spatial", 2, "random", 0))
    assert env.goals_held() is None
