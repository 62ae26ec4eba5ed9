"""The Prophet trained alone (``train.objective`` ``world``), its linear part at the start, and policies from it."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from tests.data.synthetic import make_latents, make_store
from tests.tiny import LATENT_DIM, averaged_parameters, tiny_config
from tests.trainer.test_loop import CONFIG, OPTIMIZER, KilledError, kill
from wmjax.core.errors import UserError
from wmjax.core.rng import named_key
from wmjax.data.loader import BatchSource
from wmjax.data.store import TrainingStore
from wmjax.diagnostics.diagnosis import diagnose_prophet, predict
from wmjax.diagnostics.prophet_skill import WorldSection, ridge_futures
from wmjax.diagnostics.samples import training_windows
from wmjax.experiment.config import Experiment, load, to_dict
from wmjax.models.parameters import split_model, to_named, trainable_filter
from wmjax.models.prompts import PromptConfig
from wmjax.models.vla import VLA, VLAConfig
from wmjax.models.world.linear_skip import linear_features
from wmjax.models.world_model import WorldModel, network, require_world_objective
from wmjax.pipeline.diagnose import as_held_out, describe
from wmjax.pipeline.ridge_start import ridge_parameters, start_at_ridge
from wmjax.pipeline.start import Start, starting_point
from wmjax.policy.saved import find_policy
from wmjax.trainer.config import Inputs, TrainConfig
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.loop import train
from wmjax.trainer.sharding import MeshConfig

ALONE = dataclasses.replace(CONFIG, objective="world")


def linear(rank: int, variant: str = "e2") -> VLAConfig:
    model = tiny_config(variant)
    return dataclasses.replace(model, prophet=dataclasses.replace(model.prophet, linear_rank=rank))


MODEL = linear(5)
PAST = dataclasses.replace(MODEL, memory=dataclasses.replace(MODEL.memory, target="past"))
STOPPED = dataclasses.replace(MODEL, memory=dataclasses.replace(MODEL.memory, action_gradient=False))


@pytest.fixture(scope="module")
def inputs(store: TrainingStore, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    latents = make_latents(tmp_path_factory.mktemp("latents"), store, dim=LATENT_DIM)
    return make_inputs(store, latents, PromptConfig(length=56), MODEL, ALONE)


def experiment(model: VLAConfig = MODEL, config: TrainConfig = ALONE) -> Experiment:
    return dataclasses.replace(load("e2_flow", "smoke"), model=model, train=config)


def fit(inputs: Inputs, folder: Path, **settings: Any) -> Path:
    meta = {"experiment": to_dict(experiment())}
    build = functools.partial(network, MODEL, "world")
    at_ridge = functools.partial(start_at_ridge, inputs, MODEL)
    return train(
        build, inputs, folder, ALONE, OPTIMIZER, MeshConfig(), max_shift=3, meta=meta, load_base=at_ridge, **settings
    )


@pytest.fixture(scope="module")
def run(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Prophet of six steps."""
    folder = tmp_path_factory.mktemp("run")
    fit(inputs, folder)
    return folder


def found_start(run: Path) -> Start:
    start = starting_point(str(run))
    assert start is not None
    return start


def fresh(model: VLAConfig) -> tuple[nnx.State, nnx.State]:
    built = VLA(model, rngs=nnx.Rngs(named_key(7, "parameters")))
    return split_model(built, trainable_filter("all"))[1:]


def test_nothing_but_the_prophet_is_trained_and_no_image_is_read(run: Path, inputs: Inputs) -> None:
    saved = averaged_parameters(run / "checkpoints" / "00000006", experiment())
    assert all(name.startswith("world/prophet/") for name in saved)
    batch = BatchSource(inputs.store, inputs.latents, inputs.train_episodes, inputs.loader)[0]
    assert "images" not in batch and batch["latents"].any()


def test_a_killed_run_resumes_bit_for_bit(run: Path, inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        fit(inputs, tmp_path, on_checkpoint=kill)
    resumed = averaged_parameters(fit(inputs, tmp_path), experiment())
    for name, value in averaged_parameters(run / "checkpoints" / "00000006", experiment()).items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_a_linear_part_of_full_rank_starts_at_ridge_regression(inputs: Inputs) -> None:
    model = linear(tiny_config().prophet.future * LATENT_DIM)
    prophet = WorldModel(model, rngs=nnx.Rngs(0))
    assert prophet.world.prophet is not None
    graph, params = nnx.split(prophet)
    prophet = nnx.merge(graph, start_at_ridge(inputs, model, params, nnx.State({}))[0])
    train = training_windows(inputs, model)
    seen = train.history[::7]
    expected, _ = ridge_futures(train, seen)
    found = predict(prophet.world, seen)  # the network's own part starts at zero
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)
    assert np.abs(expected - seen[:, -1:]).max() > 0.1


def test_a_smaller_rank_is_the_best_of_its_kind_on_the_training_frames(inputs: Inputs) -> None:
    """Its error falls with its rank, and it predicts the mean change exactly."""
    train = training_windows(inputs, MODEL).complete()

    def predicted(rank: int) -> np.ndarray:
        fitted = ridge_parameters(inputs, linear(rank))
        codes = np.einsum("btf,tfr->btr", np.asarray(linear_features(train.history)), fitted["down"])
        return np.einsum("btr,tro->bto", codes, fitted["up"]) + fitted["bias"]

    whole = predicted(tiny_config().prophet.future * LATENT_DIM)
    errors = [np.square(predicted(rank) - whole).sum() for rank in (1, 4, 16)]
    assert errors[0] > errors[1] > errors[2]
    np.testing.assert_allclose(predicted(1).mean(0), whole.mean(0), atol=2e-3)


@pytest.mark.parametrize("model", [linear(5, "e1"), MODEL, STOPPED, linear(5, "e0plus")])
def test_a_policy_starts_with_exactly_its_prophet(run: Path, model: VLAConfig) -> None:
    start = found_start(run)
    start.require_same_prophet(model)
    params, frozen = fresh(model)
    before, after = to_named(params), to_named(start.load(params, frozen)[0])
    saved = averaged_parameters(start.folder, experiment())
    for name in before:
        np.testing.assert_array_equal(after[name], saved.get(name, before[name]), err_msg=name)
    assert saved.keys() == {name for name in before if name.startswith("world/prophet/")}


def test_latents_keep_the_units_of_the_prophet_and_actions_those_of_the_data(run: Path, inputs: Inputs) -> None:
    assert inputs.encoder_spec is not None
    others = dataclasses.replace(
        inputs,
        encoder_spec=dataclasses.replace(inputs.encoder_spec, mean=(0.5,) * LATENT_DIM),
        action_spec=dataclasses.replace(inputs.action_spec, offset=(0.5,) * 7),
    )
    fitted = found_start(run).adopt_statistics(others)
    assert fitted.encoder_spec == inputs.encoder_spec and fitted.action_spec == others.action_spec
    strange = dataclasses.replace(inputs, encoder_spec=dataclasses.replace(inputs.encoder_spec, weights_hash="other"))
    with pytest.raises(UserError, match=r"EncoderSpec\.weights_hash differs"):
        found_start(run).adopt_statistics(strange)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tiny_config(), r"model\.prophet\.linear_rank is 0, the Prophet of train\.init_from .* has 5; use that"),
        (PAST, r"model\.memory\.target is 'past', .* has 'future'"),
        (linear(5, "e0"), r"train\.init_from .* is a Prophet of latents, but with model\.memory\.input 'none'"),
        (linear(5, "e2aux"), r"with model\.memory\.input 'hidden' there is none"),
    ],
)
def test_another_prophet_is_refused(run: Path, model: VLAConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        found_start(run).require_same_prophet(model)


def test_a_linear_part_predicts_changes_only() -> None:
    absolute = dataclasses.replace(MODEL.world, target="absolute")
    with pytest.raises(UserError, match=r"prophet\.linear_rank is 5 with world\.target 'absolute'"):
        dataclasses.replace(MODEL, world=absolute)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tiny_config("e1"), r"train\.objective is 'world' .* model\.memory\.world_loss 0; .* use a recipe of e2"),
        (tiny_config("e2aux"), r"with model\.memory\.input 'hidden'"),
        (
            dataclasses.replace(MODEL, prophet=dataclasses.replace(MODEL.prophet, condition=("instruction",))),
            r"model\.prophet\.condition names 'instruction'",
        ),
    ],
)
def test_what_cannot_be_trained_alone_is_refused(model: VLAConfig, message: str) -> None:
    require_world_objective(PAST)
    with pytest.raises(UserError, match=message):
        require_world_objective(model)


def test_it_does_not_act(run: Path) -> None:
    with pytest.raises(UserError, match=r"has trained a Prophet alone .* --train\.init_from"):
        find_policy(run)
    assert isinstance(find_policy(run, acts=False).model(), WorldModel)


def test_a_prophet_is_scored_on_another_store(
    run: Path, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """References are of the run's training episodes, samples of all episodes of the other store, in the run's units."""
    other = make_store(tmp_path / "other", lengths=(29, 41, 33))
    latents = make_latents(tmp_path / "latents", other, views=1, dim=LATENT_DIM)
    monkeypatch.setattr("wmjax.pipeline.diagnose.encode", lambda *_: latents)
    scored = as_held_out(experiment(), inputs, other)
    assert scored.encoder_spec == inputs.encoder_spec and scored.val_episodes.tolist() == [0, 1, 2]
    sections = diagnose_prophet(find_policy(run, acts=False).model(), inputs, scored, "val", 100).sections
    world = sections["world"]
    assert isinstance(world, WorldSection) and world.samples[0] == len(other.frame_step) - 3
    assert {"world", "probe", "rotation_probe"} == sections.keys()
    assert all(np.isfinite(row).all() for row in world.skill.values())
    found = find_policy(run, acts=False)
    header = describe(found.folder, found.experiment, scored, "val")
    assert header["checkpoint"] == {"step": found.step, "hash": found.hash} and header["episodes"] == [0, 1, 2]
    with pytest.raises(UserError, match="a Prophet is to be scored, but this variant has no world memory"):
        diagnose_prophet(VLA(tiny_config("e0"), rngs=nnx.Rngs(0)), inputs, scored, "val", 1)
