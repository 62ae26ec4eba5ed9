"""A disturbance of an episode after its start: the goal's target drifts over the table.

Only :class:`Drift` touches the simulator; :class:`Disturbance` travels in the commands to workers.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float64

from wmjax.core.errors import UserError
from wmjax.sim.episode import EpisodeId

MAX_VELOCITY = 0.5
"""Fastest drift (m/s) of a target: 2.5 cm in a control step of LIBERO."""
INERTIA = 100.0
"""Effective mass (kg) of the drifting body: friction, bowl and hand hardly slow it, but an obstacle stops it."""
REACH = 0.15
"""Largest distance (m) of the target from its start, at which it turns back."""
ROOM = 0.12
"""Free distance (m) ahead of the target; the first drawn direction with that much room is taken."""
CLEARANCE = 0.01
"""Distance (m) to things that stood on the table at the start, at which the target turns back."""
DIRECTIONS = 16
SCAN = 0.005
Plane = Float64[np.ndarray, "2"]


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """A change of an episode that the robot does not cause.

    Attributes:
        target_velocity: speed (m/s) at which the goal's target drifts over the table; 0 is off.

    """

    target_velocity: float = 0.0


class Drift:
    """Moves a free body at constant speed, to and fro along a line in the horizontal plane, for a whole episode.

    The body gets a large inertia in the plane, and its velocity is set at every control step. It is never teleported,
    so contacts see a moving body: an object on it is carried along, and an object that touches it is pushed with a
    bounded force. The line is drawn from the episode's identity among the lines that have room. :meth:`push` depends
    on the body's position and velocity only, so a restored state has the same future.

    Args:
        model, data: MuJoCo's, in the episode's settled state.
        body: id of a body with a free joint.
        speed: m/s.
        seed: of the direction.

    """

    def __init__(self, model: Any, data: Any, body: int, speed: float, seed: int) -> None:
        joint = model.body_jntadr[body]
        qpos, dof = model.jnt_qposadr[joint], model.jnt_dofadr[joint]
        self._model, self._speed, self._dofs = model, speed, slice(dof, dof + 2)
        self._position, self._velocity = data.qpos[qpos : qpos + 2], data.qvel[dof : dof + 2]
        self._start = self._position.copy()
        self.direction, self.ahead, self.behind = _choose_line(model, data, body, np.random.default_rng(seed))
        self._change_inertia(INERTIA)

    def push(self) -> None:
        """Gives the body its velocity for the coming control step; it turns at the ends of its line."""
        offset = float((self._position - self._start) @ self.direction)
        returning = float(self._velocity @ self.direction) < -0.5 * self._speed
        sign = -1.0 if offset >= self.ahead or (returning and offset > -self.behind) else 1.0
        self._velocity[:] = sign * self._speed * self.direction

    def stop(self) -> None:
        """Gives the body its own inertia back."""
        self._change_inertia(-INERTIA)

    def _change_inertia(self, mass: float) -> None:
        self._model.dof_armature[self._dofs] += mass
        self._model.dof_M0[self._dofs] += mass  # read instead of the armature where inertia is constant


def target_body(model: Any, goal: tuple[str, ...], objects: dict[str, Any]) -> int:
    """Id of the movable object that a goal puts something onto or into.

    Args:
        model: MuJoCo's.
        goal: LIBERO's predicate, for example ``("in", "milk_1", "basket_1_contain_region")``.
        objects: LIBERO's movable objects by name.

    Raises:
        UserError: the goal has no target, or one that cannot move.

    """
    target = goal[2] if len(goal) == 3 else ""
    for name, item in objects.items():
        if target == name or target.startswith(f"{name}_"):
            return int(model.body(item.root_body).id)
    raise UserError(
        f"target_velocity is set, but the goal {' '.join(goal)!r} has no target that can move; "
        "choose other tasks, or set it to 0"
    )


def start_drift(env: Any, goal: tuple[str, ...], disturbance: Disturbance, episode: EpisodeId) -> Drift | None:
    """The drift of an episode of a LIBERO environment (robosuite's), None if the target does not move.

    Raises:
        UserError: see :func:`target_body`.

    """
    if not disturbance.target_velocity:
        return None
    model, data = env.sim.model._model, env.sim.data._data
    body = target_body(model, goal, env.objects_dict)
    return Drift(model, data, body, disturbance.target_velocity, episode.stream("drift"))


def _choose_line(model: Any, data: Any, body: int, random: np.random.Generator) -> tuple[Plane, float, float]:
    """Direction (unit vector) of the drift, the room (m) ahead and behind; the roomiest if no direction has enough."""
    lines = []
    for _ in range(DIRECTIONS):
        angle = random.uniform(0, 2 * np.pi)
        direction = np.array([np.cos(angle), np.sin(angle)])
        lines.append((_room(model, data, body, direction), direction))
        if lines[-1][0] >= ROOM:
            break
    ahead, direction = max(lines, key=lambda line: line[0])
    return direction, ahead, _room(model, data, body, -direction)


def _room(model: Any, data: Any, body: int, direction: Plane) -> float:
    """The distance (m) a body can move and stay ``CLEARANCE`` away from others and from edges, at most ``REACH``."""
    import mujoco

    scratch = mujoco.MjData(model)
    scratch.qpos[:] = data.qpos
    start = model.jnt_qposadr[model.body_jntadr[body]]
    radius = float(model.geom_rbound[model.geom_bodyid == body].max())
    support = _body_below(model, data, body, 0.0 * direction)
    for distance in np.arange(SCAN, REACH + CLEARANCE, SCAN):
        scratch.qpos[start : start + 2] = data.qpos[start : start + 2] + distance * direction
        edge = _body_below(model, data, body, (distance + radius) * direction) != support
        if edge or _touches(model, scratch, body, support):
            return max(0.0, float(distance - SCAN - CLEARANCE))
    return REACH


def _touches(model: Any, scratch: Any, body: int, support: int) -> bool:
    """Whether the body touches anything but its support."""
    import mujoco

    mujoco.mj_kinematics(model, scratch)
    mujoco.mj_comPos(model, scratch)
    mujoco.mj_collision(model, scratch)
    pairs = model.geom_bodyid[scratch.contact.geom]
    return bool(((pairs == body).any(1) & ~(pairs == support).any(1)).any())


def _body_below(model: Any, data: Any, body: int, offset: Plane) -> int:
    """Id of the body that carries ``body``, or would at an offset (m); -1 if there is none."""
    import mujoco

    geom = np.full(1, -1, np.int32)
    above = data.xpos[body] + np.r_[offset, 0.05]
    mujoco.mj_ray(model, data, above, np.array([0, 0, -1.0]), None, 1, body, geom)
    return int(model.geom_bodyid[geom[0]]) if geom[0] >= 0 else -1
