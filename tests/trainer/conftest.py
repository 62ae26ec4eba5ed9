"""The demonstrations that trainings of these tests share."""

import pytest

from tests.data.synthetic import make_store
from wmjax.data.store import TrainingStore


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrainingStore:
    """A training store of noise, which no test changes."""
    return make_store(tmp_path_factory.mktemp("store"))
