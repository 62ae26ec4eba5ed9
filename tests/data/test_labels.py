"""Chunk labels and injected steps: stored like every other array, learned from, and masked out of the future."""

import dataclasses

import numpy as np
import pytest

from tests.data.synthetic import LENGTHS, make_episode, make_latents
from wmjax.core.errors import UserError
from wmjax.data.episode import check_episode
from wmjax.data.labels import chunk_labels
from wmjax.data.loader import BatchSource, LoaderConfig
from wmjax.data.statistics import action_spec, column_statistics, label_statistics
from wmjax.data.store import TrainingStore, finalize, write_part
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

SPEC = dataclasses.replace(OBSERVATION_SPEC, image_size=56, simulator="synthetic")
STEPS = 8
EVERY = np.arange(len(LENGTHS))
INJECTED = slice(9, 14)
"""Control steps of every episode that are marked."""


def labelled(index, length, steps=STEPS):
    """A noise episode whose chunk labels say episode, frame and step."""
    episode = make_episode(index, length)
    frames = len(episode.images)
    chunk = np.zeros((frames, steps, 7), np.float32)
    chunk[..., 0], chunk[..., 6] = index / 10, 1.0
    chunk[..., 1] = np.arange(frames)[:, None] / 100
    chunk[..., 2] = np.arange(steps) / 100
    injected = np.zeros(length, bool)
    injected[INJECTED] = True
    return dataclasses.replace(episode, action_chunk=chunk, injected=injected)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    for index, length in enumerate(LENGTHS):
        write_part(folder, f"episode-{index:03d}", labelled(index, length), SPEC, ACTION_SPEC)
    return finalize(folder, SPEC, ACTION_SPEC)


def test_they_are_stored_hashed_and_read_back(store):
    assert {"action_chunk.npy", "injected.npy"} <= set(store.manifest["files"])
    again = TrainingStore(store.folder)
    for index, length in enumerate(LENGTHS):
        expected, found = labelled(index, length), again.episode(index)
        np.testing.assert_array_equal(found.action_chunk, expected.action_chunk)
        np.testing.assert_array_equal(found.injected, expected.injected)


def test_a_changed_label_is_found(store, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in store.folder.glob("*.*"):
        (copy / file.name).write_bytes(file.read_bytes())
    labels = np.load(copy / "action_chunk.npy")
    labels[0, 0, 0] += 0.5
    np.save(copy / "action_chunk.npy", labels)
    with pytest.raises(UserError, match=r"action_chunk\.npy: sha256"):
        TrainingStore(copy).verify()


@pytest.mark.parametrize("delay", [0, 4, 12])
def test_the_target_is_the_label_of_the_frame_that_the_chunk_begins_at(store, delay):
    source = BatchSource(store, None, EVERY, LoaderConfig(batch_size=16, chunk=5, delay=delay))
    ended = 0
    for number in range(8):
        batch = source[number]
        for row, frame in enumerate(batch["sample_id"]):
            entry = store.episodes[store.frame_episode[frame]]
            later = frame + delay // 4
            exists = later < entry["frame_start"] + entry["num_frames"]
            assert batch["action_mask"][row].tolist() == [exists] * 5
            ended += not exists
            if exists:
                np.testing.assert_array_equal(batch["action"][row], store.action_chunk[later, :5])
            else:
                assert not batch["action"][row, :, :6].any()
    assert bool(ended) == bool(delay)


def test_labels_that_are_too_short_or_not_there_are_refused(store):
    with pytest.raises(UserError, match=r"model\.chunk is 9, but the chunk labels .* have 8 control steps"):
        BatchSource(store, None, EVERY, LoaderConfig(chunk=9))
    with pytest.raises(UserError, match=r"train\.delay is 6, .* every 4 control steps only; choose a multiple of 4"):
        BatchSource(store, None, EVERY, LoaderConfig(delay=6))


def test_the_future_ends_at_an_injected_step(store, tmp_path):
    latents = make_latents(tmp_path, store)
    batch = BatchSource(store, latents, EVERY, LoaderConfig(batch_size=52, num_epochs=1))[0]
    masked = 0
    for row, frame in enumerate(batch["sample_id"]):
        entry, step = store.episodes[store.frame_episode[frame]], store.frame_step[frame]
        for ahead in range(4):
            later = step + 4 * (ahead + 1)
            exists = later < entry["length"]
            disturbed = step < INJECTED.stop and later > INJECTED.start
            assert batch["future_mask"][row, ahead] == (exists and not disturbed)
            masked += exists and disturbed
    assert masked


def test_a_past_target_is_what_came_before_the_history_and_no_injected_step(store, tmp_path):
    latents = make_latents(tmp_path, store)
    config = LoaderConfig(batch_size=52, num_epochs=1, target="past")
    batch = BatchSource(store, latents, EVERY, config)[0]
    future = BatchSource(store, latents, EVERY, dataclasses.replace(config, target="future"))[0]
    np.testing.assert_array_equal(batch["latents"], future["latents"])
    found = masked = 0
    for row, frame in enumerate(batch["sample_id"]):
        entry, step = store.episodes[store.frame_episode[frame]], store.frame_step[frame]
        for back in range(4):
            earlier = frame - 3 - back
            exists = earlier >= entry["frame_start"]
            disturbed = exists and store.frame_step[earlier] < INJECTED.stop and step > INJECTED.start
            assert batch["future_mask"][row, back] == (exists and not disturbed)
            masked += disturbed
            if exists:
                found += 1
                np.testing.assert_array_equal(batch["future"][row, back][:, 0], np.float32(np.float16(earlier / 128)))
    assert found and masked


def test_statistics_are_of_the_labels_that_are_learned(store):
    found = label_statistics(store, EVERY[:2], 5)
    frames = sum(store.episodes[index]["num_frames"] for index in (0, 1))
    np.testing.assert_allclose(found.mean, store.action_chunk[:frames, :5].reshape(-1, 7).mean(0), atol=1e-6)
    assert found.count == frames * 5
    assert not np.allclose(found.mean, column_statistics(store, "action", EVERY[:2]).mean, atol=1e-3)
    assert action_spec(store, EVERY[:2], 5, "mean_std").offset[1] == pytest.approx(found.mean[1])


def test_parts_with_and_without_labels_are_not_mixed(tmp_path):
    write_part(tmp_path, "a", labelled(0, 29), SPEC, ACTION_SPEC)
    write_part(tmp_path, "b", make_episode(1, 41), SPEC, ACTION_SPEC)
    with pytest.raises(UserError, match=r"b\.npz: has the rows none of optional arrays, .* same settings"):
        finalize(tmp_path, SPEC, ACTION_SPEC)
    write_part(tmp_path, "b", labelled(1, 41, steps=4), SPEC, ACTION_SPEC)
    with pytest.raises(UserError, match=r"\(4, 7\).*\(8, 7\)"):
        finalize(tmp_path, SPEC, ACTION_SPEC)


def test_bad_labels_are_named():
    good = labelled(0, 29)
    for changes, message in (
        (
            {"action_chunk": good.action_chunk[:-1]},
            r"action_chunk has shape \(7, 8, 7\), expected \[8, label_steps, 7\]",
        ),
        ({"action_chunk": good.action_chunk * np.nan}, r"action_chunk\[0, 0, 0\] is nan"),
        ({"action_chunk": good.action_chunk + 0.5}, r"action_chunk\[0, 0, 6\] is 1\.5, outside \[-1, 1\]"),
        ({"injected": good.injected[1:]}, r"injected has shape \(28,\), expected \(29,\)"),
    ):
        with pytest.raises(UserError, match=message):
            check_episode(dataclasses.replace(good, **changes), SPEC, ACTION_SPEC, "episode")


def test_a_store_without_labels_is_learned_from_as_before(store, tmp_path):
    write_part(tmp_path, "a", make_episode(0, 29), SPEC, ACTION_SPEC)
    plain = finalize(tmp_path, SPEC, ACTION_SPEC)
    assert plain.action_chunk is None and plain.injected is None
    action, mask = chunk_labels(plain, np.array([0, 7]), 8, 0)
    np.testing.assert_array_equal(action[0], plain.action[:8])
    assert mask.sum() == 9
