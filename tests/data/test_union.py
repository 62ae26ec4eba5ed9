import dataclasses
import itertools

import numpy as np
import pytest

from tests.data.synthetic import make_episode, make_latents, make_store
from wmjax.core.errors import UserError
from wmjax.data.loader import BatchSource, LoaderConfig, make_loader
from wmjax.data.split import split_episodes
from wmjax.data.statistics import RunningMoments, action_spec, column_statistics
from wmjax.data.store import finalize, write_part
from wmjax.data.union import JoinedRows, UnionLatents, UnionStore, join_stores
from wmjax.data.weights import Mixture, draw_weighted
from wmjax.sim.libero import ACTION_SPEC

LENGTHS = (22, 37, 16, 45, 28, 19, 31, 40)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("union")
    return make_store(folder / "a"), make_store(folder / "b", lengths=LENGTHS, tasks=3)


@pytest.fixture(scope="module")
def union(stores):
    return UnionStore(stores)


@pytest.fixture(scope="module")
def latents(stores, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    return [make_latents(folder / str(number), store) for number, store in enumerate(stores)]


def test_one_store_is_itself(stores):
    assert join_stores(stores[:1]) is stores[0]


def test_the_episodes_are_those_of_the_stores_in_order(stores, union):
    first = len(stores[0].episodes)
    assert len(union.episodes) == first + len(LENGTHS)
    for index, entry in enumerate(union.episodes):
        store, within = (stores[0], index) if index < first else (stores[1], index - first)
        expected, found = store.episode(within), union.episode(index)
        rows = slice(entry["step_start"], entry["step_start"] + entry["length"])
        span = slice(entry["frame_start"], entry["frame_start"] + entry["num_frames"])
        assert entry["index"] == index
        assert union.tasks[entry["task"]].instruction == entry["instruction"] == expected.meta["instruction"]
        assert np.array_equal(union.state[rows], expected.state) and np.array_equal(found.state, expected.state)
        assert np.array_equal(union.frames[span], expected.images) and np.array_equal(found.images, expected.images)
        assert np.array_equal(union.settled_state(index), store.settled_state(within))
    union.verify()


def test_tasks_of_several_stores_are_one_task(stores, union):
    assert len(union.tasks) == 3 and set(union.tasks) == set(stores[1].tasks)


@pytest.mark.parametrize("axis", [0, 1])
def test_joined_rows_index_like_the_array(axis):
    random = np.random.default_rng(0)
    parts = [random.normal(size=(3, n, 2, 4) if axis else (n, 3, 2, 4)) for n in (5, 1, 7)]
    whole, joined = np.concatenate(parts, axis=axis), JoinedRows(parts, axis)
    rows = random.integers(0, 13, (6, 4))
    lead = (random.integers(0, 3, (6, 1)),) if axis else ()
    keys = [(*lead, rows), (*lead, rows, 1)] + ([(2, slice(3, 9)), (0, 12)] if axis else [slice(2, 8), 4, (rows, 1, 0)])
    assert joined.shape == whole.shape and np.array_equal(np.asarray(joined), whole)
    for key in keys:
        assert np.array_equal(joined[key], whole[key]), key


def test_an_empty_index_keeps_the_shape():
    assert JoinedRows([np.zeros((3, 2)), np.zeros((4, 2))])[np.zeros((0, 5), int)].shape == (0, 5, 2)


def test_each_store_is_split_as_it_is_alone(stores, union):
    first, mine = len(stores[0].episodes), split_episodes(union.episodes, 0.3, 0)[1]
    alone = [split_episodes(store.episodes, 0.3, 0)[1] for store in stores]
    assert mine.tolist() == [*alone[0].tolist(), *(alone[1] + first).tolist()]


def test_statistics_are_those_of_all_rows_together(stores, union):
    found = column_statistics(union, "state", np.arange(len(union.episodes)))
    rows = np.concatenate([store.state for store in stores]).astype(np.float64)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.q99, np.quantile(rows, 0.99, axis=0), atol=1e-6)
    alone = action_spec(stores[0], np.arange(len(stores[0].episodes)), 8, "mean_std")
    assert action_spec(union, np.arange(len(union.episodes)), 8, "mean_std").offset != alone.offset


def test_latents_are_normalised_by_all_of_them(union, latents):
    joined = UnionLatents(latents)
    joined.check(union)
    moments = RunningMoments(joined.spec.dim)
    for one in latents:
        moments.update(np.asarray(one.latents[0], np.float64))
    np.testing.assert_allclose(joined.spec.mean, moments.mean, atol=1e-6)
    np.testing.assert_allclose(joined.spec.std, moments.std, rtol=1e-5)


def test_latents_of_another_union_are_refused(stores, latents):
    with pytest.raises(UserError, match="differs"):
        UnionLatents(latents).check(UnionStore(stores[::-1]))


def test_a_batch_holds_what_the_stores_hold(stores, union, latents):
    joined, config = UnionLatents(latents), LoaderConfig(batch_size=16, seed=1)
    first = len(stores[0].frame_step)
    episodes = np.arange(len(union.episodes))
    for batch in itertools.islice(iter(make_loader(union, joined, episodes, config)), 8):
        for b, frame in enumerate(batch["sample_id"]):
            number, within = (0, frame) if frame < first else (1, frame - first)
            store, own = stores[number], latents[number]
            view = int(batch["latents"][b, 0, 0, 1])
            episode = store.frame_episode[within]
            assert np.array_equal(batch["images"][b], store.frames[within])
            assert np.array_equal(batch["state"][b], store.state[store.frame_row[within]])
            assert np.array_equal(batch["latents"][b, -1], own.latents[view, within].astype(np.float32))
            assert np.array_equal(batch["shift"][b], own.views[episode, view])
            assert union.tasks[batch["task"][b]].instruction == store.episodes[episode]["instruction"]


def shares(store, mixture, batches=200):
    source = BatchSource(store, None, np.arange(len(store.episodes)), LoaderConfig(batch_size=16, mixture=mixture))
    frames = np.concatenate([source.samples_of(index) for index in range(batches)])
    episodes = store.frame_episode[frames]
    store_of = np.array([entry["store"] for entry in store.episodes])[episodes]
    task_of = np.array([entry["task"] for entry in store.episodes])[episodes]
    return [np.bincount(values) / len(values) for values in (store_of, task_of)], frames


def test_weights_are_the_shares_of_the_stores(union):
    (by_store, _), frames = shares(union, Mixture(weights=(3.0, 1.0)))
    np.testing.assert_allclose(by_store, [0.75, 0.25], atol=0.02)
    assert len(np.unique(frames)) == len(union.frame_step)


def test_balanced_tasks_come_equally_often(union):
    (_, by_task), _ = shares(union, Mixture(balance="task"))
    np.testing.assert_allclose(by_task, [1 / 3] * 3, atol=0.02)
    (_, unbalanced), _ = shares(union, Mixture())
    assert abs(unbalanced - 1 / 3).max() > 0.1


def test_a_sample_is_drawn_as_often_as_expected_up_to_one(union):
    expected = np.random.default_rng(0).uniform(0, 3, 500)
    expected *= len(expected) / expected.sum()
    counts = np.bincount(draw_weighted(expected, np.random.default_rng(1)), minlength=500)
    assert (np.abs(counts - expected) < 1).all() and counts.sum() == 500


def test_validation_is_not_weighted(union):
    plain = LoaderConfig(batch_size=16, shuffle=False, mixture=Mixture(weights=(5.0, 1.0)))
    source = BatchSource(union, None, np.arange(len(union.episodes)), plain)
    assert source.samples_of(0).tolist() == list(range(16))


def test_a_weighted_stream_resumes_at_the_next_sample(union):
    config = LoaderConfig(batch_size=16, mixture=Mixture(weights=(3.0, 1.0), balance="task"))
    episodes = np.arange(len(union.episodes))
    stream = iter(make_loader(union, None, episodes, config))
    for _ in range(7):
        next(stream)
    state = stream.get_state()
    expected = [next(stream) for _ in range(9)]
    again = iter(make_loader(union, None, episodes, config))
    again.set_state(state)
    for batch in expected:
        found = next(again)
        assert all(np.array_equal(batch[key], found[key]) for key in batch)


def test_the_weight_of_a_single_store_changes_nothing(stores):
    plain, weighted = (
        BatchSource(stores[0], None, np.arange(6), LoaderConfig(batch_size=8, mixture=mixture))
        for mixture in (Mixture(), Mixture(weights=(5.0,)))
    )
    for index in range(20):
        assert all(np.array_equal(plain[index][key], weighted[index][key]) for key in plain[index])


def test_a_wrong_number_of_weights_is_refused(union):
    with pytest.raises(UserError, match=r"data\.weights has 3 numbers for 2 stores"):
        BatchSource(union, None, np.arange(3), LoaderConfig(mixture=Mixture(weights=(1.0, 1.0, 1.0))))


def test_stores_of_other_specs_are_one_line(stores, tmp_path):
    other = make_store(tmp_path / "other", image_size=28)
    with pytest.raises(UserError, match=r"ObservationSpec\.image_size differs: 28 in data\.paths") as error:
        join_stores([stores[0], other])
    assert len(str(error.value).splitlines()) == 1


def test_stores_with_and_without_chunk_labels_are_refused(stores, tmp_path):
    spec = stores[0].spec
    episode = make_episode(0, 20)
    labels = np.zeros((len(episode.images), 8, 7), np.float32)
    write_part(tmp_path / "labelled", "episode", dataclasses.replace(episode, action_chunk=labels), spec)
    with pytest.raises(UserError, match="chunk labels of 8 control steps"):
        join_stores([stores[0], finalize(tmp_path / "labelled", spec, ACTION_SPEC)])
