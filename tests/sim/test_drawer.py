"""The primitive that opens and closes drawers, and goals that take several primitives."""

import numpy as np
import pytest

from wmjax.core.errors import UserError
from wmjax.recording.demonstration import demonstration_id
from wmjax.recording.expert import Expert
from wmjax.recording.primitives.base import primitive_for
from wmjax.recording.primitives.drawer import Drawer
from wmjax.recording.primitives.grasp import HOPELESS, GraspStyle
from wmjax.recording.primitives.motion import OPEN, Phase
from wmjax.recording.primitives.privileged_scene import Scene

pytestmark = pytest.mark.sim
EPISODE = demonstration_id("libero_goal", 7, slot=0, attempt=0, seed=90)
DRAWER = "wooden_cabinet_1_top_region"


def reaches(env, goal: tuple[str, ...], steps: int = 150) -> Drawer:
    """Acts until a predicate holds, with a new primitive every four steps; another one gives the same actions."""
    primitive = watching = Drawer(env, goal)
    assert watching.plan().cost < HOPELESS
    for step in range(steps):
        if step % 4 == 0:
            primitive = Drawer(env, goal)
        action = primitive.act()
        np.testing.assert_array_equal(action, watching.act())
        env.step(action)
        if env.holds(goal) and primitive.done:
            return watching
    raise AssertionError(f"{goal} does not hold after {steps} steps")


def test_a_drawer_is_opened_and_closed_by_changing_experts(stove):
    stove.reset(EPISODE)
    middle = "wooden_cabinet_1_middle_region"
    for predicate, phase in (("open", Phase.PULL), ("close", Phase.PUSH)):
        primitive = reaches(stove, (predicate, middle))
        assert primitive.phase is phase and not primitive.clear
        for _ in range(30):
            stove.step(primitive.act())
        assert stove.holds((predicate, middle)) and primitive.clear
        assert primitive.phase is Phase.RETREAT and primitive.act()[6] == OPEN


@pytest.mark.slow
def test_what_is_put_in_a_closed_drawer_needs_it_open_and_it_is_closed_last(stove, monkeypatch):
    goal = (("close", DRAWER), ("in", "akita_black_bowl_1", DRAWER))
    monkeypatch.setattr(stove, "predicates", goal)
    stove.reset(EPISODE)
    phases: list[Phase] = []
    for step in range(400):
        if step % 4 == 0:
            expert = Expert(stove, GraspStyle(0, 1, 0.0))
        stove.step(expert.act())
        phases.append(expert.phase)
        if all(map(stove.holds, goal)):
            break
    assert all(map(stove.holds, goal)), phases[-20:]
    first = [phases.index(phase) for phase in (Phase.PULL, Phase.CARRY, Phase.PUSH)]
    assert first == sorted(first), first


def test_an_open_drawer_covers_the_bowl_below_its_front(stove):
    """A bowl that is lifted there hits the drawer, so the hand carries it away from under the drawer first."""
    stove.reset(EPISODE)
    scene, data, bowl = Scene(stove.sim), stove.sim.data, "akita_black_bowl_1"
    closed = Drawer(stove, ("open", DRAWER)).plan().position
    drawer = stove.sim.model.get_joint_qpos_addr(stove.joint(DRAWER))
    data.qpos[drawer] = min(stove.articulation(DRAWER, "open"), key=abs)
    stove.sim.forward()
    opened = Drawer(stove, ("open", DRAWER)).plan().position
    outward = (opened - closed) / np.linalg.norm(opened - closed)
    start, _ = stove.sim.model.get_joint_qpos_addr(f"{bowl}_joint0")
    data.qpos[start : start + 3] = [*opened[:2], data.qpos[start + 2] + 0.04]
    stove.sim.forward()
    assert scene.way_out(bowl, 0.25, 0.05) @ outward > 0.9
    data.qpos[start : start + 3] = opened[0], opened[1] - 0.115, 1.07
    stove.sim.forward()
    assert not scene.way_out(bowl, 0.25, 0.05).any(), "in the drawer there is no room"
    assert scene.way_out(bowl, 0.25, 0.01) @ outward > 0.9
    data.qpos[start : start + 2] = opened[:2]
    data.qpos[drawer] = 0.0
    stove.sim.forward()
    assert not scene.way_out(bowl, 0.25, 0.05).any()


def test_objects_other_than_drawers_are_refused(stove):
    with pytest.raises(UserError, match=r"no primitive reaches 'close flat_stove_1'; there are .*Drawer \("):
        primitive_for(stove, ("close", "flat_stove_1"))
