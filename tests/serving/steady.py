"""A simulator whose observations follow from the episode and the control step alone, however often it is rendered."""

import numpy as np

from tests.rollout.fakes import FakeEnv


class SteadyEnv(FakeEnv):
    """The fake without its counts, with another image in every corner and step."""

    def state(self) -> np.ndarray:
        return np.array([self.position, self.step_count, 0.1, 3.5, 0.2, 0.1, 0.03, -0.02], np.float32)

    def render(self) -> np.ndarray:
        image = super().render()
        image[:, : self.spec.image_size // 2, :, 2] = 7 * self.step_count % 256
        return image
