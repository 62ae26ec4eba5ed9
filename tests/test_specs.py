"""Specs: round trip, identity, and the refusals that end silent disagreement."""

import dataclasses
import json

import pytest

from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec, EncoderSpec, ObservationSpec, from_dict, require_equal, spec_hash, to_dict
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

SPECS = [
    dataclasses.replace(OBSERVATION_SPEC, simulator="mujoco 3.3.2"),
    EncoderSpec(cameras=("agentview",), parameters={"bins": 3}, mean=(0.5,), std=(2.0,)),
    dataclasses.replace(ACTION_SPEC, scale=(0.5,) * 7),
]
TWO_ARMS = ActionSpec(
    names=("left", "left_gripper", "right", "right_gripper"),
    units=("rad", "", "rad", ""),
    grippers=(1, 3),
    gripper_open=(1.0, 0.08),
    gripper_closed=(0.0, 0.0),
)


@pytest.mark.parametrize("spec", [*SPECS, TWO_ARMS])
def test_json_round_trip_is_equal(spec) -> None:
    assert from_dict(type(spec), json.loads(json.dumps(to_dict(spec))), "file") == spec


def test_hash_depends_on_every_field() -> None:
    assert spec_hash(OBSERVATION_SPEC) == spec_hash(dataclasses.replace(OBSERVATION_SPEC))
    assert spec_hash(OBSERVATION_SPEC) != spec_hash(dataclasses.replace(OBSERVATION_SPEC, frame_stride=8))


def test_latents_without_a_precision_are_of_float32() -> None:
    spec = EncoderSpec(cameras=("agentview",))
    assert "precision" not in to_dict(spec) and from_dict(EncoderSpec, to_dict(spec), "file").precision == "float32"
    half = dataclasses.replace(spec, precision="bfloat16")
    assert from_dict(EncoderSpec, to_dict(half), "file") == half and spec_hash(half) != spec_hash(spec)


def test_sizes_follow_from_the_names() -> None:
    assert (OBSERVATION_SPEC.state_dim, ACTION_SPEC.dim, ACTION_SPEC.arm) == (8, 7, (0, 1, 2, 3, 4, 5))
    assert (TWO_ARMS.dim, TWO_ARMS.arm) == (4, (0, 2))


@pytest.mark.parametrize(
    ("spec", "change", "message"),
    [
        (TWO_ARMS, {"units": ("rad",)}, "units has 1 values for 4 names"),
        (TWO_ARMS, {"grippers": (3, 1)}, r"grippers is \(3, 1\); give different indices from 0 to 3, in order"),
        (TWO_ARMS, {"grippers": (1, 4)}, r"grippers is \(1, 4\)"),
        (TWO_ARMS, {"grippers": (1,)}, "gripper_open has 2 values for 1 grippers"),
        (TWO_ARMS, {"gripper_closed": (0.0, 0.08)}, "give values that differ"),
        (TWO_ARMS, {"hold": (0.0,)}, "hold has 1 values for 4 names"),
        (OBSERVATION_SPEC, {"position": (0, 1)}, r"position is \(0, 1\); give 3 indices, or none"),
        (OBSERVATION_SPEC, {"fingers": (6, 8)}, r"fingers is \(6, 8\); give different indices from 0 to 7"),
    ],
)
def test_a_contradiction_is_refused(spec, change, message) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(spec, **change)


def test_old_format_missing_field_and_wrong_type_are_refused() -> None:
    values = to_dict(OBSERVATION_SPEC)
    with pytest.raises(UserError, match=r"format_version is 1.*rebuild"):
        from_dict(ObservationSpec, values | {"format_version": 1}, "x.json")
    with pytest.raises(UserError, match="frame_stride"):
        from_dict(ObservationSpec, {k: v for k, v in values.items() if k != "frame_stride"}, "x.json")
    with pytest.raises(UserError, match="image_size is '112'"):
        from_dict(ObservationSpec, values | {"image_size": "112"}, "x.json")


def test_differing_artefacts_are_refused_by_field_and_both_values() -> None:
    a = OBSERVATION_SPEC
    require_equal(a, dataclasses.replace(a), "store", "simulator")
    with pytest.raises(UserError, match=r"rotation differs: 180 in store, 0 in simulator"):
        require_equal(a, dataclasses.replace(a, rotation=0), "store", "simulator")
    require_equal(a, dataclasses.replace(a, rotation=0), "store", "simulator", ignore=("rotation",))
