"""The tests' own check of annotated shapes: it is on, and it lets pass what JAX lets pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype.door import is_bearable
from jaxtyping import Float32, TypeCheckError

from tests import shapes
from wmjax.rollout.decisions import Imagined


def test_a_wrong_shape_is_refused_in_functions_and_in_dataclasses() -> None:
    good = np.zeros((3, 4, 6), np.float32)
    assert Imagined(0, good, good).latents.shape == (4, 4, 6)
    with pytest.raises(TypeCheckError, match="predicted"):
        Imagined(0, good, good[..., :5])
    with pytest.raises(TypeCheckError, match="observed"):
        Imagined(0, good.astype(np.float64), good)


def test_every_module_with_annotated_arrays_is_checked_but_those_that_refuse_in_words() -> None:
    found = shapes.annotated_modules()
    assert "wmjax.models.vla" in found and "wmjax.trainer.step" in found and "wmjax.core.errors" not in found
    assert not set(found) & shapes.REFUSING and len(found) > 100


def test_numpys_arrays_may_stand_for_those_of_jax() -> None:
    hint = shapes.widened(Float32[jax.Array, "3"] | None)
    for good in (jnp.zeros(3), np.zeros(3, np.float32)):
        assert is_bearable(good, hint)
    for bad in (jnp.zeros(4), np.zeros(4, np.float32), np.zeros(3, np.int32)):
        assert not is_bearable(bad, hint)
