"""The strip under a video: predicted latents above the true ones, at the right frames."""

import av
import numpy as np

from tests.rollout.fake_policy import FakePolicy
from wmjax.policy.policy_actor import PolicyActor
from wmjax.reporting.video import decision_strip as decided
from wmjax.reporting.video.clips import MINIMUM_HEIGHT
from wmjax.reporting.video.imagination_strip import CELL, GAP, LEFT, LINE, UNKNOWN, draw_strips
from wmjax.reporting.video.nearest_frames import Album, spread
from wmjax.rollout.decisions import Imagined

FUTURE = 2


def cell(strip: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = LINE + row * (CELL + GAP), LEFT + column * (CELL + GAP)
    return strip[top : top + CELL, left : left + CELL]


def prophecies(every: int, frames: int) -> list[Imagined]:
    """Decisions that know the future, every so many frames."""
    truth = np.random.default_rng(0).normal(size=(frames + FUTURE, 16, 8)).astype(np.float32)
    return [
        # Before the first frame, copies of it, as the policy's windows have them.
        Imagined(f, truth[np.maximum(np.arange(f - 1, f + 1), 0)], truth[f + 1 : f + 1 + FUTURE])
        for f in range(0, frames, every)
    ]


def test_a_true_prediction_looks_like_what_came_and_the_unknown_is_grey() -> None:
    strips = draw_strips(prophecies(1, 5), 5)
    assert strips.shape[0] == 5
    for frame, strip in enumerate(strips):
        for ahead in range(1 + FUTURE):
            predicted, came = cell(strip, 0, ahead), cell(strip, 1, ahead)
            assert predicted.std() > 10  # sixteen places of different colours
            if frame + ahead < 5:
                np.testing.assert_array_equal(predicted, came)
            else:
                assert (came == UNKNOWN).all()


def test_a_false_prediction_looks_different() -> None:
    imagined = prophecies(1, 5)
    wrong = [Imagined(m.frame, m.observed, -m.predicted) for m in imagined]
    strip = draw_strips(wrong, 5)[0]
    np.testing.assert_array_equal(cell(strip, 0, 0), cell(strip, 1, 0))
    assert (cell(strip, 0, 1) != cell(strip, 1, 1)).mean() > 0.5


def test_a_frame_shows_the_newest_decision_that_had_seen_it() -> None:
    strips = draw_strips(prophecies(2, 6), 7)
    for first in (0, 2, 4):
        np.testing.assert_array_equal(strips[first], strips[first + 1])
    np.testing.assert_array_equal(strips[4], strips[6])
    assert (strips[0] != strips[2]).any()


def test_every_observed_frame_has_a_true_latent() -> None:
    """Two of them here; of three frames per decision the oldest stays grey."""
    strips = draw_strips(prophecies(2, 6), 7)
    for strip in strips[:4]:
        np.testing.assert_array_equal(cell(strip, 0, 1), cell(strip, 1, 1))
    strip = draw_strips(prophecies(3, 7), 7)[0]
    assert (cell(strip, 1, 1) == UNKNOWN).all()
    np.testing.assert_array_equal(cell(strip, 0, 2), cell(strip, 1, 2))


def test_the_third_row_holds_the_training_frames_nearest_to_what_was_predicted() -> None:
    imagined, rng = prophecies(1, 5), np.random.default_rng(1)
    truth = np.concatenate([moment.observed[-1:] for moment in imagined])
    pictures = rng.integers(0, 256, (9, 2, CELL, CELL, 3), np.uint8)
    frames = np.array([8, 2, 5, 0, 1])  # of the store, those that the episode passed through
    album = Album(pictures, frames, 1, truth + rng.normal(size=truth.shape).astype(np.float32) * 0.1)
    plain, strips = draw_strips(imagined, 5), draw_strips(imagined, 5, album)
    np.testing.assert_array_equal(strips[:, : plain.shape[1]], plain)
    for frame, strip in enumerate(strips):
        for ahead in range(min(1 + FUTURE, 5 - frame)):
            np.testing.assert_array_equal(cell(strip, 2, ahead), pictures[frames[frame + ahead], 1])


def test_an_album_is_spread_over_the_store() -> None:
    assert spread(5, 10).tolist() == [0, 1, 2, 3, 4] and spread(9, 16_000_000 // 3).tolist() == [0, 4, 8]
    assert len(spread(10**6, 16 * 192)) == 2000 and spread(7, 10**9).tolist() == [0]


class Prophet(FakePolicy):
    """Also says what it imagines."""

    def __call__(self, carry, observation, keys, future=None):
        carry, chunk, info = super().__call__(carry, observation, keys, future)
        seen, predicted = (np.ones((self.batch_size, count, 4, 8), np.float32) for count in (3, FUTURE))
        return carry, chunk, {**info, "observed": seen, "imagined": predicted}


def test_an_evaluations_videos_have_both_strips_and_their_numbers_do_not_change(run, tmp_path) -> None:
    records = run(PolicyActor(Prophet(2, 2), seed=3), videos=1)
    assert records and all(set(record.info) == {"mean", "decisions"} for record in records.values())
    for path in (tmp_path / "out" / "videos").iterdir():
        with av.open(str(path)) as container:
            assert container.streams.video[0].height > MINIMUM_HEIGHT + 48 + 2 * CELL + 7 * decided.CELL
