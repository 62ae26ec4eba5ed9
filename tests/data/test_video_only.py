"""Episodes of which only the video is used: their actions and states reach nothing, their frames and latents do."""

import dataclasses

import numpy as np
import pytest

from tests.data.synthetic import LENGTHS, make_latents, make_store
from wmjax.core.errors import UserError
from wmjax.data.loader import BatchSource, LoaderConfig
from wmjax.data.split import video_only_episodes
from wmjax.data.weights import Mixture
from wmjax.experiment.config import load

EVERY = np.arange(len(LENGTHS))
VIDEO = (1, 4)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("video"))


def batches(store, latents=None, count=12, **settings):
    source = BatchSource(store, latents, EVERY, LoaderConfig(batch_size=16, **settings))
    return [source[index] for index in range(count)]


def test_neither_actions_nor_states_of_a_video_are_in_a_batch(store, tmp_path):
    latents = make_latents(tmp_path, store)
    shown, hidden = batches(store, latents), batches(store, latents, video_only=VIDEO)
    known = ~np.isin(store.frame_episode, VIDEO)
    mean = store.state[store.frame_row[known]].mean(0)
    videos = 0
    for before, after in zip(shown, hidden, strict=True):
        video = np.isin(store.frame_episode[after["sample_id"]], VIDEO)
        videos += video.sum()
        assert not after["action_mask"][video].any() and not after["action"][video].any()
        np.testing.assert_allclose(after["state"][video], np.tile(mean, (video.sum(), 1)), rtol=1e-6)
        for name in ("action", "action_mask", "state"):
            np.testing.assert_array_equal(after[name][~video], before[name][~video])
        for name in before.keys() - {"action", "action_mask", "state"}:
            np.testing.assert_array_equal(after[name], before[name])
    assert videos


def test_the_share_of_labelled_samples_is_as_said(store):
    for share, balance in ((0.5, "none"), (0.9, "task"), (1.0, "none")):
        mixture = Mixture(balance=balance, labelled_per_task=1, labelled_share=share)
        drawn = batches(store, count=100, video_only=VIDEO, mixture=mixture)
        frames = np.concatenate([batch["sample_id"] for batch in drawn])
        assert np.isin(store.frame_episode[frames], VIDEO).mean() == pytest.approx(1 - share, abs=0.02)


def test_the_first_episodes_of_each_task_have_actions():
    episodes = [{"task": index % 2} for index in range(12)]
    train = np.array([11, 0, 1, 3, 4, 5, 6, 8, 9])  # even ones: 0 4 6 8, odd ones: 1 3 5 9 11
    assert video_only_episodes(episodes, train, 2) == (5, 6, 8, 9, 11)
    assert video_only_episodes(episodes, train, 4) == (11,)
    assert video_only_episodes(episodes, train, None) == ()
    with pytest.raises(UserError, match=r"labelled_per_task is 5, but no task has more than 5 training episodes"):
        video_only_episodes(episodes, train, 5)


def test_a_share_of_labels_without_their_number_is_refused():
    with pytest.raises(UserError, match=r"data\.labelled_share is 0\.5, but all episodes have actions"):
        load("e2_flow", overrides={"data": {"labelled_share": 0.5}})
    with pytest.raises(UserError, match=r"data\.labelled_share is 0\.0; it must be above 0"):
        load("e2_flow", overrides={"data": {"labelled_per_task": 5, "labelled_share": 0.0}})


def test_they_do_not_change_what_is_recorded():
    data = load("e2_flow").data
    assert dataclasses.replace(data, labelled_per_task=5, labelled_share=0.5).identity() == data.identity()
