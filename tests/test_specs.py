"""Specs: round trip, identity, and the refusals that end silent disagreement."""

import dataclasses
import json

import pytest

from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec, EncoderSpec, ObservationSpec, from_dict, require_equal, spec_hash, to_dict

SPECS = [
    ObservationSpec(simulator="mujoco 3.3.2"),
    EncoderSpec(parameters={"bins": 3}, mean=(0.5,), std=(2.0,)),
    ActionSpec(scale=(0.5,) * 7),
]


@pytest.mark.parametrize("spec", SPECS)
def test_json_round_trip_is_equal(spec) -> None:
    assert from_dict(type(spec), json.loads(json.dumps(to_dict(spec))), "file") == spec


def test_hash_depends_on_every_field() -> None:
    assert spec_hash(ObservationSpec()) == spec_hash(ObservationSpec())
    assert spec_hash(ObservationSpec()) != spec_hash(ObservationSpec(frame_stride=8))


def test_a_field_that_is_younger_than_the_format_changes_no_older_file() -> None:
    assert spec_hash(ObservationSpec()) == "b6b4a4419993e956" and "drawn_size" not in to_dict(ObservationSpec())
    resized = ObservationSpec(resize_filter="bilinear", drawn_size=256)
    assert from_dict(ObservationSpec, to_dict(resized), "file") == resized
    assert from_dict(ObservationSpec, to_dict(ObservationSpec()), "file").drawn_size == 0
    with pytest.raises(UserError, match="surplus fields: drawn_size"):
        from_dict(ActionSpec, to_dict(ActionSpec()) | {"drawn_size": 1}, "file")


def test_old_format_missing_field_and_wrong_type_are_refused() -> None:
    values = to_dict(ObservationSpec())
    with pytest.raises(UserError, match=r"format_version is 0.*rebuild"):
        from_dict(ObservationSpec, values | {"format_version": 0}, "x.json")
    with pytest.raises(UserError, match="frame_stride"):
        from_dict(ObservationSpec, {k: v for k, v in values.items() if k != "frame_stride"}, "x.json")
    with pytest.raises(UserError, match="image_size is '112'"):
        from_dict(ObservationSpec, values | {"image_size": "112"}, "x.json")


def test_differing_artefacts_are_refused_by_field_and_both_values() -> None:
    a = ObservationSpec()
    require_equal(a, ObservationSpec(), "store", "simulator")
    with pytest.raises(UserError, match=r"rotation differs: 180 in store, 0 in simulator"):
        require_equal(a, dataclasses.replace(a, rotation=0), "store", "simulator")
    require_equal(a, dataclasses.replace(a, rotation=0), "store", "simulator", ignore=("rotation",))
