import pytest

from tests.data.synthetic import make_latents, make_store


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), image_size=28)


@pytest.fixture(scope="session")
def latents(tmp_path_factory, store):
    return make_latents(tmp_path_factory.mktemp("latents"), store, grid=2, dim=6)
