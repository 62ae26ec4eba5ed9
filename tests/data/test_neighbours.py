"""Nearest neighbours against all distances."""

import numpy as np
import pytest

from wmjax.analysis.neighbours import nearest


@pytest.mark.parametrize("other_episodes_only", [True, False])
def test_nearest_is_the_smallest_distance(other_episodes_only: bool) -> None:
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(300, 4, 6)).astype(np.float32)
    keys = rng.normal(size=(50, 4, 6)).astype(np.float32)
    own, origin = rng.integers(0, 5, 300), rng.integers(0, 5, 50)
    found = nearest(queries, keys, 3, (own, origin) if other_episodes_only else None)
    distance = np.square(queries[:, None] - keys).sum((2, 3), dtype=np.float64)
    if other_episodes_only:
        distance[own[:, None] == origin] = np.inf
    np.testing.assert_array_equal(found, np.argsort(distance, axis=1)[:, :3])
    assert (origin[found] != own[:, None]).all() == other_episodes_only
