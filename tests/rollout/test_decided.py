"""The strip of decisions under a video: the right chunk and the right place on the time line at every frame."""

import numpy as np

from wmjax.reporting.video.decision_strip import CELL, GAP, INK, LABEL, LEFT, LINE, draw_decisions
from wmjax.rollout.decisions import Decided
from wmjax.sim.libero import ACTION_SPEC

STEPS = 4


def moments(numbers: list[float]) -> list[Decided]:
    """One decision every two frames; the k-th commands (k + 1) / 4 in x and the opposite in y."""
    found = []
    for number, value in enumerate(numbers):
        actions = np.zeros((STEPS, 7), np.float32)
        actions[:, 0], actions[:, 1] = (number + 1) / 4, -(number + 1) / 4
        found.append(Decided(2 * number, actions, {"memory/gate": value, "world/error": -value}))
    return found


def cursor(strip: np.ndarray) -> int:
    """Column of the cursor, right of the chunk, below the column names and beside the values."""
    right = strip[LINE:, LEFT + STEPS * CELL + 130 :]
    return int(np.flatnonzero((right == INK["cursor"]).all(-1).sum(0) > 40)[0])


def test_the_chunk_has_the_sign_and_the_size_of_the_actions() -> None:
    strips = draw_decisions(moments([0.1, 0.2, 0.3, 0.4]), 8, ACTION_SPEC)
    for frame, strip in enumerate(strips):
        share = (frame // 2 + 1) / 4
        for step in range(STEPS):
            x, y, z = (strip[LINE + row * CELL + 3, LEFT + step * CELL + 3] for row in range(3))
            np.testing.assert_array_equal(x, np.round(share * np.array(INK["red"])))
            np.testing.assert_array_equal(y, np.round(share * np.array(INK["blue"])))
            assert (z == 0).all()


def test_the_cursor_walks_from_the_first_decision_to_the_last() -> None:
    strips = draw_decisions(moments([0.1, 0.2, 0.3, 0.4]), 9, ACTION_SPEC)
    places = [cursor(strip) for strip in strips]
    assert places == sorted(places) and len(set(places)) == 4
    steps = np.diff(sorted(set(places)))
    assert steps.max() - steps.min() <= 1  # decisions are evenly spread
    np.testing.assert_array_equal(strips[7], strips[8])  # no decision since


def test_numbers_that_are_missing_or_constant_still_draw() -> None:
    known, unknown = moments([0.5, 0.5])
    unknown = Decided(unknown.frame, unknown.actions, {"world/error": np.nan})
    assert draw_decisions([known, unknown], 3, ACTION_SPEC).shape[0] == 3
    bare = draw_decisions([Decided(0, known.actions, {})], 1, ACTION_SPEC)[0]
    assert bare.shape == (LINE + 7 * CELL, LEFT + STEPS * CELL, 3)


def test_an_error_and_that_of_a_copy_share_a_line_and_its_scale() -> None:
    """The smaller one is drawn below, independent of their own ranges."""
    known = moments([0.5, 0.5, 0.5])
    found = [Decided(m.frame, m.actions, {"world/error": 1.0, "world/copy_error": 3.0}) for m in known]
    strip = draw_decisions(found, 5, ACTION_SPEC)[0][LINE:, LEFT + STEPS * CELL + GAP + LABEL :]
    error, copy = ((strip == INK[ink]).all(-1).any(1).nonzero()[0] for ink in ("line", "blue"))
    assert len(error) == len(copy) == 1 and error[0] - copy[0] > 6 * CELL  # over the height of one row, the only one
