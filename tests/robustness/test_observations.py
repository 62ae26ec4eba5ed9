"""What callers of a policy pass to it: other types, shapes and conventions are refused before they are misread."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmjax.core.errors import UserError
from wmjax.data.observation import Observation, require_observation
from wmjax.policy.policy import Policy, load_policy
from wmjax.sim.libero import OBSERVATION_SPEC

SPEC = dataclasses.replace(OBSERVATION_SPEC, image_size=56)
IMAGES = np.zeros((2, 3, len(SPEC.cameras), 56, 56, 3), np.uint8)
GOOD = Observation(IMAGES, np.zeros((2, 8), np.float32), "a pytree", np.ones(2, bool))._replace(prompt={"tokens": 0})
KEYS = jax.random.split(jax.random.key(0), 2)

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "colours from 0 to 1": ({"images": IMAGES.astype(np.float32)}, "images is float32 .* takes uint8"),
    "signed colours": ({"images": IMAGES.astype(np.int8)}, "images is int8"),
    "wide colours": ({"images": IMAGES.astype(np.uint16)}, "images is uint16"),
    "channels first": ({"images": IMAGES.transpose(0, 1, 2, 5, 3, 4)}, r"images is uint8 \(2, 3, 2, 3, 56, 56\)"),
    "another size": (
        {"images": np.zeros((2, 3, 2, 112, 112, 3), np.uint8)},
        r"images is .* takes uint8 \(2, 3, 2, 56, 56, 3\)",
    ),
    "one camera": ({"images": IMAGES[:, :, :1]}, r"images is uint8 \(2, 3, 1, "),
    "no frames": ({"images": IMAGES[:, :0]}, r"images is uint8 \(2, 0, "),
    "no batch": ({"images": IMAGES[0]}, "images is uint8"),
    "a list": ({"images": IMAGES.tolist()}, "images is list"),
    "another batch": ({"state": np.zeros((1, 8), np.float32)}, r"state is float32 \(1, 8\); .* floating \(2, 8\)"),
    "a state without fingers": ({"state": np.zeros((2, 6), np.float32)}, r"state is float32 \(2, 6\)"),
    "whole numbers": ({"state": np.zeros((2, 8), np.int32)}, "state is int32"),
    "a state that is none": ({"state": np.full((2, 8), np.nan)}, "state is .*nan.*; give finite numbers"),
    "a number for a mark": ({"first": np.ones(2, np.int32)}, "first is int32"),
    "one mark": ({"first": True}, "first is bool"),
    "text": ({"prompt": "lift"}, r"prompt is 'lift'; give policy.prompt\('lift'\)"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_observations_that_a_policy_would_misread_are_refused(name: str, array: Any) -> None:
    changes, message = BAD[name]
    if name not in ("a list", "a state that is none", "text", "one mark"):  # those are as they are
        changes = {field: array(value) for field, value in changes.items()}
    with pytest.raises(UserError, match=f"observation.{message}"):
        require_observation(GOOD._replace(**changes), KEYS, SPEC)


@pytest.mark.parametrize("keys", [jax.random.key(0), 0, KEYS[:1]])
def test_every_row_has_a_key(keys: Any) -> None:
    with pytest.raises(UserError, match=r"keys have shape .*; give one for each of 2 rows, as jax"):
        require_observation(GOOD, keys, SPEC)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_matching_observations_are_accepted(dtype: Any) -> None:
    require_observation(GOOD._replace(state=np.zeros((2, 8), dtype)), KEYS, SPEC)
    require_observation(jax.tree.map(jnp.asarray, GOOD), KEYS, SPEC)


def test_a_policy_looks_before_it_computes() -> None:
    policy = SimpleNamespace(observation_spec=SPEC, oracle=None, corruption="none", pending_steps=0, _prepare=len)
    with pytest.raises(UserError, match=r"observation\.images is float64"):
        Policy.__call__(policy, None, GOOD._replace(images=IMAGES / 255), KEYS)
    for instruction in (None, 3, ["lift"], b"lift"):
        with pytest.raises(UserError, match=r"instruction is .*; give a text"):
            Policy.prompt(policy, instruction)
    for size in (0, -1, "1", 1.5, None):
        with pytest.raises(UserError, match=r"batch_size is .*; give a whole number"):
            load_policy("mini", batch_size=size)
