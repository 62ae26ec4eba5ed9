"""A backbone from outside the package: settings, the real training step, a policy."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.data.synthetic import INSTRUCTIONS, make_store
from tests.extending.runs import decide, losses, small, train_and_load
from wmjax.core.errors import UserError
from wmjax.experiment.config import Experiment, from_dict, load, to_dict
from wmjax.experiment.plan import starting_weights
from wmjax.export import main as export
from wmjax.models.prompts import make_prepare, prompt_shapes
from wmjax.scaling.estimate import estimate
from wmjax.scaling.request import Request
from wmjax.train import main as train

KIND = "tests.extending.bag_of_words:BagOfWords"


def experiment(recipe: str = "e0_mse", **settings: Any) -> Experiment:
    backbone = {"kind": KIND, "buckets": 32, "hidden": 16}
    return small(recipe, {"model": {"backbone": backbone}, **settings}, "backbone")


def test_it_trains_and_acts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "store")
    policy = train_and_load(experiment(), store, None, tmp_path / "run")
    found = losses(tmp_path / "run")
    assert np.mean(found[-3:]) < np.mean(found[:3])
    prompts = [policy.prompt(instruction) for instruction in INSTRUCTIONS[:2]]
    assert all(jax.tree.map(np.shape, prompt) == ((1, 32),) for prompt in prompts)
    chunks = [decide(policy, store, policy.initial_carry(), 0, task=task)[1] for task in (0, 1)]
    assert chunks[0].shape == (8, 7) and np.abs(chunks[0] - chunks[1]).max() > 1e-4
    assert export(["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    assert "BagOfWords has no export" in capsys.readouterr().err and not list(tmp_path.glob("out*"))


def test_its_settings_are_typed_checked_and_survive_a_checkpoint() -> None:
    made = load("e2_flow", overrides={"model": {"backbone": {"kind": KIND, "buckets": 8}}})
    assert made.model.backbone.width == 32 and from_dict(to_dict(made)) == made
    with pytest.raises(UserError, match=r"unknown setting 'model.backbone.lora'"):
        load("e2_flow", overrides={"model": {"backbone": {"kind": KIND, "lora": {"rank": 2}}}})
    with pytest.raises(UserError, match=r"injection.layers contains 0; the backbone has 0 layers"):
        load("e2_flow", overrides={"model": {"backbone": {"kind": KIND}, "injection": {"layers": [0]}}})


def test_weights_for_a_backbone_that_reads_none_are_refused(tmp_path: Path) -> None:
    given = experiment(train={"backbone_weights": str(tmp_path)})
    with pytest.raises(UserError, match=rf"train.backbone_weights is '{tmp_path}', but the backbone .* reads none"):
        starting_weights(given)


@pytest.mark.parametrize("kind", [KIND, "qwen2_5_vl"])
def test_the_shapes_of_prompts_are_known_without_a_prompt(kind: str) -> None:
    made = load("e2_flow", overrides={"model": {"backbone": {"kind": kind}}})
    arguments = made.prompt, made.model, made.data.observation
    prompt, shapes = make_prepare(*arguments)(INSTRUCTIONS[0]), prompt_shapes(*arguments)
    assert jax.tree.structure(shapes) == jax.tree.structure(prompt)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), shapes) == jax.tree.map(lambda a: (a.shape, a.dtype), prompt)


def test_a_dry_run_and_an_estimate_count_it(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--model.backbone.kind", KIND, "--model.backbone.hidden", "16"]
    assert train(["--config", "e0_mse", "--dry-run", *settings]) == 0
    printed = capsys.readouterr().out
    assert "  backbone: 2," in printed and 'model.backbone.kind = "tests.extending' in printed
    overrides = {"model": {"backbone": {"kind": KIND, "hidden": 16}}, "train": {"batch_size": 4}}
    found = estimate(Request("e0_mse", "mini", "cpu:1", settings=overrides))
    assert found["parameters"] == found["trainable"] and found["remat"] is None
    # The prompts whose shapes the backbone gives are among the arguments that the compiler counts.
    assert found["arguments_gb"] == pytest.approx(found["memory"]["arguments_gb"], rel=1e-3)
