"""A head from outside the package: settings, the real training step, a policy."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.synthetic import make_store
from tests.extending.runs import first_chunk, losses, small, train_and_load
from wmjax.core.errors import UserError
from wmjax.experiment.config import changed_settings, from_dict, load, to_dict

KIND = "tests.extending.constant_head:ConstantHead"


def head(**settings: object) -> dict:
    return {"model": {"head": {"kind": KIND, **settings}}}


def test_it_trains_and_acts(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    policy = train_and_load(small("e0_flow", head(spread=0.1), "head"), store, None, tmp_path / "run")
    found = losses(tmp_path / "run")
    assert np.mean(found[-3:]) < np.mean(found[:3])
    one, same, other = (first_chunk(policy, store, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    scale = np.asarray(policy.action_spec.scale)
    assert 0.01 < np.std((one - other)[:, :-1] / scale[:-1]) / 2**0.5 < 0.3


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
def test_a_head_that_is_not_there_is_one_line(kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load("e2_flow", overrides={"model": {"head": {"kind": kind}}})


def test_another_kind_of_head_does_not_inherit_settings() -> None:
    overrides = {"model": {"head": {"kind": "regression"}}}
    assert load("seed_e2_flow", overrides=overrides).model.head == load("e2_flow", overrides=overrides).model.head
