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
