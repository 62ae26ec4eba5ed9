"""The real simulator, able to fail on request as the fake one is. Workers import this module by name."""

import numpy as np

from tests.rollout.fakes import fail
from wmjax.sim.env import LiberoEnv


class FaultyEnv(LiberoEnv):
    """LIBERO with the faults of :mod:`tests.rollout.fakes`, counted in control steps from the settled state."""

    def reset(self, episode) -> None:
        self._count, self._broken = -1, ""
        super().reset(episode)  # settles through step()
        self._episode, self._count = episode, 0
        self._fail()

    def step(self, action) -> bool:
        if self._count >= 0:
            self._count += 1
            self._fail()
        return super().step(action)

    def render(self) -> np.ndarray:
        image = super().render()
        return np.full(image.shape, np.nan) if self._broken else image

    def _fail(self) -> None:
        self._broken = fail(self._episode.key, self._count) or self._broken
