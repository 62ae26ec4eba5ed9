"""An environment from outside the package: a point in a square that has to reach a marked place."""

import hashlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.sim.disturbance import Disturbance
from wmjax.sim.episode import EpisodeId

REACHED = 0.05
STEP = 0.1
"""How far (m) an action of 1 moves the point in a control step."""


class PointRobot:
    """The state is the point's place; task i asks for the i-th corner of the square. The red pixel is the point."""

    observation_spec: ClassVar[ObservationSpec] = ObservationSpec(
        cameras=("above",), state=("x", "y"), state_units=("m", "m"), control_hz=10.0, image_size=16, frame_stride=2
    )
    action_spec: ClassVar[ActionSpec] = ActionSpec(
        names=("dx", "dy"), units=("0.1 m", "0.1 m"), low=(-1.0, -1.0), high=(1.0, 1.0), hold=(0.0, 0.0)
    )
    suites: ClassVar[Mapping[str, int]] = {"corners": 4}
    initial_states: ClassVar[int] = 2
    expert: ClassVar[str] = ""

    def __init__(self, suite: str, task_id: int, spec: ObservationSpec) -> None:
        self.spec = spec
        self.goal = np.array([task_id % 2, task_id // 2], float)
        self.instruction = f"go to corner {task_id}"
        self.place = np.zeros(2)
        self.settled_state, self.settled_hash = np.zeros(2), ""

    @classmethod
    def simulator(cls, spec: ObservationSpec | None = None) -> str:
        return "point==1"

    def reset(self, episode: EpisodeId) -> None:
        fixed = np.array([0.5, 0.4 + 0.2 * episode.index])
        self.place = fixed if episode.init == "benchmark" else np.random.default_rng(episode.seed).random(2)
        self.settled_state = self.sim_state()
        self.settled_hash = hashlib.sha256(self.settled_state.tobytes()).hexdigest()[:16]

    def disturb(self, disturbance: Disturbance, episode: EpisodeId) -> None:
        raise UserError(f"target_velocity is {disturbance.target_velocity}; corners do not move, set it to 0")

    def step(self, action: np.ndarray) -> bool:
        self.place = np.clip(self.place + STEP * np.clip(action, -1, 1), 0, 1)
        return bool(np.abs(self.place - self.goal).max() < REACHED)

    def render(self) -> np.ndarray:
        size = self.spec.image_size
        image = np.zeros((1, size, size, 3), np.uint8)
        row, column = (self.place[::-1] * (size - 1)).round().astype(int)
        image[0, row, column, 0] = 255
        return image

    def state(self) -> np.ndarray:
        return self.place.astype(np.float32)

    def sim_state(self) -> np.ndarray:
        return self.place.copy()

    def restore(self, state: np.ndarray) -> None:
        self.place = state.copy()

    def close(self) -> None:
        pass
