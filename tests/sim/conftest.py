from collections.abc import Iterator

import pytest

from wmjax.sim.env import LiberoEnv
from wmjax.sim.libero import OBSERVATION_SPEC

SUITE, TASK = "libero_spatial", 2


@pytest.fixture(scope="session")
def env() -> Iterator[LiberoEnv]:
    """One simulation for all tests: every test resets it, and none may depend on what came before."""
    env = LiberoEnv(SUITE, TASK, OBSERVATION_SPEC)
    yield env
    env.close()


@pytest.fixture(scope="session")
def stove() -> Iterator[LiberoEnv]:
    """The scene of libero_goal, whose task is to turn the stove on; as :func:`env` it is reset by every test."""
    env = LiberoEnv("libero_goal", 7, OBSERVATION_SPEC)
    yield env
    env.close()
