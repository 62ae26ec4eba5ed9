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
