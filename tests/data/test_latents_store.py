import dataclasses

import numpy as np
import pytest

from tests.data.synthetic import episode_latents, make_latents, make_store
from wmjax.core.errors import UserError
from wmjax.core.specs import EncoderSpec
from wmjax.data.latents import LatentStore, LatentWriter
from wmjax.data.shift import draw_views

SPEC = EncoderSpec(cameras=("agentview",), name="synthetic", tokens_per_frame=4, dim=6)


def writer(folder, store, *, spec=SPEC, views=2, seed=0, backend="jax", dtype="float16"):
    return LatentWriter(folder, spec, store, draw_views(len(store.episodes), views, seed), backend, dtype)


def fill(latent_writer, store, episodes):
    for index in episodes:
        latent_writer.write(index, episode_latents(store, index, latent_writer.views.shape[1], 2, 6))


def test_resumed_export_equals_an_uninterrupted_one(tmp_path, store):
    whole = writer(tmp_path / "a", store)
    fill(whole, store, whole.pending())
    first = writer(tmp_path / "b", store)
    fill(first, store, first.pending()[1:4])
    second = writer(tmp_path / "b", store)
    assert second.pending() == [0, 4, 5]
    with pytest.raises(UserError, match=r"3 episodes are not encoded yet \(0, 4, 5\)"):
        second.finish()
    fill(second, store, second.pending())
    a, b = whole.finish(), second.finish()
    assert a.hash == b.hash and np.array_equal(a.latents, b.latents)
    assert writer(tmp_path / "b", store).pending() == []
    assert writer(tmp_path / "b", store).finish().hash == b.hash


def test_rows_are_the_training_store_s_frames(store, latents):
    latents.check(store)
    latents.verify()
    frames = np.arange(len(store.frame_step), dtype=np.float16) / 128
    for view in range(latents.views.shape[1]):
        assert np.array_equal(latents.latents[view, :, 0, 0], frames)
        assert np.all(latents.latents[view, :, :, 1] == view)


def test_statistics_are_those_of_view_zero(latents):
    values = latents.latents[0].astype(np.float64).reshape(-1, 6)
    np.testing.assert_allclose(latents.spec.mean, values.mean(axis=0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(latents.spec.std, values.std(axis=0), rtol=1e-6, atol=1e-7)
    assert LatentStore(latents.folder).spec == latents.spec


def test_an_episode_s_latents_do_not_depend_on_its_neighbours(tmp_path, store):
    one, other = writer(tmp_path / "a", store), writer(tmp_path / "b", store)
    fill(one, store, one.pending())
    for index in other.pending():
        values = episode_latents(store, index, 2, 2, 6)
        other.write(index, values if index == 3 else values + 1)
    a, b, entry = one.finish(), other.finish(), store.episodes[3]
    span = slice(entry["frame_start"], entry["frame_start"] + entry["num_frames"])
    assert np.array_equal(a.latents[:, span], b.latents[:, span])
    assert not np.array_equal(a.latents[:, : span.start], b.latents[:, : span.start])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"spec": EncoderSpec(cameras=("agentview",), name="other", tokens_per_frame=4, dim=6)},
            "another encoder_spec",
        ),
        ({"views": 3}, "another views"),
        ({"seed": 1}, "another views"),
        ({"backend": "torch"}, "another backend: 'jax' there, 'torch' now"),
        ({"dtype": "float32"}, "another dtype: 'float16' there, 'float32' now"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_another_plan_never_overwrites(tmp_path, store, change, message, finished):
    first = writer(tmp_path, store)
    fill(first, store, first.pending())
    if finished:
        first.finish()
    with pytest.raises(UserError, match=message):
        writer(tmp_path, store, **change)
    assert writer(tmp_path, store).finish().latents.shape[0] == 2


def test_latents_of_another_store_are_refused(tmp_path, store, latents):
    same_size = make_store(tmp_path / "a", image_size=14)
    with pytest.raises(UserError, match="source hash differs"):
        latents.check(same_size)
    shorter = make_store(tmp_path / "b", image_size=28, lengths=(29, 41))
    with pytest.raises(UserError, match=r"frame count differs: 52 in .*, 19 in"):
        latents.check(shorter)
    with pytest.raises(UserError, match="another source"):
        first = writer(tmp_path / "c", store)
        fill(first, store, [0])
        writer(tmp_path / "c", same_size)


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN"), (1e6, "beyond float16")])
def test_values_that_float16_cannot_hold_are_refused(tmp_path, store, value, message):
    one = writer(tmp_path, store)
    values = episode_latents(store, 0, 2, 2, 6)
    values[1, 2, 3, 4] = value
    with pytest.raises(UserError, match=message):
        one.write(0, values)
    with pytest.raises(UserError, match="expected"):
        one.write(0, values[:, :-1])
    assert 0 in one.pending()


@pytest.mark.parametrize("finished", [False, True])
def test_float32_is_kept_and_named_and_float16_is_not(tmp_path, store, finished):
    one = writer(tmp_path / "a", store, dtype="float32")
    fill(one, store, one.pending())
    if finished:
        latents, values = one.finish(), episode_latents(store, 0, 2, 2, 6).astype(np.float32)
        assert latents.latents.dtype == np.float32 and latents.manifest["dtype"] == "float32"
        assert np.array_equal(latents.latents[:, : values.shape[1]], values)
    with pytest.raises(UserError, match="another dtype: 'float32' there, 'float16' now"):
        writer(tmp_path / "a", store)
    # What today's stores and begun exports have always said, so that they are found and continued.
    assert set(writer(tmp_path / "b", store).plan) == {"encoder_spec", "source", "backend", "views"}


def test_parts_that_another_process_merged_are_not_made_again(tmp_path, store):
    slow = writer(tmp_path, store)
    fast = writer(tmp_path, store)
    fill(fast, store, fast.pending())
    fast.finish()
    assert slow.pending() == []
    fill(slow, store, [0])
    assert slow.finish().hash == LatentStore(tmp_path).hash and not (tmp_path / "parts").exists()


def test_statistics_of_some_episodes_are_those_of_their_frames(tmp_path):
    store = make_store(tmp_path / "store", image_size=28, lengths=(9, 13, 11))
    latents = make_latents(tmp_path / "latents", store, grid=2, dim=6)
    for train, held_out in (([0], [1, 2]), ([0, 2], [1]), ([2], [0, 1]), ([0, 1, 2], [])):
        found = latents.training_spec(store, np.array(train), np.array(held_out, int))
        rows = np.isin(store.frame_episode, train)
        values = np.asarray(latents.latents[0])[rows].astype(np.float64).reshape(-1, 6)
        np.testing.assert_allclose(found.mean, values.mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.std, values.std(axis=0), rtol=1e-5, atol=1e-6)
        assert dataclasses.replace(found, mean=(), std=()) == dataclasses.replace(latents.spec, mean=(), std=())
    assert found == latents.spec  # of all episodes


def test_a_damaged_store_is_found(tmp_path, store):
    one = writer(tmp_path, store)
    fill(one, store, one.pending())
    found = one.finish()
    content = bytearray((tmp_path / "latents.npy").read_bytes())
    content[-3] ^= 1
    (tmp_path / "latents.npy").write_bytes(content)
    with pytest.raises(UserError, match="sha256"):
        found.verify()
    (tmp_path / "latents.npy").write_bytes(content[:-1])
    with pytest.raises(UserError, match="bytes, its manifest says"):
        LatentStore(tmp_path)
