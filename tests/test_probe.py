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
from tests.models.vla_helpers import initialised
from tests.rollout.runs import tiny_experiment
from wmjax import probe as command
from wmjax.core.errors import UserError
from wmjax.data.store import TrainingStore
from wmjax.experiment.config import Experiment
from wmjax.models.backbones.qwen2_5_vl import names, weights
from wmjax.models.inputs import ModelInput
from wmjax.models.nn.lora import LoRAConfig
from wmjax.models.parameters import split_model, to_named, trainable_filter
from wmjax.models.prompts import join_prompts, make_prepare
from wmjax.models.vla import VLA
from wmjax.pipeline import probe
from wmjax.policy.restore import restore_model


def experiment(name: str, seed: int = 0) -> Experiment:
    """Frozen with adapters, as the scale mini_lora."""
    found = tiny_experiment("e0", "regression", lora=LoRAConfig(rank=2))
    train = dataclasses.replace(found.train, trainable="adapters", backbone_weights=name, seed=seed)
    return dataclasses.replace(found, train=train)


@pytest.fixture(scope="module")
def policy() -> VLA:
    """A network in which the backbone below lies, with adapters as they start: the second factor is zero."""
    graph, state = nnx.split(initialised(lambda rngs: VLA(experiment("random").model, rngs=rngs)))
    flat = {p: v.replace(0 * v.get_value()) if p[-1] == "lora_b" else v for p, v in nnx.to_flat_state(state)}
    return nnx.merge(graph, nnx.from_flat_state(flat))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrainingStore:
    return make_store(tmp_path_factory.mktemp("store"), lengths=(24,) * 10)


@pytest.fixture(scope="module")
def folder(policy: VLA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of the policy's backbone, as an export writes it."""
    folder = tmp_path_factory.mktemp("backbone")
    weights.save(policy.backbone, folder)
    return folder


def test_features_are_those_inside_the_policys_forward_pass(store: TrainingStore, policy: VLA, folder: Path) -> None:
    given, frames, camera = experiment(str(folder)), np.array(store.frames[:3]), 1
    features = probe.BackboneFeatures(given, store.spec, camera)
    found, other = (features(frames, instruction) for instruction in INSTRUCTIONS[:2])
    prompt = join_prompts([make_prepare(given.prompt, given.model, store.spec)(INSTRUCTIONS[0])] * 3)
    state = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    run = jax.jit(lambda model, inputs: (model.hidden(inputs).tokens, model.backbone.vision(inputs.images[:, camera])))
    hidden, vision = run(policy, ModelInput(frames, state, prompt))
    places = np.flatnonzero(prompt.tokens[0] == given.model.backbone.image_token)
    own = np.asarray(hidden)[:, places.reshape(2, 4)[camera]]  # 56 px: 2 x 2 tokens of either camera
    np.testing.assert_allclose(found[f"{folder}: last layer"], own, atol=1e-5)
    np.testing.assert_allclose(found[f"{folder}: vision tower"], vision, atol=1e-5)
    np.testing.assert_allclose(other[f"{folder}: last layer"], own, atol=1e-5)  # causal: the words come later


@pytest.mark.long
def test_random_is_that_of_a_run_with_the_same_seed(policy: VLA) -> None:
    given = experiment("random", 1)
    named = to_named(split_model(policy, trainable_filter("adapters"))[1])
    run = names.base_leaves(restore_model(given, named, None).backbone)  # adapters of any run, frozen base of the seed
    found = names.base_leaves(probe.starting_model(given))
    for path, leaf in run.items():
        np.testing.assert_array_equal(found[path].get_value(), leaf.get_value(), err_msg=str(path))
    other = names.base_leaves(probe.starting_model(experiment("random", 0)))
    assert any(np.any(other[path].get_value() != leaf.get_value()) for path, leaf in run.items())


def test_large_grids_are_pooled_to_that_of_latents(folder: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path, image_size=224, lengths=(8,))
    given = experiment(str(folder))
    prompt = dataclasses.replace(given.prompt, length=208)
    found = probe.BackboneFeatures(dataclasses.replace(given, prompt=prompt), store.spec, 0)
    assert found(np.array(store.frames[:1]), INSTRUCTIONS[0])[f"{folder}: last layer"].shape == (1, 16, 48)


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
    assert command.main([*line, "--train.seed", "1"]) == 0
    table = json.loads(out.read_text())
    rows = ["pixels 8x8", *(f"{name}: {row}" for name in (folder, "random") for row in probe.ROWS)]
    assert list(table) == rows
    assert list(table["pixels 8x8"]) == ["eef xyz", "gripper", "effective rank"]
    assert capsys.readouterr().out.count("\n") == 2 + len(rows)


def test_bad_input_is_one_line(
    store: TrainingStore, folder: Path, tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str, data: Path = store.folder) -> str:
        assert command.main(["--data", str(data), *arguments]) == 2
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
    with pytest.raises(UserError, match=r"'robot0_eye_in_hand' is not used .* model\.cameras is 1; .*agentview"):
        probe.BackboneFeatures(one, store.spec, 1)
    prompt = dataclasses.replace(given.prompt, length=208)
    wide = dataclasses.replace(store.spec, image_size=168)
    with pytest.raises(UserError, match=r"image_size is 168, 6 x 6 tokens .*112 pixels or a multiple"):
        probe.BackboneFeatures(dataclasses.replace(given, prompt=prompt), wide, 0)
