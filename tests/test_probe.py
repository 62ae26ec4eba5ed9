"""The probe of backbones: features are what the policy sees, random ones are those of the run, tables and refusals."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from tests.data.synthetic import INSTRUCTIONS, make_store
from tests.rollout.runs import tiny_experiment
from wmjax import probe
from wmjax.config import Experiment
from wmjax.data.store import TrainingStore
from wmjax.errors import UserError
from wmjax.models.lora import LoRAConfig
from wmjax.models.prompts import make_prompt_builder
from wmjax.models.qwen2_5_vl import names, weights
from wmjax.models.vla import VLA, ModelInput
from wmjax.rng import named_key


def experiment(name: str, seed: int = 0) -> Experiment:
    """Frozen with adapters, as the scale mini_lora."""
    found = tiny_experiment("e0", "regression", lora=LoRAConfig(rank=2))
    train = dataclasses.replace(found.train, trainable="adapters", backbone_weights=name, seed=seed)
    return dataclasses.replace(found, train=train)


@pytest.fixture(scope="module")
def trained() -> VLA:
    """The network that the train command would start from with random weights of seed 1."""
    config = experiment("random").model
    return jax.jit(lambda: VLA(config, rngs=nnx.Rngs(named_key(1, "parameters"))))()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrainingStore:
    return make_store(tmp_path_factory.mktemp("store"), lengths=(24,) * 10)


@pytest.fixture(scope="module")
def folder(trained: VLA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of a random backbone of seed 1, as an export writes it."""
    folder = tmp_path_factory.mktemp("backbone")
    weights.save(trained.backbone, folder)
    return folder


def test_features_are_those_inside_the_policys_forward_pass(store: TrainingStore, trained: VLA) -> None:
    given, frames, camera = experiment("random", 1), np.array(store.frames[:3]), 1
    features = probe.BackboneFeatures(given, store.spec, camera)
    found, other = (features(frames, instruction) for instruction in INSTRUCTIONS[:2])
    prompt = make_prompt_builder(given.prompt, given.model, store.spec).batch(INSTRUCTIONS[:1] * 3)
    state = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    run = jax.jit(lambda model, inputs: (model.hidden(inputs), model.backbone.vision(inputs.images[:, camera])))
    hidden, vision = run(trained, ModelInput(frames, state, prompt))
    places = np.flatnonzero(prompt.tokens[0] == given.model.backbone.image_token)
    own = np.asarray(hidden)[:, places.reshape(2, 4)[camera]]  # 56 px: 2 x 2 tokens of either camera
    np.testing.assert_allclose(found["random: last layer"], own, atol=1e-5)
    np.testing.assert_allclose(found["random: vision tower"], vision, atol=1e-5)
    np.testing.assert_allclose(other["random: last layer"], own, atol=1e-5)  # causal: the words come later


def test_random_follows_from_the_seed_and_a_folder_replaces_all_of_it(trained: VLA, folder: Path) -> None:
    wanted = names.base_leaves(trained.backbone)
    for given in (experiment("random", 1), experiment(str(folder), 0)):
        found = names.base_leaves(probe.starting_network(given).backbone)
        for path, leaf in wanted.items():
            np.testing.assert_array_equal(found[path].get_value(), leaf.get_value(), err_msg=str(path))
    other = names.base_leaves(probe.starting_network(experiment("random", 0)).backbone)
    assert any(np.any(other[path].get_value() != leaf.get_value()) for path, leaf in wanted.items())


def test_large_grids_are_pooled_to_that_of_latents(tmp_path: Path) -> None:
    store = make_store(tmp_path, image_size=224, lengths=(8,))
    given = experiment("random")
    prompt = dataclasses.replace(given.prompt, length=208)
    found = probe.BackboneFeatures(dataclasses.replace(given, prompt=prompt), store.spec, 0)
    assert found(np.array(store.frames[:1]), INSTRUCTIONS[0])["random: last layer"].shape == (1, 16, 48)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with tiny networks."""

    def load(recipe: str, scale: str, dataset: None, overrides: dict[str, Any]) -> Experiment:
        return experiment(overrides["train"]["backbone_weights"], overrides["train"].get("seed", 0))

    monkeypatch.setattr(probe, "load", load)


def test_the_command_prints_a_table(
    store: TrainingStore, folder: Path, tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.json"
    line = ["--data", str(store.folder), "--backbone", str(folder), "--backbone", "random", "--json", str(out)]
    assert probe.main([*line, "--train.seed", "1"]) == 0
    table = json.loads(out.read_text())
    rows = ["pixels 8x8", *(f"{name}: {row}" for name in (folder, "random") for row in probe.ROWS)]
    assert list(table) == rows
    assert list(table["pixels 8x8"]) == ["eef xyz", "gripper", "effective rank"]
    for row in probe.ROWS:  # the folder holds the random backbone of this seed
        assert table[f"{folder}: {row}"] == pytest.approx(table[f"random: {row}"], abs=1e-3)
    assert capsys.readouterr().out.count("\n") == 2 + len(rows)


def test_bad_input_is_one_line(
    store: TrainingStore, folder: Path, tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str, data: Path = store.folder) -> str:
        assert probe.main(["--data", str(data), *arguments]) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ") and text.count("\n") == 1
        return text

    assert "manifest.json is missing" in error("--backbone", "random", data=tmp_path)
    assert "neither a folder nor a hub id" in error("--backbone", "no-such")
    assert "camera 'side' is not in" in error("--backbone", "random", "--camera", "side")
    other = tmp_path / "sizes"
    other.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"intermediate_size": 72}))
    assert "text.mlp = 72, model.backbone has 64" in error("--backbone", str(other))
    (folder / "tokenizer.json").write_text("{}")
    try:
        assert f"set prompt.tokenizer to {folder}" in error("--backbone", str(folder))
    finally:
        (folder / "tokenizer.json").unlink()


def test_images_and_cameras_that_do_not_fit_are_refused(store: TrainingStore) -> None:
    given = experiment("random")
    one = dataclasses.replace(given, model=dataclasses.replace(given.model, cameras=1))
    with pytest.raises(UserError, match=r"'robot0_eye_in_hand' is not seen .* model\.cameras is 1; .*agentview"):
        probe.BackboneFeatures(one, store.spec, 1)
    prompt = dataclasses.replace(given.prompt, length=208)
    wide = dataclasses.replace(store.spec, image_size=168)
    with pytest.raises(UserError, match=r"image_size is 168, 6 x 6 tokens .*112 pixels or a multiple"):
        probe.BackboneFeatures(dataclasses.replace(given, prompt=prompt), wide, 0)
