"""What primitives share: phases, and the motions of a hand that reaches, closes, holds and leaves.

Each is a function of the scene's state, so a primitive made of them has no memory.
"""

from enum import StrEnum

import numpy as np
from jaxtyping import Float64

from wmjax.recording.primitives.grasp import Grasp
from wmjax.recording.primitives.privileged_scene import UP, SceneState, Vector, rotation_vector

Action = Float64[np.ndarray, "7"]
POSITION_SCALE, ROTATION_SCALE = 0.05, 0.5
"""The motion of robosuite's OSC_POSE controller for an action of 1 (m, rad)."""
GAIN = 1.5
"""Commanded distance per distance from the goal; below 1.5 the arm's friction leaves millimetres."""
OPEN, CLOSE = -1.0, 1.0
WIDE = 0.065
"""Fingers this far (m) apart fit around what is to be grasped."""
EMPTY = 0.004
"""Fingers this near (m) to each other hold nothing."""
CLEAR_ASIDE, CLEAR_ABOVE = 0.10, 0.14
"""A hand this far (m) from an object, sideways or above it, does not touch it when it turns to another one."""
RISE = 0.03
"""Height (m) above the grasp up to which the hand rises with closed fingers after a miss."""


class Phase(StrEnum):
    """The phases of a primitive."""

    APPROACH = "approach"
    DESCEND = "descend"
    CLOSE = "close"
    REGRASP = "regrasp"
    LIFT = "lift"
    CARRY = "carry"
    LOWER = "lower"
    TURN = "turn"
    PULL = "pull"
    PUSH = "push"
    OPEN = "open"
    RETREAT = "retreat"


def ramp(value: float, low: float, high: float) -> float:
    """0 up to ``low``, 1 from ``high`` on, linear between."""
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))


def held(state: SceneState) -> bool:
    """Whether the fingers hold the object: both touch it, or one does and something keeps them apart."""
    squeezed = state.opening - state.command
    blocked = state.touching > 0 and squeezed > 0.002 and abs(state.closing) < 0.02
    return squeezed > 0.0 and (state.touching == 2 or blocked)


def firm(state: SceneState) -> bool:
    """Whether the fingers have closed on the held object."""
    return state.command < 0.001 and abs(state.closing) < 0.015


def across(vector: Vector, direction: Vector) -> float:
    """Length of a vector's part that is perpendicular to a direction (unit vector)."""
    return float(np.linalg.norm(vector - (vector @ direction) * direction))


def clear(state: SceneState) -> bool:
    """Whether the hand can turn to another object without touching this one."""
    away = state.hand - state.item
    return across(away, UP) > CLEAR_ASIDE or float(away[2]) > CLEAR_ABOVE


def reach_and_close(state: SceneState, grasp: Grasp, back: Vector = UP) -> tuple[Phase, Action]:
    """The phase and the action of a hand that holds nothing: it moves to the grasp and closes its fingers there.

    Args:
        state: the state.
        grasp: where to close the fingers; its travel height is measured along ``back``.
        back: the direction (unit vector) in which the hand keeps its distance until it is aligned.

    """
    away = state.hand - grasp.position
    sideways, high = across(away, back), float(away @ back)
    turn = rotation_vector(grasp.rotation @ state.rotation.T)
    wrong = float(np.linalg.norm(turn))
    at_grasp = sideways < 0.02 and wrong < 0.3
    if at_grasp and high < RISE and state.opening < WIDE:
        # How far apart the fingers are decides, not which way they move: one camera frame shows only the former.
        if state.opening < EMPTY:
            return Phase.REGRASP, towards(state, grasp.position + (RISE + 0.015) * back, turn, CLOSE, 1.0)
        return Phase.CLOSE, still(CLOSE)
    if at_grasp and abs(high) < 0.02:
        close_enough = sideways < 0.008 and abs(high) < 0.006
        if close_enough or (state.speed < 0.01 and sideways < 0.015):
            return Phase.CLOSE, still(CLOSE)
    travel = grasp.travel_height - grasp.position[2]
    above = travel * max(ramp(sideways, 0.01, 0.03), ramp(wrong, 0.08, 0.2))
    if state.opening < WIDE:
        above = max(above, RISE + 0.015)
    goal = grasp.position + above * back
    near = sideways < 0.03 and wrong < 0.2
    return (Phase.DESCEND if near else Phase.APPROACH), towards(state, goal, turn, OPEN, 0.6 if near else 1.0)


def leave(state: SceneState) -> tuple[Phase, Action]:
    """Lets go where it stands, then up and out of the way."""
    if state.opening < WIDE and np.linalg.norm(state.hand - state.item) < 0.10:
        return Phase.OPEN, still(OPEN)
    goal = state.hand.copy()
    goal[2] = max(goal[2], state.item[2] + 0.16)
    return Phase.RETREAT, towards(state, goal, np.zeros(3), OPEN, 0.6)


def still(gripper: float) -> Action:
    """No motion of the arm; ``gripper`` is ``OPEN`` or ``CLOSE``."""
    return np.r_[np.zeros(6), gripper]


def towards(state: SceneState, position: Vector, turn: Vector, gripper: float, speed: float) -> Action:
    """The action towards a pose.

    Args:
        state: the state.
        position: where the hand should be (m, world).
        turn: how far it should turn (rotation vector, rad).
        gripper: ``OPEN`` or ``CLOSE``.
        speed: largest translation command, in [0, 1].

    """
    move = GAIN * (position - state.hand) / POSITION_SCALE
    move = move * min(1.0, speed / max(float(np.abs(move).max()), 1e-12))
    rotate = turn / ROTATION_SCALE if np.linalg.norm(turn) > 0.01 else np.zeros(3)
    return np.r_[move, np.clip(rotate, -0.5, 0.5), gripper]
