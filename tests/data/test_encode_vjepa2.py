"""Latent export with a fake encoder: causality, clamping at episode starts, resuming, refusals."""

import dataclasses
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from wmjax.core.errors import UserError
from wmjax.core.specs import EncoderSpec
from wmjax.data.latents import LatentStore
from wmjax.data.shift import shift_images
from wmjax.data.store import EpisodeData, TrainingStore, finalize, write_part
from wmjax.encoders.encode import EpisodeClips, encode_clips, encode_store, read_ahead, verify_latents
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

SIZE = 16
SPEC = dataclasses.replace(OBSERVATION_SPEC, image_size=SIZE)


def make_store(folder: Path, lengths=(13, 6), seed: int = 0) -> TrainingStore:
    """A training store of noise."""
    for index, length in enumerate(lengths):
        rng = np.random.default_rng([seed, index])
        steps = np.arange(0, length, 4, dtype=np.int32)
        action = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
        episode = EpisodeData(
            images=rng.integers(0, 256, (len(steps), 2, SIZE, SIZE, 3), np.uint8),
            frame_step=steps,
            state=rng.normal(size=(length, 8)).astype(np.float32),
            action=action,
            executed=action,
            settled_state=np.zeros(3),
            meta={"suite": "s", "task_id": 0, "instruction": "do"},
        )
        write_part(folder, f"{index:03d}", episode, SPEC)
    return finalize(folder, SPEC, ACTION_SPEC)


class FakeEncoder:
    """The last tubelet's mean colours, plus a trace of the older frames."""

    backend = "jax"
    spec = EncoderSpec(cameras=("agentview",), name="fake", weights_hash="0", tokens_per_frame=4, dim=3)

    def __init__(self, fail_after: int | None = None, gain: float = 1.0) -> None:
        self.left, self.gain, self.seen = fail_after, gain, 0

    def encode(self, clips):
        if self.left is not None and self.seen >= self.left:
            raise KeyboardInterrupt
        self.seen += len(clips)
        x = clips.astype(np.float32) / 255
        cells = x[:, -2:].mean(1).reshape(len(x), 2, 8, 2, 8, 3).mean((2, 4)).reshape(len(x), 4, 3)
        return self.gain * (cells + 0.1 * x[:, :2].mean((1, 2, 3))[:, None])


def test_rows_are_the_clips_that_end_at_each_frame(tmp_path: Path):
    store = make_store(tmp_path / "data")
    latents = encode_store(store, tmp_path / "z", FakeEncoder(), views=3, batch=5)
    latents.check(store)
    encoder = FakeEncoder()
    assert latents.latents.shape == (3, 6, 4, 3) and (latents.views[:, 0] == 0).all()
    for entry in store.episodes:
        frames = np.array(store.frames[entry["frame_start"] : entry["frame_start"] + entry["num_frames"], 0])
        for f in range(len(frames)):
            clip = frames[[max(0, f + k) for k in (-3, -2, -1, 0)]]
            for view, (dy, dx) in enumerate(latents.views[entry["index"]]):
                expected = encoder.encode(shift_images(clip, int(dy), int(dx))[None])[0].astype(np.float16)
                np.testing.assert_array_equal(latents.latents[view, entry["frame_start"] + f], expected)


def test_perturbing_a_future_frame_leaves_the_latent_bit_identical():
    frames = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), np.uint8)
    changed = frames.copy()
    changed[4:] = 255 - changed[4:]
    before, after = (encode_clips(FakeEncoder().encode, EpisodeClips(f, [(1, -2)], 4), 8) for f in (frames, changed))
    np.testing.assert_array_equal(before[:4], after[:4])
    assert (before[4:] != after[4:]).any()


def test_an_episode_does_not_depend_on_the_one_before(tmp_path: Path):
    both = encode_store(make_store(tmp_path / "a"), tmp_path / "za", FakeEncoder(), views=1)
    folder = tmp_path / "b"
    make_store(folder)
    store = make_store(folder, lengths=(5,), seed=7)  # replaces the first episode only
    other = encode_store(store, tmp_path / "zb", FakeEncoder(), views=1)
    np.testing.assert_array_equal(both.latents[:, 4:], other.latents[:, 2:])


def test_memory_holds_each_frame_once_however_long_the_clips(tmp_path: Path):
    store, encoder = make_store(tmp_path / "data", lengths=(800,)), FakeEncoder()
    encoder.spec = dataclasses.replace(encoder.spec, clip_length=64)
    frame, frames = SIZE * SIZE * 3, 200
    encode_store(store, tmp_path / "warm", FakeEncoder(), views=1, batch=8)  # what is imported on use
    tracemalloc.start()
    encode_store(store, tmp_path / "z", encoder, views=1, batch=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < frames * 64 * frame / 2, "the clips of the episode, or half of them, are in memory at once"


def test_a_killed_export_resumes_without_rework(tmp_path: Path):
    store = make_store(tmp_path / "data")
    whole = encode_store(store, tmp_path / "whole", FakeEncoder(), views=2)
    with pytest.raises(KeyboardInterrupt):
        encode_store(store, tmp_path / "z", FakeEncoder(fail_after=8), views=2)
    with pytest.raises(UserError):
        LatentStore(tmp_path / "z")
    second = FakeEncoder()
    resumed = encode_store(store, tmp_path / "z", second, views=2)
    assert second.seen == 8  # only the second episode: 2 frames x 2 views, padded to 8
    np.testing.assert_array_equal(resumed.latents, whole.latents)
    assert resumed.manifest == whole.manifest


def test_shards_together_make_the_same_store(tmp_path: Path):
    store = make_store(tmp_path / "data", lengths=(5, 9, 4))
    whole = encode_store(store, tmp_path / "whole", FakeEncoder())
    assert encode_store(store, tmp_path / "z", FakeEncoder(), shard=(1, 2)) is None
    merged = encode_store(store, tmp_path / "z", FakeEncoder(), shard=(0, 2))
    np.testing.assert_array_equal(merged.latents, whole.latents)


def test_verify_finds_another_encoder_and_refusals_are_clear(tmp_path: Path):
    store = make_store(tmp_path / "data")
    latents = encode_store(store, tmp_path / "z", FakeEncoder())
    assert verify_latents(store, latents, FakeEncoder()) < 1e-3
    with pytest.raises(UserError, match="differs by"):
        verify_latents(store, latents, FakeEncoder(gain=1.02))
    with pytest.raises(UserError, match="episode count differs"):
        verify_latents(make_store(tmp_path / "other", lengths=(5, 9, 4)), latents, FakeEncoder())
    # A channel of 30 times the RMS: storing it as float16 rounds away more than the bound, and that is no fault.
    outlier = FakeEncoder()
    real = outlier.__class__.encode
    loud = type(
        "Loud", (FakeEncoder,), {"encode": lambda self, clips: 0.1 * real(self, clips) + np.float32([0.0, 0.0, 37.021])}
    )
    spiked = encode_store(store, tmp_path / "loud", loud())
    assert np.abs(spiked.latents.astype(np.float32) - 37.021).min() > 0
    assert verify_latents(store, spiked, loud()) < 1e-4
    with pytest.raises(UserError, match="differs by"):
        verify_latents(store, spiked, type("Off", (loud,), {"encode": lambda self, x: loud.encode(self, x) + 0.2})())
    side = FakeEncoder()
    side.spec = EncoderSpec(name="fake", cameras=("sideview",), dim=3)
    with pytest.raises(UserError, match="sideview"):
        encode_store(store, tmp_path / "z2", side)
    assert not (tmp_path / "z2").exists()


def test_views_with_one_shift_are_encoded_once_and_copied(tmp_path: Path):
    store = make_store(tmp_path / "data", lengths=(13, 29))
    once, many = FakeEncoder(), FakeEncoder()
    single = encode_store(store, tmp_path / "one", once, views=1)
    unshifted = encode_store(store, tmp_path / "z", many, views=3, max_shift=0)
    assert many.seen == once.seen == 16  # 4 and 8 frames, padded to 8
    for view in unshifted.latents:
        np.testing.assert_array_equal(view, single.latents[0])
    mixed, encoder = encode_store(store, tmp_path / "m", FakeEncoder(), views=12, max_shift=1), FakeEncoder()
    for entry, shifts in zip(store.episodes, mixed.views, strict=True):
        assert len({tuple(shift) for shift in shifts.tolist()}) < 12
        span = slice(entry["frame_start"], entry["frame_start"] + entry["num_frames"])
        for view, shift in enumerate(shifts):
            expected = encoder.encode(EpisodeClips(store.frames[span, 0], [shift], 4)[:]).astype(np.float16)
            np.testing.assert_array_equal(mixed.latents[view, span], expected)


def test_the_next_episode_is_read_while_one_is_encoded_and_no_more():
    begun = [threading.Event() for _ in range(4)]

    def read(index: int) -> np.ndarray:
        begun[index].set()
        if index == 3:
            raise UserError("damaged")
        return np.full(1, index)

    seen = []
    with pytest.raises(UserError, match="damaged"):
        for index, found in read_ahead(read, [0, 1, 2, 3]):
            assert begun[index + 1].wait(60), "not read ahead"
            assert not any(event.is_set() for event in begun[index + 2 :])
            seen.append((index, int(found[0])))
    assert seen == [(0, 0), (1, 1), (2, 2)]
    assert list(read_ahead(read, [])) == []


class Later:
    """Latents that are computed when they are read, and say so."""

    def __init__(self, latents: np.ndarray, number: int, log: list[str]) -> None:
        self._latents, self._number, self._log = latents, number, log

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        self._log.append(f"read {self._number}")
        return self._latents


def test_the_next_batch_is_given_to_the_encoder_before_the_last_is_read():
    clips = EpisodeClips(np.random.default_rng(0).integers(0, 256, (21, SIZE, SIZE, 3), np.uint8), [(0, 0)], 4)
    log, fake = [], FakeEncoder()

    def encode(part):
        number = sum(entry.startswith("begin") for entry in log)
        log.append(f"begin {number}")
        return Later(fake.encode(part), number, log)

    found = encode_clips(encode, clips, 6)
    np.testing.assert_array_equal(found, fake.encode(clips[:]))
    assert log == [
        "begin 0", "begin 1", "read 0", "begin 2", "read 1", "begin 3", "read 2", "read 3"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"views": 0}, "views is 0; set it to at least 1"),
        ({"max_shift": -1}, "max-shift is -1; set it to at least 0"),
        ({"batch": 0}, "batch is 0; set it to at least 1"),
    ],
)
def test_numbers_without_sense_are_refused_before_anything_is_written(tmp_path: Path, numbers, message):
    store = make_store(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        encode_store(store, tmp_path / "z", FakeEncoder(), **numbers)
    assert not (tmp_path / "z").exists()
