"""Camera dropout: which cameras fail, and that nothing else changes."""

import numpy as np
import pytest

from wmjax.rollout.execution import blank, dropped_cameras
from wmjax.sim.episode import EpisodeId

EPISODES = [EpisodeId("libero_spatial", task, "random", index) for task in (0, 1) for index in range(20)]


def draws(probability: float, cameras: int = 2) -> np.ndarray:
    return np.array([dropped_cameras(e, n, cameras, probability) for e in EPISODES for n in range(25)])


def test_the_draws_are_a_function_of_episode_decision_and_camera():
    first = draws(0.5)
    np.testing.assert_array_equal(first, draws(0.5))
    per_episode = first.reshape(len(EPISODES), -1)
    assert len(np.unique(per_episode, axis=0)) == len(EPISODES)
    assert len(np.unique(first.reshape(len(EPISODES), 25, 2)[:, :, 0].T, axis=0)) == 25


@pytest.mark.parametrize("probability", [0.2, 0.5, 1.0])
def test_each_camera_fails_equally_often_and_one_always_shows(probability):
    dropped = draws(probability)
    assert not dropped.all(1).any()
    expected = probability - probability**2 / 2
    np.testing.assert_allclose(dropped.mean(0), expected, atol=4 * np.sqrt(0.25 / len(dropped)))


def test_a_higher_probability_keeps_what_has_failed():
    low, high = draws(0.3, cameras=3), draws(0.6, cameras=3)
    assert (high | ~low).all() and high.sum() > low.sum()


def test_only_the_dropped_cameras_frames_become_black():
    frames = np.random.default_rng(0).integers(1, 256, (3, 2, 4, 4, 3), np.uint8)
    kept = frames.copy()
    shown = blank(frames, np.array([False, True]))
    assert shown.dtype == np.uint8 and not shown[:, 1].any()
    np.testing.assert_array_equal(shown[:, 0], frames[:, 0])
    np.testing.assert_array_equal(frames, kept)
