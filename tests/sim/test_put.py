"""Objects that are not bowls: a pot that is gripped beside its widest part, a book for a narrow compartment."""

import numpy as np
import pytest

from wmjax.recording.expert import Expert
from wmjax.recording.primitives.grasp import GraspStyle, grasp_candidates
from wmjax.recording.primitives.privileged_scene import Scene
from wmjax.recording.primitives.put import Put
from wmjax.sim.env import LiberoEnv
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import OBSERVATION_SPEC

pytestmark = [pytest.mark.sim, pytest.mark.slow]
POT, BOOK, POTS = 2, 5, 8
"""Tasks of libero_10."""


@pytest.mark.parametrize(
    ("task", "style", "limit"), [(POT, GraspStyle(0, 1, 0.0), 220), (BOOK, GraspStyle(75, 1, 0.0), 110)]
)
def test_a_new_expert_every_four_steps_puts_it_there(task: int, style: GraspStyle, limit: int) -> None:
    env = LiberoEnv("libero_10", task, OBSERVATION_SPEC)
    try:
        env.reset(EpisodeId("libero_10", task, "random", 100_000))
        for step in range(limit):
            if step % 4 == 0:
                expert = Expert(env, style)
            if env.step(expert.act()):
                return
        pytest.fail(f"not solved within {limit} steps; last phase {expert.phase}")
    finally:
        env.close()


def test_a_pot_is_gripped_where_the_fingers_fit_around_what_it_collides_with() -> None:
    env = LiberoEnv("libero_10", POT, OBSERVATION_SPEC)
    try:
        env.reset(EpisodeId("libero_10", POT, "random", 100_000))
        scene, pot = Scene(env.sim), "moka_pot_1"
        points = scene.collision_points(pot)
        assert scene.base(pot) == pytest.approx(0.067, abs=2e-3)
        assert points[:, 2].min() == pytest.approx(scene.position(pot)[2] - scene.base(pot), abs=2e-3)
        candidates = list(grasp_candidates(scene, pot, rim=False))
        assert candidates
        for candidate in candidates:
            closing, across = candidate.rotation[:2, 0], candidate.rotation[:2, 1]
            relative = points - candidate.position
            between = (np.abs(relative[:, :2] @ across) < 0.01) & (relative[:, 2] > -0.01)
            assert np.abs(relative[between, :2] @ closing).max() < 0.036, "the pads are 0.04 m from the middle"
    finally:
        env.close()


def test_two_objects_for_one_region_have_places_beside_each_other() -> None:
    env = LiberoEnv("libero_10", POTS, OBSERVATION_SPEC)
    try:
        env.reset(EpisodeId("libero_10", POTS, "random", 100_000))
        goals = [goal for goal in env.predicates if goal[0] == "on"]
        first, second = (Put(env, goal, GraspStyle(-90, 1, 0.12)).state.place for goal in goals)
        region = Scene(env.sim).place_position(goals[0][2])
        np.testing.assert_allclose((first + second)[:2] / 2, region[:2], atol=1e-6)
        assert np.linalg.norm(first - second) == pytest.approx(0.0975, abs=1e-4), "the pots are 6 cm wide"
    finally:
        env.close()
