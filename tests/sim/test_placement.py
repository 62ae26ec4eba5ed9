"""Which random placements are drawn again."""

import numpy as np
import pytest

from wmjax.sim.env import LiberoEnv
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import OBSERVATION_SPEC, suite_tasks
from wmjax.sim.placement import Motion

NAMES = ("bowl", "ramekin")


def _disturbed(tilt: float, moved: float = 0.0, on_object: frozenset[str] = frozenset()) -> list[str]:
    """The disturbed objects if the bowl tilts by ``tilt`` degrees and moves by ``moved`` metres."""
    return Motion(NAMES, np.array([moved, 0.0]), np.deg2rad([tilt, 0.0]), np.zeros(2), on_object).disturbed


def test_an_object_may_tilt_more_where_the_task_puts_it_on_another_one() -> None:
    on_object = frozenset({"bowl"})
    assert _disturbed(9.0) == _disturbed(16.0, on_object=on_object) == []
    assert _disturbed(16.0) == _disturbed(16.0, on_object=frozenset({"ramekin"})) == ["bowl"]
    assert _disturbed(21.0, on_object=on_object) == _disturbed(16.0, 0.07, on_object) == ["bowl"]


@pytest.mark.sim
@pytest.mark.slow
def test_a_bowl_on_a_ramekin_rests_as_in_the_benchmark() -> None:
    env = LiberoEnv("libero_spatial", 5, OBSERVATION_SPEC)
    try:
        bowl = env.settle(EpisodeId("libero_spatial", 5, "benchmark", 0), 0)
        assert bowl.on_object == {"akita_black_bowl_1", "akita_black_bowl_2"}
        for index in (100_000, 1_000_000):
            motion = env.settle(EpisodeId("libero_spatial", 5, "random", index), 0)
            assert motion.disturbed == []
            assert motion.tilt.max() == pytest.approx(bowl.tilt.max(), abs=0.01)
    finally:
        env.close()


@pytest.mark.sim
@pytest.mark.long
@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_every_task_has_random_resets(suite: str) -> None:
    for task in range(len(suite_tasks(suite))):
        env = LiberoEnv(suite, task, OBSERVATION_SPEC)
        try:
            for index in (100_000, 200_000, 1_000_000):
                env.reset(EpisodeId(suite, task, "random", index))
        finally:
            env.close()
