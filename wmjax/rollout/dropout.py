"""Cameras that fail for one decision: their frames are black for the policy, nothing else changes."""

import numpy as np
from jaxtyping import Bool, UInt8

from wmjax.sim.episode import EpisodeId


def dropped_cameras(episode: EpisodeId, decision: int, cameras: int, probability: float) -> Bool[np.ndarray, "cameras"]:
    """Which cameras are black at a decision: a function of (episode, decision, camera), whatever the policy or seed.

    Each camera is drawn on its own, but one (that with the largest draw) always shows: a policy that sees nothing
    can only be lucky. So two cameras are black for a share p - p²/2 of the decisions each.

    Args:
        episode: its identity.
        decision: number of the decision.
        cameras: how many there are.
        probability: of each draw, in [0, 1].

    """
    draws = np.random.default_rng([episode.stream("camera_dropout"), decision]).random(cameras)
    dropped = draws < probability
    dropped[draws.argmax()] = False
    return dropped


def blank(
    frames: UInt8[np.ndarray, "frames cameras height width 3"], dropped: Bool[np.ndarray, "cameras"]
) -> UInt8[np.ndarray, "frames cameras height width 3"]:
    """The frames with the dropped cameras black; the given array stays as it is."""
    return np.where(dropped[:, None, None, None], np.uint8(0), frames)
