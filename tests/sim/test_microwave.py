"""The primitives of the microwave: a mug is put in by its handle, the door is closed."""

import numpy as np
import pytest

from wmjax.core.errors import UserError
from wmjax.recording.demonstration import demonstration_id
from wmjax.recording.expert import Expert
from wmjax.recording.primitives.base import primitive_for
from wmjax.recording.primitives.door import Door
from wmjax.recording.primitives.insert import Insert
from wmjax.recording.primitives.motion import Phase
from wmjax.sim.env import LiberoEnv
from wmjax.sim.libero import OBSERVATION_SPEC

pytestmark = pytest.mark.sim

MUG, REGION, HINGE = "white_yellow_mug_1", "microwave_1_heating_region", "microwave_1_microjoint"


@pytest.fixture(scope="module")
def kitchen():
    env = LiberoEnv("libero_10", 9, OBSERVATION_SPEC)
    yield env
    env.close()


def test_the_mug_is_put_in_and_the_door_closed_by_changing_experts(kitchen):
    kitchen.reset(demonstration_id("libero_10", 9, slot=0, attempt=0, seed=90))
    phases, success = [], False
    while not success and len(phases) < 520:
        if len(phases) % 4 == 0:
            expert = Expert(kitchen)
        success = kitchen.step(expert.act())
        phases.append(expert.phase)
    assert success, phases[-20:]
    assert phases.index(Phase.CARRY) < phases.index(Phase.PUSH)


def test_a_mug_whose_handle_is_at_its_side_is_not_grasped_by_it(kitchen):
    kitchen.reset(demonstration_id("libero_10", 9, slot=1, attempt=0, seed=90))
    data = kitchen.sim.data
    start, end = kitchen.sim.model.get_joint_qpos_addr(f"{MUG}_joint0")
    insert = Insert(kitchen, ("in", MUG, REGION))
    handle = insert.plan().position - data.qpos[start : start + 3]
    assert handle[1] < -0.05 and abs(handle[0]) < 0.01
    data.qpos[start + 3 : end] = [1.0, 0.0, 0.0, 0.0]
    kitchen.sim.forward()
    assert Insert(kitchen, ("in", MUG, REGION)).plan() is None


def test_where_the_mug_goes_does_not_depend_on_the_door(kitchen):
    kitchen.reset(demonstration_id("libero_10", 9, slot=1, attempt=0, seed=90))
    place = Insert(kitchen, ("in", MUG, REGION)).state.place
    kitchen.sim.data.qpos[kitchen.sim.model.get_joint_qpos_addr(HINGE)] = 0.0
    kitchen.sim.forward()
    np.testing.assert_allclose(Insert(kitchen, ("in", MUG, REGION)).state.place, place, atol=1e-9)
    assert Door(kitchen, ("close", "microwave_1")).done


def test_a_door_is_not_opened(kitchen):
    with pytest.raises(UserError, match=r"no primitive reaches 'open microwave_1'; there are Insert"):
        primitive_for(kitchen, ("open", "microwave_1"))
