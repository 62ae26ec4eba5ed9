"""Annotated shapes hold while the tests run: a call or a result with another shape is an error."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from wmjax.models.nn.attention import attention
from wmjax.reporting.charts import round_ticks
from wmjax.reporting.html import percent


def test_an_array_of_another_shape_or_dtype_is_refused() -> None:
    query, key = jnp.ones((2, 5, 4, 8)), jnp.ones((2, 3, 2, 8))
    assert attention(query, key, key).shape == query.shape
    with pytest.raises(TypeCheckError, match="key"):
        attention(query, key[1:], key)
    with pytest.raises(TypeCheckError, match="query"):
        attention(query.astype(jnp.int32), key, key)


def test_an_int_may_stand_for_a_float_and_not_the_other_way_round() -> None:
    assert percent(1) == "100.0 %"
    assert round_ticks(0, 1, 4)[0] == 0
    with pytest.raises(TypeCheckError, match="count"):
        round_ticks(0.0, 1.0, 4.0)  # type: ignore[arg-type]
