import dataclasses
import itertools

import numpy as np
import pytest

from wmjax.core.errors import UserError
from wmjax.data.loader import BatchSource, LoaderConfig, make_loader
from wmjax.data.shift import MAX_SHIFT

CONFIG = LoaderConfig(batch_size=8, seed=3)
EPISODES = np.array([0, 2, 3, 5])


def take(loader, count):
    return list(itertools.islice(iter(loader), count))


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def ids(batches):
    return np.concatenate([batch["sample_id"] for batch in batches])


def test_batch_holds_what_the_stores_hold(store, latents):
    for batch in take(make_loader(store, latents, EPISODES, CONFIG), 12):
        for b, frame in enumerate(batch["sample_id"]):
            episode, step = store.frame_episode[frame], store.frame_step[frame]
            entry, data = store.episodes[episode], store.episode(episode)
            local = frame - entry["frame_start"]
            assert episode in EPISODES and batch["task"][b] == entry["task"]
            assert np.array_equal(batch["images"][b], data.images[local])
            assert np.array_equal(batch["state"][b], data.state[step])
            count = min(8, entry["length"] - step)
            assert np.array_equal(batch["action"][b, :count], data.action[step : step + count])
            assert batch["action_mask"][b].tolist() == [True] * count + [False] * (8 - count)
            assert not batch["action"][b, count:, :6].any()
            assert np.all(batch["action"][b, count:, 6] == data.action[-1, 6])
            view = int(batch["latents"][b, 0, 0, 1])
            assert np.array_equal(batch["shift"][b], latents.views[episode, view])
            past = [max(local - back, 0) for back in (2, 1, 0)]
            rows = latents.latents[view, entry["frame_start"] : entry["frame_start"] + entry["num_frames"]]
            assert np.array_equal(batch["latents"][b], rows[past].astype(np.float32))
            ahead = min(4, entry["num_frames"] - 1 - local)
            assert batch["future_mask"][b].tolist() == [True] * ahead + [False] * (4 - ahead)
            assert np.array_equal(batch["future"][b, :ahead], rows[local + 1 : local + 1 + ahead])
            assert np.all(batch["future"][b, :, :, 1] == view)


@pytest.mark.parametrize("delay", [3, 8])
def test_a_delayed_chunk_begins_later_and_nothing_else_changes(store, latents, delay):
    delayed = dataclasses.replace(CONFIG, delay=delay)
    ended = 0
    for batch, plain in zip(
        take(make_loader(store, latents, EPISODES, delayed), 12),
        take(make_loader(store, latents, EPISODES, CONFIG), 12),
        strict=True,
    ):
        same = batch.keys() - {"action", "action_mask"}
        assert all(np.array_equal(batch[key], plain[key]) for key in same)
        for b, frame in enumerate(batch["sample_id"]):
            data = store.episode(store.frame_episode[frame])
            start = store.frame_step[frame] + delay
            count = int(np.clip(len(data.action) - start, 0, 8))
            assert np.array_equal(batch["action"][b, :count], data.action[start : start + count])
            assert batch["action_mask"][b].tolist() == [True] * count + [False] * (8 - count)
            assert not batch["action"][b, count:, :6].any()
            assert np.all(batch["action"][b, count:, 6] == data.action[-1, 6])
            ended += count == 0
    assert ended  # chunks that begin after the episode's end are there, and count for nothing


def test_types_and_keys(store, latents):
    (batch,) = take(make_loader(store, latents, EPISODES, CONFIG), 1)
    dtypes = {key: str(value.dtype) for key, value in batch.items()}
    assert dtypes == {
        "images": "uint8",
        "state": "float32",
        "action": "float32",
        "action_mask": "bool",
        "task": "int32",
        "shift": "int32",
        "sample_id": "int32",
        "sample_mask": "bool",
        "latents": "float16",  # as they are stored; the training step widens them
        "future": "float16",
        "future_mask": "bool",
    }
    (without,) = take(make_loader(store, None, EPISODES, CONFIG), 1)
    assert set(batch) - set(without) == {"latents", "future", "future_mask"}
    assert np.abs(without["shift"]).max() == MAX_SHIFT


def test_every_epoch_sees_every_sample_once_in_another_order(store):
    loader = make_loader(store, None, EPISODES, dataclasses.replace(CONFIG, num_epochs=2))
    samples = np.flatnonzero(np.isin(store.frame_episode, EPISODES))
    count = len(samples)
    assert (2 * count) % 8 == 0, "choose another batch size"
    order = ids(take(loader, 10**6))
    assert len(order) == 2 * count
    first, second = order[:count], order[count:]
    assert np.array_equal(np.sort(first), samples) and np.array_equal(np.sort(second), samples)
    assert not np.array_equal(first, second) and not np.array_equal(first, samples)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_resumes_at_the_exact_next_sample(store, latents, threads):
    config = dataclasses.replace(CONFIG, threads=threads, prefetch=3 if threads else 0)
    whole = take(make_loader(store, latents, EPISODES, config), 20)
    iterator = iter(make_loader(store, latents, EPISODES, config))
    for _ in range(7):
        next(iterator)
    state = iterator.get_state()
    resumed = iter(make_loader(store, latents, EPISODES, config))
    resumed.set_state(state)
    for expected in whole[7:]:
        assert equal(next(resumed), expected)


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("with_latents", [True, False])
def test_global_batches_do_not_depend_on_the_number_of_hosts(store, latents, hosts, with_latents):
    table = latents if with_latents else None
    one = take(make_loader(store, table, EPISODES, CONFIG), 9)
    shards = [
        take(make_loader(store, table, EPISODES, dataclasses.replace(CONFIG, shard_index=i, shard_count=hosts)), 9)
        for i in range(hosts)
    ]
    for number, expected in enumerate(one):
        joined = {key: np.concatenate([shard[number][key] for shard in shards]) for key in expected}
        assert equal(joined, expected)


def test_resumes_at_the_exact_next_sample_with_another_number_of_hosts(store, latents):
    def host(count, index):
        config = dataclasses.replace(CONFIG, shard_index=index, shard_count=count)
        return iter(make_loader(store, latents, EPISODES, config))

    whole, state, done = take(make_loader(store, latents, EPISODES, CONFIG), 20), None, 0
    for hosts, batches in ((1, 5), (2, 6), (4, 6), (1, 3)):
        iterators = [host(hosts, index) for index in range(hosts)]
        for iterator in iterators:
            if state is not None:
                iterator.set_state(state)  # each host from the state that the first one of the last job saved
        for expected in whole[done : done + batches]:
            parts = [next(iterator) for iterator in iterators]
            assert equal({key: np.concatenate([part[key] for part in parts]) for key in expected}, expected)
        state, done = iterators[0].get_state(), done + batches
    assert done == len(whole)


def test_shifts_belong_to_sample_and_epoch_not_to_the_batch(store, latents):
    for table in (latents, None):
        found = []
        for size in (4, 8):
            batches = take(
                make_loader(store, table, EPISODES, dataclasses.replace(CONFIG, batch_size=size)), 32 // size
            )
            found.append((ids(batches), np.concatenate([b["shift"] for b in batches])))
        assert np.array_equal(found[0][0], found[1][0]) and np.array_equal(found[0][1], found[1][1])


def test_seed_changes_order_and_views(store, latents):
    a, b = (take(make_loader(store, latents, EPISODES, dataclasses.replace(CONFIG, seed=s)), 3) for s in (0, 1))
    assert not np.array_equal(ids(a), ids(b))


def test_future_frames_never_reach_the_history(store, latents):
    source = BatchSource(store, latents, EPISODES, CONFIG)
    for index in range(6):
        batch = source[index]
        newest = batch["latents"][:, :, 0, 0].max(axis=1) * 128
        assert np.array_equal(newest.round().astype(int), batch["sample_id"])


def test_unshuffled_single_view_is_the_store_in_order(store, latents):
    config = LoaderConfig(batch_size=8, shuffle=False, views=1, num_epochs=1, drop_remainder=False)
    batches = take(make_loader(store, latents, EPISODES, config), 100)
    expected = np.flatnonzero(np.isin(store.frame_episode, EPISODES))
    mask = np.concatenate([batch["sample_mask"] for batch in batches])
    assert np.array_equal(ids(batches)[mask], expected) and mask.sum() == len(expected)
    assert not any(batch["shift"].any() for batch in batches)
    padded = dataclasses.replace(config, batch_size=24)
    batches = take(make_loader(store, latents, EPISODES, padded), 100)
    mask = np.concatenate([batch["sample_mask"] for batch in batches])
    assert len(mask) % 24 == 0 and mask.sum() == len(expected) < len(mask)


def test_baseline_without_latents_gets_the_very_same_pixels(store, latents):
    full = take(make_loader(store, latents, EPISODES, CONFIG), 5)
    bare = take(make_loader(store, latents.table, EPISODES, CONFIG), 5)
    for a, b in zip(full, bare, strict=True):
        assert "latents" not in b
        assert all(np.array_equal(a[key], b[key]) for key in b)


def test_epochs_smaller_than_a_batch_still_fill_it(store):
    (batch,) = take(make_loader(store, None, np.array([2]), dataclasses.replace(CONFIG, batch_size=32)), 1)
    count = int((store.frame_episode == 2).sum())
    assert len(batch["sample_id"]) == 32 > 3 * count
    assert sorted(batch["sample_id"][:count]) == sorted(batch["sample_id"][count : 2 * count])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 9, "shard_count": 2}, "batch_size is 9, not divisible over 2 hosts"),
        ({"shard_index": 2, "shard_count": 2}, "shard_index is 2"),
        ({"views": 9}, "views is 9, but only"),
        ({"views": 0}, "views 0 >= 1"),
        ({"max_shift": -1}, "max_shift -1"),
        ({"batch_size": 1000, "num_epochs": 1}, "batch_size is 1000 but 1 epochs have only"),
    ],
)
def test_impossible_settings_are_refused(store, latents, change, message):
    with pytest.raises(UserError, match=message):
        make_loader(store, latents, EPISODES, dataclasses.replace(CONFIG, **change))


def test_no_episodes_are_refused(store):
    with pytest.raises(UserError, match="have no frames"):
        make_loader(store, None, np.array([], int), CONFIG)
