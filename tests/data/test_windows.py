import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmjax.data.windows import (
    chunk_indices,
    clip_indices,
    earlier_indices,
    future_indices,
    history_indices,
    pad_actions,
)
from wmjax.sim.libero import ACTION_SPEC


@given(st.integers(0, 50), st.integers(1, 30), st.integers(1, 9), st.data())
def test_windows_never_leave_the_episode(start, count, window, data):
    frame = data.draw(st.integers(start, start + count - 1))
    past = history_indices(frame, start, window)
    ahead, mask = future_indices(frame, start + count, window)
    for indices in (past, ahead, clip_indices(frame, start, window)):
        assert indices.min() >= start and indices.max() < start + count
    assert past[-1] == frame and np.all(np.diff(past) >= 0) and past.max() == frame
    assert mask.sum() == min(window, start + count - 1 - frame)
    assert np.array_equal(ahead[mask], frame + 1 + np.arange(mask.sum()))


def test_earlier_frames_end_where_the_history_begins():
    indices, mask = earlier_indices(np.array([9, 20]), 7, 3, 4)
    assert indices.tolist() == [[7, 7, 7, 7], [17, 16, 15, 14]]
    assert mask.tolist() == [[False] * 4, [True] * 4]
    indices, mask = earlier_indices(11, 7, 3, 4)
    assert indices.tolist() == [8, 7, 7, 7] and mask.tolist() == [True, True, False, False]


def test_clip_repeats_the_first_frame_like_a_rollout_does():
    assert clip_indices(7, 7).tolist() == [7, 7, 7, 7]
    assert clip_indices(9, 7).tolist() == [7, 7, 8, 9]
    assert clip_indices(20, 7).tolist() == [17, 18, 19, 20]


def test_chunk_starts_at_the_step_of_its_observation():
    rows, mask = chunk_indices(np.array([3, 8]), np.array([10, 10]), 4)
    assert rows.tolist() == [[3, 4, 5, 6], [8, 9, 9, 9]]
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]


def test_padding_stays_in_place_and_keeps_the_gripper():
    actions = np.full((1, 3, 7), 0.5, np.float32)
    padded = pad_actions(actions, np.array([[True, False, False]]), ACTION_SPEC)
    assert padded[0, 0].tolist() == [0.5] * 7
    assert padded[0, 1].tolist() == [0.0] * 6 + [0.5]
    assert actions[0, 1, 0] == 0.5


@pytest.mark.parametrize("function", [future_indices, chunk_indices])
def test_indices_are_vectorised(function):
    frames, ends = np.array([[0, 3], [4, 9]]), np.array([[5, 5], [5, 12]])
    indices, mask = function(frames, ends, 3)
    for position in np.ndindex(2, 2):
        one, one_mask = function(frames[position], ends[position], 3)
        assert np.array_equal(indices[position], one) and np.array_equal(mask[position], one_mask)
