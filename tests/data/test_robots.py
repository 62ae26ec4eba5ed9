"""Datasets of other robots that LeRobot 0.4.4 wrote: an arm, two arms, and a mobile base with an arm."""

import logging
from pathlib import Path

import numpy as np
import pytest

from tests.data.robot_fixtures import EPISODES, LENGTH, ROBOTS, Robot
from wmjax import convert
from wmjax.data.statistics import closing
from wmjax.data.store import TrainingStore

FIXTURES = Path(__file__).parent / "fixtures" / "robots"
VIDEO_LEVELS = 4
"""How far a lossy video may be from what was shown, of 255."""


@pytest.mark.parametrize("robot", ROBOTS, ids=lambda robot: robot.name)
def test_a_robots_dataset_becomes_its_training_store(
    robot: Robot, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "wmjax"):
        line = [
            str(FIXTURES / robot.name),
            "--out",
            str(tmp_path / "store"),
            "--image-size",
            "48",
            "--frame-stride",
            "2",
        ]
        assert convert.main(line) == 0
    said = capsys.readouterr().out
    assert f"cameras {', '.join(robot.cameras)}; {len(robot.motors)} states, {len(robot.motors)} actions" in said
    assert f"(grippers: {', '.join(robot.motors[index] for index in robot.grippers)}), {robot.fps} per second" in said
    depth = [text for text in caplog.messages if "depth" in text]
    assert len(depth) == bool(robot.depth) and all(robot.depth in text for text in depth)
    store = TrainingStore(tmp_path / "store")
    spec, action = store.spec, store.action_spec
    assert (spec.cameras, spec.state, action.names) == (robot.cameras, robot.motors, robot.motors)
    assert (spec.control_hz, spec.frame_stride, spec.image_size) == (robot.fps, 2, 48)
    assert action.grippers == robot.grippers
    assert set(action.gripper_open) == {100.0} and set(action.gripper_closed) == {0.0}
    np.testing.assert_array_equal(store.state, np.concatenate([robot.state(e) for e in range(EPISODES)]))
    np.testing.assert_array_equal(store.action, np.concatenate([robot.action(e) for e in range(EPISODES)]))
    np.testing.assert_array_equal(closing(store.action, action), store.action[:, list(robot.grippers)] < 50)
    assert [store.tasks[entry["task"]].instruction for entry in store.episodes] == [
        robot.tasks[index % len(robot.tasks)] for index in range(EPISODES)
    ]
    shown = [[robot.level(camera, step) for camera in robot.cameras] for step in range(0, LENGTH, 2)] * EPISODES
    error = np.abs(store.frames.astype(int) - np.array(shown)[..., None, None, None])
    assert error.max() <= (VIDEO_LEVELS if robot.video else 0)
