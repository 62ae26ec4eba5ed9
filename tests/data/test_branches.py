"""Branches: stored and encoded with the episode that they leave, and the future of the target ``branch``."""

import dataclasses

import numpy as np
import pytest

from tests.data.synthetic import LENGTHS, make_episode, make_latents, make_store
from wmjax.core.errors import UserError
from wmjax.core.specs import EncoderSpec
from wmjax.data.episode import check_episode
from wmjax.data.loader import BatchSource, LoaderConfig
from wmjax.data.shift import shift_images
from wmjax.data.store import TrainingStore, finalize, write_part
from wmjax.data.union import UnionLatents, UnionStore
from wmjax.encoders.encode import encode_store
from wmjax.models.world.config import WorldMemoryConfig
from wmjax.sim.libero import ACTION_SPEC

BRANCH = 3
EVERY = np.arange(len(LENGTHS))


class ClipEncoder:
    """Latents that say which pixels of which frame of a clip they come from."""

    spec = EncoderSpec(cameras=("robot0_eye_in_hand",), name="clip", tokens_per_frame=4, dim=3)
    backend = "jax"

    def encode(self, clips):
        """The four frames' values at one place."""
        return clips[:, :, 20, 30].astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("branched"), branch=BRANCH)


@pytest.fixture(scope="module")
def latents(store, tmp_path_factory):
    return make_latents(tmp_path_factory.mktemp("latents"), store)


def test_they_are_stored_hashed_and_read_back(store):
    again = TrainingStore(store.folder)
    for index, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(
            again.episode(index).branch_images, make_episode(index, length, branch=BRANCH).branch_images
        )
    assert "branch_images.npy" in store.manifest["files"] and again.branch_images.shape[1] == BRANCH


def test_the_clip_of_a_branch_frame_is_what_was_seen_and_then_the_branch(store, tmp_path):
    found = encode_store(store, tmp_path / "z", ClipEncoder(), views=2, batch=7)
    plain = make_store(tmp_path / "plain")
    own = encode_store(plain, tmp_path / "own", ClipEncoder(), views=2, batch=7)
    np.testing.assert_array_equal(found.latents, own.latents)
    assert own.branches is None and found.branches.shape == (2, len(store.frame_step), BRANCH, 4, 3)
    assert found.spec == own.spec, "the statistics are those of the episodes' own frames"
    for entry in store.episodes[:2]:
        first = entry["frame_start"]
        for frame in range(entry["num_frames"]):
            seen = [store.frames[first + max(0, frame + back), 1] for back in (-3, -2, -1, 0)]
            for step in range(BRANCH):
                clip = np.stack([*seen, *store.branch_images[first + frame, : step + 1, 1]])[-4:]
                for view, (dy, dx) in enumerate(found.views[entry["index"]]):
                    expected = ClipEncoder().encode(shift_images(clip, int(dy), int(dx))[None])[0].astype(np.float16)
                    np.testing.assert_array_equal(found.branches[view, first + frame, step], expected)


@pytest.mark.parametrize(("delay", "future"), [(0, 3), (0, 2), (4, 4), (8, 4), (16, 4)])
def test_the_future_is_recorded_until_the_delay_ends_and_then_the_branch(store, latents, delay, future):
    config = LoaderConfig(batch_size=52, num_epochs=1, delay=delay, future=future, target="branch")
    batch, ahead, ended = BatchSource(store, latents, EVERY, config)[0], delay // 4, 0
    assert batch["future"].shape[:2] == batch["future_mask"].shape == (52, future)
    for row, frame in enumerate(batch["sample_id"]):
        entry = store.episodes[store.frame_episode[frame]]
        end = entry["frame_start"] + entry["num_frames"]
        for place in range(1, future + 1):
            exists = frame + min(place, ahead) < end
            assert batch["future_mask"][row, place - 1] == exists
            ended += not exists
            if exists:
                index, of_branch = batch["future"][row, place - 1, 0, :2]
                assert index == np.float32((frame + place) / 128) and (of_branch == -1) == (place > ahead)
    assert bool(ended) == bool(delay)


def test_a_branch_after_an_injected_step_is_masked_until_it_begins(tmp_path):
    for index, length in enumerate(LENGTHS):
        injected = np.zeros(length, bool)
        injected[9:14] = True
        episode = dataclasses.replace(make_episode(index, length, branch=BRANCH), injected=injected)
        write_part(tmp_path, f"episode-{index:03d}", episode)
    spec = make_store(tmp_path / "spec").spec
    store = finalize(tmp_path, spec, ACTION_SPEC)
    config = LoaderConfig(batch_size=52, num_epochs=1, delay=4, future=3, target="branch")
    batch = BatchSource(store, make_latents(tmp_path / "latents", store), EVERY, config)[0]
    for row, frame in enumerate(batch["sample_id"]):
        step = store.frame_step[frame]
        # Behind 4 control steps a new branch begins, in which nothing is provoked.
        disturbed = step < 14 and step + 4 > 9
        exists = step + 4 < store.episodes[store.frame_episode[frame]]["length"]
        assert batch["future_mask"][row].tolist() == [exists and not disturbed] * 3


def test_several_stores_have_the_branches_of_each(store, latents, tmp_path):
    union, both = UnionStore([store, store]), UnionLatents([latents, latents])
    config = LoaderConfig(batch_size=104, shuffle=False, future=3, target="branch", num_epochs=1, views=1)
    joined = BatchSource(union, both, np.arange(2 * len(EVERY)), config)[0]
    alone = BatchSource(store, latents, EVERY, dataclasses.replace(config, batch_size=52))[0]
    for half in (slice(52), slice(52, None)):
        np.testing.assert_array_equal(joined["future"][half], alone["future"])
    with pytest.raises(UserError, match=r"has branches of 0 frames, .* of 3; record both with the same data\.demonstr"):
        UnionStore([store, make_store(tmp_path)])


def test_what_does_not_fit_is_refused_with_both_numbers(store, latents, tmp_path):
    config = LoaderConfig(future=4, target="branch")
    with pytest.raises(UserError, match=r"model\.prophet\.future 4 and train\.delay 0, which need 4 .* have 3; record"):
        BatchSource(store, latents, EVERY, config)
    with pytest.raises(UserError, match=r"train\.delay is 6, but the branches .* every 4 control steps only"):
        BatchSource(store, latents, EVERY, dataclasses.replace(config, delay=6))
    plain = make_store(tmp_path / "plain")
    with pytest.raises(UserError, match=r"but the branches in .* have 0"):
        BatchSource(plain, make_latents(tmp_path / "z", plain), EVERY, config)
    with pytest.raises(
        UserError, match=r"memory\.target is 'branch' with memory\.input 'copy' and memory\.world_loss 0"
    ):
        WorldMemoryConfig(input="copy", world_loss=0.0, target="branch")
    episode = make_episode(0, 29, branch=BRANCH)
    with pytest.raises(
        UserError, match=r"branch_images has shape \(8, 3, 1, .*expected \[8, branch_frames, 2, 56, 56, 3"
    ):
        check_episode(dataclasses.replace(episode, branch_images=episode.branch_images[:, :, :1]), None, None, "x")
