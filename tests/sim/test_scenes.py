"""Scene recordings: which tasks and episodes, and one real episode of random motion."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.data.synthetic import make_episode
from wmjax import record as command
from wmjax.core.errors import UserError
from wmjax.core.specs import ObservationSpec
from wmjax.data.store import finalize, write_part
from wmjax.recording import random_motion as scenes
from wmjax.recording.demonstration import SLOTS_PER_ATTEMPT, DemonstrationConfig, demonstration_id
from wmjax.recording.record import MAX_ATTEMPTS
from wmjax.recording.slots import Slot
from wmjax.sim.env import LiberoEnv
from wmjax.sim.episode import DEMONSTRATION_INDEX, SCENE_INDEX
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

SPEC = dataclasses.replace(OBSERVATION_SPEC, image_size=56, simulator="synthetic")


def test_an_encoders_default_scenes_are_not_those_of_the_benchmark() -> None:
    tasks = scenes.choose_tasks(list(scenes.SUITES), 30)
    assert len(tasks) == len(set(tasks)) == 10 + 10 + 10 + 30
    assert "libero_spatial" not in {suite for suite, _ in tasks}
    assert sorted(scenes.choose_tasks(["libero_spatial"], 5)) == [("libero_spatial", i) for i in (0, 2, 4, 6, 8)]
    with pytest.raises(UserError, match=r"suite 'libero' is not one of libero_object, .*libero_spatial"):
        scenes.choose_tasks(["libero"], 1)


@pytest.mark.parametrize("seed", [0, 1, 2, 1_000_000])
def test_scenes_begin_where_no_demonstration_or_evaluation_does(seed: int) -> None:
    """The last demonstration of a seed, and with it all that policies learn from or are judged on, comes before."""
    config = DemonstrationConfig(seed=seed)
    last = demonstration_id("libero_goal", 0, SLOTS_PER_ATTEMPT - 1, MAX_ATTEMPTS - 1, config.seed)
    assert DEMONSTRATION_INDEX <= last.index < SCENE_INDEX
    with pytest.raises(UserError, match=r"demonstrations\.seed is 1000001"):
        DemonstrationConfig(seed=1_000_001)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--episodes", "record.episodes_per_task is 0"),
        ("--first-episode", "record.first_episode is -1"),
        ("--tasks-per-suite", "record.tasks_per_suite is -1"),
        ("--suites", "suite '-1' is not one of libero_object"),
    ],
)
def test_bad_numbers_are_named(option: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    value = "0" if option == "--episodes" else "-1"
    assert command.main(["--random-motion", "--out", str(tmp_path / "scenes"), option, value]) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "scenes").exists()


def test_a_recording_that_lost_a_task_does_not_count_as_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(scenes, "TASKS_PER_SUITE", 2)
    runs: list[Path] = []

    def record(folder: Path, tasks: list[tuple[str, int]], episodes: range, spec: ObservationSpec) -> None:
        """The first time one task fails."""
        runs.append(folder)
        for suite, task in tasks[: len(runs)]:
            for index in range(scenes.EPISODES_PER_TASK):
                write_part(folder, scenes.part_name(Slot(suite, task, index)), make_episode(index, 9), SPEC)
        finalize(folder, SPEC, ACTION_SPEC)

    monkeypatch.setattr(scenes, "record_scenes", record)
    with pytest.raises(UserError, match=r"6 episodes are missing, see above; run it again"):
        scenes.cached_scenes(["libero_goal"])
    (store,) = scenes.cached_scenes(["libero_goal", "libero_goal"])
    assert len(store.episodes) == 2 * scenes.EPISODES_PER_TASK and len(runs) == 2
    assert scenes.cached_scenes(["libero_goal"])[0].hash == store.hash and len(runs) == 2


@pytest.mark.sim
def test_episodes_are_their_own_and_objects_are_tracked(env: LiberoEnv, tmp_path: Path) -> None:
    spec, (suite, task) = OBSERVATION_SPEC, (env.suite, env.task_id)
    assert [slot.number for slot in scenes.missing_slots(tmp_path, [(suite, task)], range(3, 6))] == [3, 4, 5]
    found = {index: scenes.record_episode(env, index, steps=8) for index in (0, 3, 0)}
    for index, episode in found.items():
        write_part(tmp_path, scenes.part_name(Slot(suite, task, index)), episode, env.spec)
    assert [slot.number for slot in scenes.missing_slots(tmp_path, [(suite, task)], range(3, 6))] == [4, 5]
    store = finalize(tmp_path, spec, ACTION_SPEC)
    assert len(store.episodes) == 2 and len(store.frame_step) == 4 and np.abs(store.action).max() <= 1
    places = [np.array(store.episodes[k]["objects"]["akita_black_bowl_1"]) for k in range(2)]
    assert [len(place) for place in places] == [2, 2]
    assert np.abs(places[0][0] - places[1][0]).max() > 1e-3, "another episode is another placement"
    again = scenes.record_episode(env, 0, steps=8)
    np.testing.assert_array_equal(again.action, found[0].action)
    np.testing.assert_array_equal(again.images, found[0].images)
