"""The state that a robot will be in when actions have been executed that are still to come.

VLASH (Tang et al. 2025, arXiv 2512.01031) gives a policy under a delay the state at the time when its chunk begins,
"rolling the robot state forward with the previously generated action chunk". LIBERO's actions are deltas of the hand's
pose, which are added up here. The approximation: robosuite's controller sets a new goal at every control step from
where the hand is, and by the next step the hand has covered only a part of the way, so a delta counts as much as the
hand moves by it on average (:class:`Motion`). How fast the hand moves already, contacts and joint limits are left out,
and the fingers stay where they are. Imports neither jax nor the simulator.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec, ObservationSpec

Array = Any
"""A numpy or jax array; this module must not import jax."""


@dataclasses.dataclass(frozen=True)
class Motion:
    """How actions move what a state contains of the end effector.

    Attributes:
        position, orientation: indices of the state's values, as an :class:`ObservationSpec` has them.
        translation, rotation: indices of an action's deltas along and about the same axes.
        metres, radians: what the hand moves and turns in one control step by a raw delta of 1, for each axis.

    """

    position: tuple[int, ...]
    orientation: tuple[int, ...]
    translation: tuple[int, ...]
    rotation: tuple[int, ...]
    metres: tuple[float, float, float]
    radians: tuple[float, float, float]


OSC_POSE = "OSC_POSE deltas and gripper command in [-1, 1]"
"""The ``definition`` of LIBERO's actions: a delta of 1 asks robosuite's controller for 0.05 m or 0.5 rad."""
MEASURED_HZ = 20.0
"""Control steps per second for which METRES and RADIANS hold."""
METRES, RADIANS = (0.0105, 0.0121, 0.0117), (0.102, 0.057, 0.100)
"""What the hand does in one control step of 50 ms by a delta of 1: least squares over windows of 8 control steps of
recorded demonstrations, about x, y and z (``benchmarks/roll_state.py``). It is 0.11 to 0.24 of what is asked for. In
the controller's equation of motion, x'' = 150 (goal - x) - 2 sqrt(150) x', a constant delta is followed at 0.265 of it
per step; the rest is lost in the joints, most where the arm also tends to its usual posture (about y)."""


def find_motion(observation: ObservationSpec, action: ActionSpec) -> Motion:
    """How the actions of a robot move its state.

    Raises:
        UserError: the state has no pose of the end effector, or it is not known what the actions do to it.

    """
    known = action.definition == OSC_POSE and observation.control_hz == MEASURED_HZ
    if not known or len(observation.position) != 3 or len(observation.orientation) != 3:
        raise UserError(
            f"model.roll_state is true, but it is not known how actions ({action.definition or 'undefined'}, "
            f"{observation.control_hz:g} Hz) move the state ({', '.join(observation.state)}); it is for LIBERO's "
            f"OSC_POSE deltas at {MEASURED_HZ:g} Hz and states with the hand's pose, set it to false"
        )
    return Motion(observation.position, observation.orientation, (0, 1, 2), (3, 4, 5), METRES, RADIANS)


def roll_state(
    state: Float[Array, "*batch state"], actions: Float[Array, "*batch steps action"], motion: Motion
) -> Float[Array, "*batch state"]:
    """The state after some actions; numpy or jax.

    Positions are added up. Rotations are composed, each about the axes of the world: ``q = q_step ... q_1 q_state``.
    The result is on the same sheet of the axis-angle (0 to 2 pi) as a hand that turns on, see
    :func:`wmjax.data.observation.axis_angle`.

    Args:
        state: raw; position in m, orientation as axis times angle (rad).
        actions: raw, in the order of execution.
        motion: what they do.

    """
    xp = state.__array_namespace__()
    moved = actions[..., np.array(motion.translation)].sum(axis=-2) * np.array(motion.metres, np.float32)
    turns = actions[..., np.array(motion.rotation)] * np.array(motion.radians, np.float32)
    orientation = _quaternion(state[..., np.array(motion.orientation)], xp)
    for step in range(actions.shape[-2]):
        orientation = _product(_quaternion(turns[..., step, :], xp), orientation, xp)
    vector = _rotation_vector(orientation, xp)
    columns = [state[..., index] for index in range(state.shape[-1])]
    for axis, index in enumerate(motion.position):
        columns[index] = columns[index] + moved[..., axis]
    for axis, index in enumerate(motion.orientation):
        columns[index] = vector[..., axis]
    return xp.stack(columns, axis=-1)


def _quaternion(vector: Float[Array, "*batch 3"], xp: Any) -> Float[Array, "*batch 4"]:
    """Of a rotation vector (rad), xyzw."""
    angle = xp.sqrt((vector * vector).sum(axis=-1, keepdims=True))
    axis = vector / xp.maximum(angle, np.float32(1e-12))
    return xp.concat([axis * xp.sin(angle / 2), xp.cos(angle / 2)], axis=-1)


def _product(a: Float[Array, "*batch 4"], b: Float[Array, "*batch 4"], xp: Any) -> Float[Array, "*batch 4"]:
    """Hamilton's product: the rotation b, then a."""
    (va, wa), (vb, wb) = ((q[..., :3], q[..., 3:]) for q in (a, b))
    vector = wa * vb + wb * va + xp.linalg.cross(va, vb)
    return xp.concat([vector, wa * wb - (va * vb).sum(axis=-1, keepdims=True)], axis=-1)


def _rotation_vector(quaternion: Float[Array, "*batch 4"], xp: Any) -> Float[Array, "*batch 3"]:
    """Axis times angle, the angle from 0 to 2 pi."""
    vector, w = quaternion[..., :3], quaternion[..., 3:]
    sine = xp.sqrt((vector * vector).sum(axis=-1, keepdims=True))
    return vector / xp.maximum(sine, np.float32(1e-12)) * (2 * xp.atan2(sine, w))
