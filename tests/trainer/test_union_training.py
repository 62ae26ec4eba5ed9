"""Training on several stores: resumed bit for bit, and one named store is the single store."""

import dataclasses
from pathlib import Path

import pytest

from tests.data.synthetic import make_latents, make_store
from tests.tiny import LATENT_DIM, tiny_config
from tests.trainer.test_loop import CONFIG, require_exact_resume
from wmjax.core.errors import UserError
from wmjax.data.loader import BatchSource
from wmjax.data.store import TrainingStore
from wmjax.data.union import UnionLatents, UnionStore
from wmjax.data.weights import Mixture
from wmjax.experiment.checks import given_store
from wmjax.experiment.config import Experiment, load, to_dict
from wmjax.experiment.data_config import DataConfig
from wmjax.experiment.plan import save_settings
from wmjax.models.prompts import PromptConfig
from wmjax.pipeline.demonstrations import find_store
from wmjax.trainer.config import Inputs
from wmjax.trainer.inputs import make_inputs

MIXTURE = Mixture(weights=(3.0, 1.0), balance="task")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingStore, TrainingStore]:
    folder = tmp_path_factory.mktemp("stores")
    return make_store(folder / "a"), make_store(folder / "b", lengths=(30, 22, 41, 27), tasks=3)


@pytest.fixture(scope="module")
def inputs(stores: tuple[TrainingStore, TrainingStore], tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("latents")
    latents = [make_latents(folder / str(n), store, dim=LATENT_DIM) for n, store in enumerate(stores)]
    union = UnionStore(stores)
    return make_inputs(union, UnionLatents(latents), PromptConfig(length=56), tiny_config(), CONFIG, MIXTURE)


@pytest.mark.long  # test_loop.py has it for one store
def test_a_killed_run_on_a_union_resumes_bit_for_bit(inputs: Inputs, tmp_path: Path) -> None:
    require_exact_resume(inputs, tmp_path)


def test_a_run_is_trained_on_its_mixture(inputs: Inputs) -> None:
    assert inputs.loader.mixture == MIXTURE
    sources = [
        BatchSource(inputs.store, None, inputs.train_episodes, config)
        for config in (inputs.loader, dataclasses.replace(inputs.loader, mixture=Mixture()))
    ]
    assert sources[0].samples_of(0).tolist() != sources[1].samples_of(0).tolist()


def test_a_checkpoint_knows_the_union(inputs: Inputs, stores: tuple[TrainingStore, TrainingStore]) -> None:
    assert inputs.meta()["store"] == inputs.store.hash not in [store.hash for store in stores]
    turned = dataclasses.replace(inputs, store=UnionStore(stores[::-1]), latents=None)
    with pytest.raises(UserError, match="store differs"):
        dataclasses.replace(turned, action_spec=inputs.action_spec, latents=inputs.latents).require_same(inputs.meta())


def experiment(**data: object) -> Experiment:
    return load("e2_flow", "smoke", overrides={"data": data})


def test_one_named_store_is_the_single_store(stores: tuple[TrainingStore, TrainingStore]) -> None:
    place = str(stores[0].folder)
    one, other = given_store(experiment(paths=[place])), given_store(experiment(path=place))
    assert type(one) is type(other) is TrainingStore
    assert one is not None and other is not None and one.hash == other.hash
    found = find_store(experiment(paths=[str(store.folder) for store in stores]), None)
    assert found.hash == UnionStore(stores).hash


BAD = {
    ("path", "paths"): "name all in data.paths",
    ("paths", "weights"): "data.weights has 1 numbers for 2 stores",
    ("twice",): "name each store once",
}


@pytest.mark.parametrize("names", BAD)
def test_contradicting_settings_are_one_line(names: tuple[str, ...]) -> None:
    values = {"path": "a", "paths": ("b", "c"), "weights": (1.0,), "twice": ("b", "b")}
    settings = {("paths" if name == "twice" else name): values[name] for name in names}
    with pytest.raises(UserError, match=BAD[names]):
        DataConfig(**settings)  # type: ignore[arg-type]


def test_data_for_one_store_is_refused_where_there_are_several(stores: tuple[TrainingStore, TrainingStore]) -> None:
    several = experiment(paths=[str(store.folder) for store in stores])
    with pytest.raises(UserError, match="the run has 2 training stores"):
        find_store(several, stores[0].folder)


def test_a_run_keeps_its_weights(stores: tuple[TrainingStore, TrainingStore], tmp_path: Path) -> None:
    places = [str(store.folder) for store in stores]

    def settings(**more: object) -> dict[str, object]:
        return to_dict(experiment(paths=places, **more))

    save_settings(tmp_path, settings(weights=[1.0, 2.0]))
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"started with data\.weights"):
        save_settings(tmp_path, settings(weights=[1.0, 3.0]))


def test_the_identity_of_recorded_data_does_not_depend_on_how_they_are_drawn() -> None:
    assert DataConfig(balance="task").identity() == DataConfig().identity()
