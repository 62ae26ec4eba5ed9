"""A head from outside the package: settings, the real training step, a policy."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.data.synthetic import make_episode
from tests.extending.runs import first_chunk, losses, small, train_and_load
from wmjax.core.errors import UserError
from wmjax.data.store import TrainingStore, finalize, write_part
from wmjax.experiment.changes import changed_settings
from wmjax.experiment.config import from_dict, load, to_dict
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

KIND = "tests.extending.constant_head:ConstantHead"


def head(**settings: object) -> dict:
    return {"model": {"head": {"kind": KIND, **settings}}}


def constant_store(folder: Path) -> TrainingStore:
    """Demonstrations that always do about the same."""
    spec = dataclasses.replace(OBSERVATION_SPEC, image_size=56, simulator="synthetic")
    for index in range(6):
        episode = make_episode(index, 24)
        action = (0.3 + 0.05 * episode.action).astype(np.float32)
        action[:, -1] = 1.0
        write_part(folder, f"{index}", dataclasses.replace(episode, action=action), spec)
    return finalize(folder, spec, ACTION_SPEC)


def test_it_trains_and_acts(tmp_path: Path) -> None:
    store, settings = constant_store(tmp_path / "store"), {"train": {"normalisation": "none"}}
    policy = train_and_load(small("e0_flow", head(spread=0.1) | settings, "head"), store, None, tmp_path / "run")
    found = losses(tmp_path / "run")
    assert found[-1] < 0.5 * found[0]
    one, same, other = (first_chunk(policy, store, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert one[:, -1].mean() > one[:, :-1].mean() > 0.05
    assert 0.05 < np.std((one - other)[:, :-1]) / 2**0.5 < 0.2


def test_its_settings_are_typed_and_survive_a_checkpoint() -> None:
    experiment = load("e2_flow", overrides=head(spread=0.5))
    assert experiment.model.head.spread == 0.5  # type: ignore[attr-defined]
    assert from_dict(to_dict(experiment)) == experiment
    assert changed_settings(experiment) == {"model.head.kind": KIND, "model.head.spread": 0.5}
    with pytest.raises(UserError, match=r"unknown setting 'model.head.spred'; did you mean model.head.spread"):
        load("e2_flow", overrides=head(spred=0.5))
    with pytest.raises(UserError, match=r"model.head.spread is 'wide'; expected float"):
        load("e2_flow", overrides=head(spread="wide"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("flo", r"unknown model.head.kind 'flo'; did you mean flow\?; a class of your own is written package.module:"),
        ("no.such:Head", r"model.head.kind is 'no.such:Head', which cannot be imported \(No module named 'no'\)"),
        ("wmjax.models.heads.flow:Flow", r"cannot be imported \(module .* has no attribute 'Flow'\)"),
        ("wmjax.models.heads.flow:TIME", r"model.head.kind is 'wmjax.models.heads.flow:TIME', a int; give the name of"),
    ],
)
def test_an_unknown_head_is_one_line(kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load("e2_flow", overrides={"model": {"head": {"kind": kind}}})


def test_another_kind_of_head_does_not_inherit_settings() -> None:
    overrides = {"model": {"head": {"kind": "regression"}}}
    assert load("prior_e2_flow", overrides=overrides).model.head == load("e2_flow", overrides=overrides).model.head
