"""A simulator that is small, deterministic and able to fail on request.

Workers import this module by name. Faults are files ``<episode with underscores>@<step>.<kind>`` in the folder named
by an environment variable; each happens once, because it removes its file first.
"""

import dataclasses
import os
import signal
import time
from pathlib import Path

import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.specs import ObservationSpec
from wmjax.rollout.protocol import Protocol
from wmjax.sim.libero import ACTION_SPEC, INITIAL_STATES, OBSERVATION_SPEC, SUITES

FAULTS = "WMJAX_TEST_FAULTS"
ACTIONS = dataclasses.replace(ACTION_SPEC, chunk=8)
"""What a policy for the fake says: it predicts chunks of 8."""
SPEC = dataclasses.replace(OBSERVATION_SPEC, image_size=4)
ENV, FORGETFUL = "tests.rollout.fakes:FakeEnv", "tests.rollout.fakes:ForgetfulEnv"
GOAL = 6.0


class FakeEnv:
    """A point that moves by the sum of an action's first value; it succeeds beyond ``GOAL``.

    A disturbance moves it as well, by ``target_velocity`` per control step.

    The image holds, in channels 0..2, the episode's index, the control step and the camera. The state holds the
    position, the step, and how often this environment was rendered, reset and restored.
    """

    num_initial_states = 50
    built = 0
    observation_spec, action_spec = SPEC, ACTION_SPEC
    suites, initial_states, expert = SUITES, INITIAL_STATES, "tests.rollout.fakes:FakeExpert"

    def __init__(self, suite: str, task_id: int, spec: ObservationSpec) -> None:
        FakeEnv.built += 1
        if task_id == 9:
            raise UserError("task_id is 9; the fake has no task 9")
        if task_id == 8:
            raise RuntimeError("the fake cannot be built")
        self.task, self.spec = (suite, task_id), spec
        self.instruction = f"do the task number {task_id}"
        self.renders = self.resets = self.restores = self.step_count = 0
        self.broken = ""
        self.drift = 0.0

    @classmethod
    def simulator(cls, spec=None) -> str:
        return "fake==1"

    def reset(self, episode) -> None:
        assert (episode.suite, episode.task_id) == self.task
        self.episode, self.step_count, self.drift = episode, 0, 0.0
        self.position = (episode.seed % 1000) / 1000
        self.settled_state = np.array([self.position])
        self.settled_hash = f"{episode.seed:016x}"
        self.resets += 1
        self._fail()

    def restore(self, state) -> None:
        self.position = float(state[0])
        self.step_count = int(state[1]) if len(state) > 1 else self.step_count
        self.restores += 1

    def sim_state(self) -> np.ndarray:
        return np.array([self.position, self.step_count])

    def disturb(self, disturbance, episode) -> None:
        assert episode == self.episode
        self.drift = disturbance.target_velocity

    def step(self, action) -> bool:
        self.step_count += 1
        self._fail()
        self.position += float(action[0]) + self.drift
        return self.position > GOAL

    def state(self) -> np.ndarray:
        counts = (self.position, self.step_count, self.renders, self.resets, self.restores, 0, 0, 0)
        return np.full(8, np.nan, np.float32) if self.broken == "nan_state" else np.array(counts, np.float32)

    def render(self) -> np.ndarray:
        self.renders += 1
        image = np.zeros((2, self.spec.image_size, self.spec.image_size, 3))
        image[..., 0], image[..., 1] = self.episode.index % 256, self.step_count
        image[1, ..., 2] = 1
        return np.full_like(image, np.nan) if self.broken == "nan_image" else image.astype(np.uint8)

    def close(self) -> None:
        pass

    def _fail(self) -> None:
        self.broken = fail(self.episode.key, self.step_count) or self.broken


class ForgetfulEnv(FakeEnv):
    """A fake whose state shows nothing of the episodes before, so that it does not matter which worker ran them."""

    def reset(self, episode) -> None:
        self.renders = self.resets = self.restores = 0
        super().reset(episode)


def fail(key: str, step: int) -> str:
    """Does what a fault file for this step says; returns its kind if it is one of broken observations."""
    folder = os.environ.get(FAULTS)
    for path in Path(folder).glob(f"{fault_name(key, step)}.*") if folder else []:
        path.unlink()
        match path.suffix[1:]:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hang":
                time.sleep(1000)
            case "raise":
                raise FloatingPointError("the fake raised")
            case broken:
                return broken
    return ""


def fault_name(key: str, step: int) -> str:
    return f"{key.replace('/', '_')}@{step}"


class FakeExpert:
    """Moves right at half speed, and remembers where it was asked."""

    def __init__(self, env: FakeEnv) -> None:
        self.env = env
        self.asked: list[float] = []

    def act(self) -> np.ndarray:
        self.asked.append(self.env.position)
        return np.array([0.5, 0, 0, 0, 0, 0, -1.0])


class FakeWatcher:
    """Tells the control step, the first value of the last action, and the step that the image shows."""

    def __init__(self, env: FakeEnv) -> None:
        self.env = env

    def observe(self, action, image) -> tuple:
        shown = None if image is None else int(image[0, 0, 0, 1])
        return self.env.step_count, None if action is None else float(action[0]), shown


PROTOCOL = Protocol("test", "libero_spatial", (0, 1, 2), 4, "random", max_steps=44, env=ENV)
