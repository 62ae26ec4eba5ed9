"""Conventions of foreign policies: images, states and grippers against the peers' own functions."""

import dataclasses

import numpy as np
import pytest
from openpi_client import image_tools
from vla_eval.benchmarks.libero import benchmark as peers
from vla_eval.rotation import quat_to_axisangle

from wmjax.core.errors import UserError
from wmjax.data.observation import axis_angle
from wmjax.rollout.protocol import load_protocol
from wmjax.serving.clients.conventions import (
    PRESETS,
    Conventions,
    conventions,
    drawn_spec,
    expected_image,
    expected_state,
    quaternion,
    raw_actions,
    shortest_rotation,
)
from wmjax.sim.env import SETTLE_STEPS
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

RANDOM = np.random.default_rng(3)
IMAGE = RANDOM.integers(0, 256, (256, 256, 3), np.uint8)
PLAIN = Conventions()


def test_an_image_is_that_of_openpis_example() -> None:
    np.testing.assert_array_equal(expected_image(IMAGE, PLAIN), image_tools.resize_with_pad(IMAGE, 224, 224))
    upright = dataclasses.replace(PLAIN, image_size=256)
    raw = IMAGE[::-1, ::-1]  # what MuJoCo draws
    np.testing.assert_array_equal(expected_image(IMAGE, upright), peers.preprocess_libero_image(raw))
    np.testing.assert_array_equal(expected_image(IMAGE, dataclasses.replace(upright, orientation="turned")), raw)
    np.testing.assert_array_equal(
        expected_image(IMAGE, dataclasses.replace(upright, orientation="mirrored")), raw[::-1]
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_rotation_has_the_antipode_that_each_peer_chooses(seed: int) -> None:
    quat = np.random.default_rng(seed).normal(size=4).astype(np.float32)
    quat /= np.linalg.norm(quat)
    robosuite = axis_angle(quat)
    np.testing.assert_allclose(robosuite, peers._quat_to_axisangle_robosuite(quat), atol=1e-5)
    np.testing.assert_allclose(shortest_rotation(robosuite), quat_to_axisangle(quat), atol=1e-5)
    np.testing.assert_allclose(quaternion(robosuite), quat, atol=1e-5)


def test_a_state_is_what_the_policy_expects() -> None:
    state = np.array([0.1, 0.2, 0.3, 3.5, 0.0, 0.0, 0.04, -0.02], np.float32)

    def shown(**changes) -> np.ndarray | None:
        return expected_state(state, OBSERVATION_SPEC, dataclasses.replace(PLAIN, **changes))

    assert shown(state="none") is None
    np.testing.assert_array_equal(shown(), state.astype(np.float64))
    np.testing.assert_allclose(shown(rotation="shortest")[3:6], [3.5 - 2 * np.pi, 0, 0], atol=1e-6)
    np.testing.assert_allclose(shown(state="mean_finger"), [*state[:6], 0.01], atol=1e-7)
    np.testing.assert_allclose(shown(state="quaternion")[3:], [*quaternion(state[3:6]), 0.04, -0.02], atol=1e-6)
    plain = dataclasses.replace(OBSERVATION_SPEC, orientation=(), fingers=())
    for changes in ({"rotation": "shortest"}, {"state": "mean_finger"}, {"state": "quaternion"}):
        with pytest.raises(UserError, match="environment's state has no"):
            expected_state(state, plain, dataclasses.replace(PLAIN, **changes))


@pytest.mark.parametrize(
    ("preset", "answered", "raw"),
    [
        ("openpi", [-1.0, 0.25, 1.0, 1.5], [-1.0, 0.25, 1.0, 1.0]),
        ("starvla", [1.0, 0.51, 0.5, 0.0], [-1.0, -1.0, 1.0, 1.0]),
        ("vla-eval", [-1.0, -0.01, 0.0, 0.3], [-1.0, -1.0, 1.0, 1.0]),
        ("openvla", [1.0, 0.7, 0.2, 0.0], [-1.0, -1.0, 1.0, 1.0]),
    ],
)
def test_a_gripper_is_read_with_the_policys_sign_and_range(preset, answered, raw) -> None:
    answer = RANDOM.normal(size=(4, 7))
    answer[:, 6] = answered
    found = raw_actions(answer, ACTION_SPEC, conventions(preset))
    np.testing.assert_array_equal(found[:, 6], np.float32(raw))
    np.testing.assert_array_equal(found[:, :6], answer[:, :6].astype(np.float32).clip(-1, 1))
    with pytest.raises(UserError, match=r"shape \[4, 6\], the environment takes \[steps, 7\]"):
        raw_actions(answer[:, :6], ACTION_SPEC, PLAIN)


def test_the_protocols_have_the_peers_step_limits_and_settle_steps() -> None:
    for suite, limit in peers.MAX_STEP_MAPPING.items():
        if suite != "libero_90":  # no protocol of ours
            assert load_protocol(suite).max_steps == limit
    assert SETTLE_STEPS == 10  # num_steps_wait of openpi, starVLA, vla-eval and OpenVLA-OFT
    np.testing.assert_array_equal(ACTION_SPEC.hold, peers.LIBERO_DUMMY_ACTION)


def test_the_environment_is_drawn_as_published_unless_told_otherwise() -> None:
    spec = drawn_spec(conventions("openpi", {"cameras": ["agentview"]}), OBSERVATION_SPEC, 5)
    assert (spec.cameras, spec.image_size, spec.frame_stride) == (("agentview",), 256, 5)
    assert spec.reflection and not spec.mesh_detail_mm and spec.rotation == 180
    with pytest.raises(UserError, match=r"unknown foreign\.cameras 'agentvew'; did you mean agentview"):
        drawn_spec(conventions("openpi", {"cameras": ["agentvew"]}), OBSERVATION_SPEC, 5)


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("opnpi", {}, r"unknown foreign\.preset 'opnpi'; did you mean openpi"),
        ("openpi", {"image_sise": 3}, r"foreign\.image_sise"),
        ("openpi", {"image_size": 0}, r"foreign\.image_size is 0"),
        ("openpi", {"resize": "nearest"}, r"foreign\.resize is 'nearest'"),
        ("openpi", {"cameras": []}, r"foreign\.cameras is \[\]"),
        ("openpi", {"gripper_open": 1.0}, r"foreign\.gripper_open is 1\.0, foreign\.gripper_closed 1\.0"),
    ],
)
def test_wrong_settings_are_one_line(preset, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        conventions(preset, changes)
    assert set(PRESETS) == {"openpi", "starvla", "vla-eval", "openvla"}
