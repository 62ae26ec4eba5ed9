"""The programs of a training: what is drawn, and what published weights bring."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from tests.trainer import network
from tests.trainer.network import built_for
from wmjax.core.errors import UserError
from wmjax.trainer import build as module
from wmjax.trainer.loop import initial_arrays

JOB = {"lora": True, "half": True, "devices": 2, "fsdp": 2, "tensor": 1, "batch": 8}


def with_weights(monkeypatch: pytest.MonkeyPatch) -> module.Built:
    """The programs of a training whose backbone comes from published weights."""
    build = network.build

    def published(model: Callable[..., Any], mesh: Any, specs: Any, train: Any, *rest: Any, **named: Any) -> Any:
        return build(model, mesh, specs, dataclasses.replace(train, backbone_weights="weights"), *rest, **named)

    monkeypatch.setattr(network, "build", published)
    return built_for(JOB)[0]


@pytest.mark.long
def test_what_published_weights_replace_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = built_for(JOB)[0].initialise()
    built = with_weights(monkeypatch)
    given = built.initialise()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(drawn[:2]), jax.device_get(given[:2]))
    assert jax.tree.leaves(given.frozen) == jax.tree.leaves(built.shapes.frozen)
    for shape, array in zip(jax.tree.leaves(given.frozen), jax.tree.leaves(drawn.frozen), strict=True):
        assert isinstance(shape, jax.ShapeDtypeStruct)
        assert (shape.shape, shape.dtype, shape.sharding) == (array.shape, array.dtype, array.sharding)
    again = dataclasses.replace(built, initialise=lambda: given)
    loaded = initial_arrays(again, lambda params, frozen: (params, drawn.frozen), None)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
    for load in (None, lambda params, frozen: (params, frozen)):
        with pytest.raises(UserError, match=r"train\.backbone_weights names weights, but load_base brings none"):
            initial_arrays(again, load, None)
