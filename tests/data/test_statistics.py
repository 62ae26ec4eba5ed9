import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec, EncoderSpec, from_dict, to_dict
from wmjax.data import statistics as stats
from wmjax.data.split import split_episodes
from wmjax.data.store import TrainingStore
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC


class Columns(TrainingStore):
    """A store of states only, in memory."""

    def __init__(self, state: np.ndarray, episodes: list[dict]) -> None:
        self.state, self.episodes = state, episodes


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.floats(-1e4, 1e4))
def test_streaming_moments_equal_numpy(sizes, offset):
    rows = np.random.default_rng(0).normal(size=(sum(sizes) + 2, 3)) + offset
    moments, start = stats.RunningMoments(3), 0
    for size in [*sizes, 2]:
        moments.update(rows[start : start + size])
        start += size
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.std, rows.std(axis=0), rtol=1e-7)
    assert np.array_equal(moments.min, rows.min(axis=0)) and np.array_equal(moments.max, rows.max(axis=0))
    assert moments.count == len(rows)


def test_column_statistics_use_the_chosen_episodes_only(store):
    chosen = np.array([1, 4])
    rows = store.action[np.isin(store.state[:, 0], chosen)]
    found = stats.column_statistics(store, "action", chosen)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.q01, np.quantile(rows.astype(np.float64), 0.01, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.q99, np.quantile(rows.astype(np.float64), 0.99, axis=0), rtol=1e-12)


def test_quantiles_are_exact_and_hold_one_dimension_at_a_time():
    length, count = 500, 1000
    column = np.random.default_rng(0).standard_normal((length * count, 8)).astype(np.float32)
    table = [{"step_start": length * i, "length": length} for i in range(count)]
    store = Columns(column, table)
    tracemalloc.start()
    found = stats.column_statistics(store, "state", np.arange(count))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * len(column)  # the whole column as float64 would be 64
    low, high = np.quantile(column.astype(np.float64), (0.01, 0.99), axis=0)
    assert np.array_equal(found.q01, low) and np.array_equal(found.q99, high)


@pytest.mark.parametrize("mode", ["none", "mean_std", "quantile"])
def test_normalisation_round_trips_and_leaves_the_gripper(store, mode):
    spec = stats.action_spec(store, np.arange(6), 8, mode)
    normal = stats.normalise_action(store.action, spec, store.state[0])
    np.testing.assert_allclose(stats.denormalise_action(normal, spec, store.state[0]), store.action, atol=1e-6)
    np.testing.assert_allclose(
        stats.denormalise_state(stats.normalise_state(store.state, spec), spec), store.state, atol=1e-5
    )
    assert np.array_equal(normal[:, 6], store.action[:, 6]) and normal.dtype == np.float32
    assert from_dict(ActionSpec, to_dict(spec), "x") == spec
    if mode == "mean_std":
        np.testing.assert_allclose(normal[:, :6].std(axis=0), 1, rtol=1e-5)
    if mode == "quantile":
        np.testing.assert_allclose(np.quantile(normal[:, :6], 0.99, axis=0), 1, atol=1e-5)


def test_tiny_scales_are_floored(tmp_path):
    from tests.data.synthetic import make_episode
    from wmjax.data.store import finalize, write_part

    spec = dataclasses.replace(OBSERVATION_SPEC, image_size=14)
    episode = make_episode(0, 20, 14)
    episode.action[:, 3], episode.state[:, 7] = 0.25, 0.04
    write_part(tmp_path, "a", episode, spec)
    store = finalize(tmp_path, spec, ACTION_SPEC)
    for mode in ("mean_std", "quantile"):
        found = stats.action_spec(store, np.array([0]), 8, mode)
        assert found.scale[3] == np.float32(stats.MIN_ACTION_SCALE)
        assert found.state_scale[7] == np.float32(stats.MIN_STATE_SCALE)


def test_jax_and_numpy_normalise_alike(store):
    import jax.numpy as jnp

    spec = stats.action_spec(store, np.arange(6), 8, "quantile")
    found = stats.normalise_action(jnp.asarray(store.action), spec, store.state[0])
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
        np.asarray(found), stats.normalise_action(store.action, spec, store.state[0]), rtol=1e-6, atol=1e-7
    )


def test_latents_normalise_to_unit_scale(latents):
    normal = stats.normalise_latents(np.asarray(latents.latents[0]), latents.spec)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal[..., 2:].reshape(-1, 4).std(axis=0), 1, atol=1e-3)
    back = stats.denormalise_latents(normal, latents.spec)
    np.testing.assert_allclose(back, latents.latents[0].astype(np.float32), atol=1e-5)
    constant = EncoderSpec(cameras=("agentview",), dim=1, mean=(2.0,), std=(0.0,))
    assert np.isfinite(stats.normalise_latents(np.full((3, 1), 2.0, np.float16), constant)).all()


def test_unknown_normalisation_and_no_episodes_are_refused(store):
    with pytest.raises(UserError, match=r"'minmax'; choose one of none, mean_std, quantile"):
        stats.action_spec(store, np.arange(2), 8, "minmax")
    with pytest.raises(UserError, match="0 training episodes"):
        stats.action_spec(store, np.arange(0), 8, "quantile")


def episodes(per_task):
    tasks = [("suite", task) for task, count in enumerate(per_task) for _ in range(count)]
    return [{"index": i, "suite": suite, "task_id": task} for i, (suite, task) in enumerate(tasks)]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.floats(0, 0.9), st.integers(0, 99))
def test_split_is_a_stratified_partition(per_task, fraction, seed):
    table = episodes(per_task)
    train, held_out = split_episodes(table, fraction, seed)
    assert sorted([*train, *held_out]) == list(range(len(table)))
    for task, count in enumerate(per_task):
        mine = [i for i in held_out if table[i]["task_id"] == task]
        expected = max(round(fraction * count), 1) if fraction > 0 else 0
        assert len(mine) == min(expected, count - 1)


def test_split_depends_on_the_seed_and_not_on_other_tasks():
    small, large = episodes([20, 20]), episodes([20, 20, 20])
    first = split_episodes(small, 0.25, 0)[1]
    assert np.array_equal(first, split_episodes(small, 0.25, 0)[1])
    assert not np.array_equal(first, split_episodes(small, 0.25, 1)[1])
    assert np.array_equal(first, split_episodes(large, 0.25, 0)[1][: len(first)])
    with pytest.raises(UserError, match=r"validation is 1\.0"):
        split_episodes(small, 1.0, 0)
