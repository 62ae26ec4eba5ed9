import subprocess
import sys

import pytest

from wmjax.core.errors import UserError
from wmjax.recording.demonstration import demonstration_id
from wmjax.sim.episode import DEMONSTRATION_INDEX, EpisodeId


def test_the_seed_is_a_fixed_function_of_the_key():
    episode = EpisodeId("libero_spatial", 3, "random", 17)
    assert episode.key == "libero_spatial/3/random/17"
    assert episode.seed == 836_286_873  # recorded demonstrations depend on it: never change


def test_every_part_of_the_identity_changes_the_seed():
    episodes = [
        EpisodeId(suite, task, init, index)
        for suite in ("libero_spatial", "libero_goal")
        for task in (0, 1)
        for init in ("benchmark", "random")
        for index in (0, 1)
    ]
    assert len({episode.seed for episode in episodes}) == len(episodes)


@pytest.mark.parametrize(
    ("task", "init", "index", "field"),
    [(-1, "random", 0, "task_id"), (0, "random", -2, "index"), (0, "fixed", 0, "init")],
)
def test_nonsense_is_refused(task, init, index, field):
    with pytest.raises(UserError, match=field):
        EpisodeId("libero_spatial", task, init, index)


def test_demonstrations_never_share_a_placement_with_each_other_or_an_evaluation():
    ids = [
        demonstration_id("libero_spatial", 0, slot, attempt, seed)
        for slot in (0, 1, 99_999)
        for attempt in range(5)
        for seed in range(3)
    ]
    assert len(set(ids)) == len(ids)
    assert all(episode.init == "random" and episode.index >= DEMONSTRATION_INDEX for episode in ids)


def test_naming_episodes_and_reading_recorder_settings_imports_no_simulator():
    code = (
        "import sys, wmjax.sim.episode, wmjax.recording.record, wmjax.record;"
        "assert not {'mujoco', 'robosuite', 'libero', 'jax', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("episode", [EpisodeId("libero_spatial", 3, "random", 17), EpisodeId("a/b", 0, "benchmark", 0)])
def test_a_key_is_read_back(episode):
    assert EpisodeId.parse(episode.key) == episode


@pytest.mark.parametrize(
    "key", ["", "libero_spatial/3/random", "x/3/random/-1", "x/3/chance/1", "x/03/random/1", "x/a/random/1"]
)
def test_an_invalid_key_is_refused(key):
    with pytest.raises(UserError, match="is not an episode's key; keys are like"):
        EpisodeId.parse(key)
