"""Datasets of three robots as LeRobot itself writes them, and the numbers that are in them.

    python tests/data/robot_fixtures.py tests/data/fixtures/robots

wrote the fixtures, in an environment with lerobot 0.4.4 (that of ``integrations/lerobot_policy_wmjax/try.sh``): an arm
like the SO-101 with two videos and two tasks, two arms like ALOHA's with three cameras of images, and a mobile base
with an arm like the LeKiwi, whose second camera is one of depth.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

LENGTH, EPISODES = 16, 3
HEIGHT, WIDTH = 48, 64
SO101 = tuple(
    f"{name}.pos" for name in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
)
ALOHA = tuple(
    f"{side}_{name}"
    for side in ("left", "right")
    for name in ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
)
LEKIWI = (*(f"arm_{name}" for name in SO101), "x.vel", "y.vel", "theta.vel")


@dataclasses.dataclass(frozen=True)
class Robot:
    """A robot's columns, as its drivers in LeRobot name them; the state and the action have the same."""

    name: str
    fps: int
    motors: tuple[str, ...]
    cameras: tuple[str, ...]
    video: bool
    tasks: tuple[str, ...]
    depth: str = ""

    def state(self, episode: int) -> np.ndarray:
        """float32 [LENGTH, motors]: slow waves, and grippers that close halfway, from 100 to 0."""
        time = np.arange(LENGTH)[:, None] / LENGTH
        values = 30 * np.sin(time * np.arange(1, len(self.motors) + 1) + episode)
        for index in self.grippers:
            values[:, index] = np.where(np.arange(LENGTH) < LENGTH // 2 + episode, 100, 0)
        return values.astype(np.float32)

    def action(self, episode: int) -> np.ndarray:
        """The state of the next row."""
        return np.roll(self.state(episode), -1, axis=0)

    @property
    def grippers(self) -> tuple[int, ...]:
        """Indices of the motors that are grippers."""
        return tuple(index for index, name in enumerate(self.motors) if "gripper" in name)

    def level(self, camera: str, step: int) -> int:
        """The grey value of a camera's image."""
        return 20 + 10 * step + 25 * self.cameras.index(camera)


ROBOTS = (
    Robot("so101_follower", 30, SO101, ("front", "wrist"), True, ("put the cube into the box", "put the cube away")),
    Robot("aloha", 50, ALOHA, ("cam_high", "cam_left_wrist", "cam_right_wrist"), False, ("hand the cube over",)),
    Robot("lekiwi", 30, LEKIWI, ("front",), False, ("drive to the cube and pick it up",), depth="front_depth"),
)


def features(robot: Robot) -> dict[str, Any]:
    """What LeRobot calls features."""
    numbers = {"dtype": "float32", "shape": (len(robot.motors),), "names": list(robot.motors)}
    found: dict[str, Any] = {"observation.state": numbers, "action": numbers}
    kind = "video" if robot.video else "image"
    for camera in robot.cameras:
        shape = {"shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]}
        found[f"observation.images.{camera}"] = {"dtype": kind, **shape}
    if robot.depth:
        marked = {"info": {"is_depth_map": True}}
        found[f"observation.images.{robot.depth}"] = {**found[f"observation.images.{robot.cameras[0]}"], **marked}
    return found


def write(robot: Robot, folder: Path) -> None:
    """Writes one dataset by LeRobot's own calls."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset.create(
        f"wmjax/{robot.name}", robot.fps, features(robot), root=folder, robot_type=robot.name, use_videos=robot.video
    )
    for episode in range(EPISODES):
        state, action = robot.state(episode), robot.action(episode)
        for step in range(LENGTH):
            frame: dict[str, Any] = {"observation.state": state[step], "action": action[step]}
            for camera in robot.cameras:
                image = np.full((HEIGHT, WIDTH, 3), robot.level(camera, step), np.uint8)
                frame[f"observation.images.{camera}"] = image
            if robot.depth:
                frame[f"observation.images.{robot.depth}"] = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            dataset.add_frame({**frame, "task": robot.tasks[episode % len(robot.tasks)]})
        dataset.save_episode()
    dataset.finalize()


if __name__ == "__main__":
    import torch

    torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for robot in ROBOTS:
        write(robot, Path(sys.argv[1]) / robot.name)
