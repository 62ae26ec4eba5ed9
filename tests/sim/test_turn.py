"""The primitive that turns a stove's knob."""

import numpy as np
import pytest

from wmjax.recording.demonstration import demonstration_id
from wmjax.recording.expert import Expert
from wmjax.recording.primitives.base import primitive_for
from wmjax.recording.primitives.grasp import HOPELESS, GraspStyle
from wmjax.recording.primitives.motion import OPEN, Phase

pytestmark = pytest.mark.sim


def test_the_knob_is_turned_by_changing_experts(stove):
    stove.reset(demonstration_id("libero_goal", 7, slot=0, attempt=0, seed=90))
    first, phases, success = Expert(stove), [], False
    expert = first
    assert first.plan().cost < HOPELESS
    while not success and len(phases) < 150:
        expert = Expert(stove) if len(phases) % 4 == 0 else expert
        action = expert.act()
        np.testing.assert_array_equal(action, first.act())
        phases.append(expert.phase)
        success = stove.step(action)
    assert success and Phase.TURN in phases
    for _ in range(30):  # lets go, and leaves the stove on
        success = stove.step(first.act())
    assert success and first.phase is Phase.RETREAT and first.act()[6] == OPEN


def test_the_knob_is_turned_off_and_the_plate_moved_by_its_rim(stove):
    """Primitives of other tasks in the same scene: LIBERO's push of the plate is a plate that lies elsewhere."""
    stove.reset(demonstration_id("libero_goal", 7, slot=1, attempt=0, seed=90))
    goals = ("turnon", "flat_stove_1"), ("turnoff", "flat_stove_1"), ("on", "plate_1", "main_table_stove_front_region")
    for goal in goals:
        primitive, steps = primitive_for(stove, goal)(stove, goal, GraspStyle(90, 1, 0.0)), 0
        while not stove.holds(goal) and steps < 160:
            stove.step(primitive.act())
            steps += 1
        assert stove.holds(goal), (goal, primitive.phase)
        while not primitive.clear and steps < 200:
            stove.step(primitive.act())
            steps += 1
