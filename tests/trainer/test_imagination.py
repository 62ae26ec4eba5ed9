"""Imagination: retrieved frames and colours against cases whose answer is known."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.synthetic import make_store
from wmjax.diagnostics.imagined_frames import (
    COPY,
    PREDICTED,
    RANDOM,
    TRUE,
    Bank,
    Imagined,
    imagination_section,
    imagine,
)
from wmjax.diagnostics.picture import CELL, GAP, LEFT, draw
from wmjax.diagnostics.samples import LatentWindows

FUTURE, TOKENS, DIM = 3, 4, 6
RNG = np.random.default_rng


def line(time: np.ndarray) -> np.ndarray:
    """Latents that move along one direction as the end effector moves along x: 1 cm per frame."""
    direction = RNG(0).normal(size=(TOKENS, DIM))
    return (np.asarray(time)[..., None, None] * direction).astype(np.float32)


def windows(start: np.ndarray, episode: np.ndarray, mask: np.ndarray | None = None) -> LatentWindows:
    """Samples at times ``start`` of episodes that move by one frame per frame."""
    times = start[:, None] + np.arange(1 + FUTURE)
    position = np.zeros((*times.shape, 3), np.float32)
    position[..., 0] = 0.01 * times
    exists = np.ones((len(start), FUTURE), bool) if mask is None else mask
    return LatentWindows(
        line(times[:, :1]), line(times[:, 1:]), exists, position, np.zeros((*times.shape, 6), np.float32), episode
    )


def bank(count: int = 40) -> Bank:
    """One training episode (number 7, task 1) that passes through times 0 to ``count``."""
    times = np.arange(count)
    position = np.zeros((count, 3), np.float32)
    position[:, 0] = 0.01 * times
    origin = np.full(count, 7)
    return Bank(1000 + times, line(times), position, origin, np.ones(count, int))


def test_a_perfect_prediction_retrieves_the_future_and_a_copy_the_present() -> None:
    test = windows(np.arange(5, 25), np.zeros(20, int))
    section = imagination_section(test.future, test, np.ones(20, int), bank())
    np.testing.assert_allclose(section.distance[PREDICTED], 0.0, atol=1e-4)
    np.testing.assert_allclose(section.distance[TRUE], 0.0, atol=1e-4)
    np.testing.assert_allclose(section.distance[COPY], [1.0, 2.0, 3.0], atol=1e-4)
    assert (section.distance[RANDOM] > 3.0).all()
    assert (section.same_task[PREDICTED] == 1.0).all() and section.samples == (20, 20, 20)
    other = imagination_section(test.future, test, np.zeros(20, int), bank())
    assert (other.same_task[TRUE] == 0.0).all()
    assert "cm off, nearest to ẑ(t+k)" in section.table()


def test_frames_that_do_not_exist_count_for_nothing() -> None:
    mask = np.ones((20, FUTURE), bool)
    mask[10:, 2], mask[:, 1] = False, False
    test = windows(np.arange(5, 25), np.zeros(20, int), mask)
    wrong = test.future.copy()
    wrong[10:, 2] = line(np.array(39))
    section = imagination_section(wrong, test, np.ones(20, int), bank())
    assert section.distance[PREDICTED][2] == pytest.approx(0.0, abs=1e-4)
    assert np.isnan(section.distance[PREDICTED][1]) and section.samples == (20, 0, 10)


def shown() -> tuple[Imagined, LatentWindows]:
    mask = np.ones((12, FUTURE), bool)
    mask[11, 2] = False
    test = windows(np.arange(5, 17), np.zeros(12, int), mask)
    guess = test.future.copy()
    guess[0] = test.now[0]
    found = imagine(guess, test, np.arange(100, 112), bank(), count=4)
    assert found is not None
    return found, test


def test_the_picture_shows_complete_samples_by_how_much_changes() -> None:
    found, _ = shown()
    assert len(found.frames) == 4 and 111 not in found.frames[:, 0]
    np.testing.assert_array_equal(found.frames - found.frames[:, :1], np.arange(1 + FUTURE)[None].repeat(4, 0))
    for row, frame in enumerate(found.frames[:, 0]):
        time = frame - 95
        np.testing.assert_array_equal(found.nearest_true[row], 1000 + time + np.arange(1, 1 + FUTURE))
        copied = frame == 100
        np.testing.assert_allclose(found.skill[row], 0.0 if copied else 1.0, atol=1e-5)
        expected = np.full(FUTURE, 1000 + time) if copied else found.nearest_true[row]
        np.testing.assert_array_equal(found.nearest[row, :, 0], expected)
        assert np.array_equal(found.actual[row], found.predicted[row]) != copied
        if copied:  # a copy has one colour throughout
            assert (found.predicted[row] == found.predicted[row, :1]).all()
    test = windows(np.arange(5, 17), np.zeros(12, int), np.zeros((12, FUTURE), bool))
    assert imagine(test.future, test, np.arange(12), bank()) is None


def test_the_picture_has_every_frame_at_its_place(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    frames = np.array([[0, 1, 2]])
    colours = RNG(2).integers(0, 256, (2, 1, 3, 4, 4, 3), dtype=np.uint8)
    imagined = Imagined(frames, np.array([[[10, 11], [12, 13]]]), np.array([[14, 15]]), *colours, np.ones((1, 2)))
    pixels = np.asarray(draw(imagined, store, 1)).astype(int)
    assert pixels.shape[1] == LEFT + 3 * (CELL + GAP) + GAP

    def cell(row: int, column: int) -> np.ndarray:
        y, x = GAP + 36 + row * (CELL + GAP), LEFT + column * (CELL + GAP)
        return pixels[y : y + CELL, x : x + CELL]

    rows = [frames[0], None, None, [None, 10, 12], [None, 11, 13], [None, 14, 15]]
    for row, names in enumerate(rows):
        for column in range(3):
            if names is None:
                expected = colours[row - 1, 0, column].repeat(CELL // 4, 0).repeat(CELL // 4, 1)
                np.testing.assert_array_equal(cell(row, column), expected)
            elif names[column] is None:
                assert (cell(row, column) == 255).all()
            else:
                frame = np.asarray(store.frames[names[column], 1])
                small = cell(row, column).reshape(8, 12, 8, 12, 3).mean((1, 3))
                assert np.abs(small - frame.reshape(8, 7, 8, 7, 3).mean((1, 3))).max() < 12
