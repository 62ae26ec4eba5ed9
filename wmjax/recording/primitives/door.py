"""Closing a door: ``(close A)``, where A is a fixture with a door on a vertical hinge, such as a microwave."""

import numpy as np

from wmjax.recording.primitives.base import Primitive
from wmjax.recording.primitives.canonical import CLEARANCE
from wmjax.recording.primitives.grasp import Grasp, GraspStyle, nearer_home, reach_cost
from wmjax.recording.primitives.motion import CLOSE, OPEN, Action, Phase, across, ramp, towards
from wmjax.recording.primitives.privileged_scene import (
    UP,
    Matrix,
    Scene,
    SceneState,
    Vector,
    rotation_about,
    rotation_vector,
)
from wmjax.sim.env import LiberoEnv

REACH = 0.7
"""Where along the door, from the hinge to its end, the fingers push."""
BELOW_TOP = 0.03
"""How far (m) below the top of the door the fingertips are when they push: the hand above them passes over the door."""
TOUCH = 0.025
"""Distance (m) in front of the door's face at which the closed fingers begin to push."""
RETREAT = 0.08
"""Distance (m) in front of the face at which the hand arrives and leaves."""
OVER = 0.10
"""Height (m) above the top of the door at which the fingertips pass over it."""
LEAD = 0.04
"""Distance (m) behind the face to which the hand is sent while it pushes."""
PAST = 0.0005
"""How far (rad) beyond the first angle that counts the door is moved; a closed one has no more room."""
CLEAR = 0.06
"""Distance (m) from the door at which the fingers are off it."""


def find_hinge(env: LiberoEnv, fixture: str) -> int | None:
    """The id of the vertical hinge of a fixture's door, None if there is none."""
    import mujoco

    if not env.is_articulated(fixture, "close"):
        return None
    model, scene = env.sim.model._model, Scene(env.sim)
    hinges = np.isin(model.jnt_bodyid, scene.subtree(fixture)) & (model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE)
    doors = [int(joint) for joint in np.flatnonzero(hinges) if abs(scene.data.xaxis[joint][2]) > 0.99]
    return doors[0] if doors else None


class Door(Primitive):
    """Pushes a door closed with closed fingers that point down.

    Attributes:
        phase: of the last action.
        state: that of the scene in which the last action was decided; the item is the door, where it is pushed.
        style: None, because the way to push follows from the door.

    """

    predicates = ("close",)

    def __init__(self, env: LiberoEnv, goal: tuple[str, ...], style: GraspStyle | None = None) -> None:
        """Reads ``env``, which is never stepped; an episode may be under way in it. ``style`` has no meaning here."""
        predicate, fixture = goal
        hinge = find_hinge(env, fixture)
        assert hinge is not None, f"{fixture} has no door, see `fits`"
        self._scene, self._hinge = Scene(env.sim), hinge
        model = self._scene.model
        body = int(model.jnt_bodyid[hinge])
        self._name = model.body(body).name
        limits, opened = np.array(env.articulation(fixture, predicate)), np.mean(env.articulation(fixture, "open"))
        self._closed = float(limits.mean())
        self._sign = float(np.sign(self._closed - opened))
        # In the direction of closing: beyond the least angle that counts.
        self._enough = float(min(self._sign * limits)) + PAST
        panels = np.flatnonzero((model.geom_bodyid == body) & (model.geom_conaffinity > 0))
        self._panel = int(max(panels, key=lambda geom: float(np.prod(model.geom_size[geom]))))
        self.observe()

    @classmethod
    def fits(cls, env: LiberoEnv, goal: tuple[str, ...]) -> bool:
        """Whether the goal is to close a fixture with a door."""
        return super().fits(env, goal) and find_hinge(env, goal[1]) is not None

    @property
    def done(self) -> bool:
        """Whether the door is closed."""
        return self._sign * self._angle >= self._enough

    @property
    def holding(self) -> bool:
        """Never: the door is pushed."""
        return False

    @property
    def clear(self) -> bool:
        """Whether the hand is away from the door."""
        return float(np.linalg.norm(self.state.hand - self._contact)) > CLEAR

    def observe(self) -> SceneState:
        """Reads the current state into ``state``."""
        self.state = self._scene.observe(self._name, self._name)._replace(item=self._contact)
        return self.state

    def plan(self) -> Grasp:
        """Where the door would be pushed now, with the cost of reaching that."""
        position, rotation = self._contact, self._rotation
        path = [position + distance * self._outer for distance in (RETREAT, TOUCH)]
        cost = reach_cost(self._scene, self._name, path, rotation, CLEARANCE / 2)
        return Grasp(0.0, position, rotation, np.zeros(3), float(position[2]) + OVER, cost, GraspStyle(0, 1, 0.0))

    @property
    def _angle(self) -> float:
        """The joint's angle (rad)."""
        return float(self._scene.data.qpos[self._scene.model.jnt_qposadr[self._hinge]])

    @property
    def _along(self) -> Vector:
        """The direction (unit vector, world) from the hinge along the door."""
        scene = self._scene
        along = (scene.data.geom_xpos[self._panel] - scene.data.xanchor[self._hinge]) * [1, 1, 0]
        return along / np.linalg.norm(along)

    @property
    def _outer(self) -> Vector:
        """The direction (unit vector, world) out of the face that is pushed."""
        return -self._sign * np.cross(self._scene.data.xaxis[self._hinge], self._along)

    @property
    def _top(self) -> float:
        """Height (m) of the top of the door."""
        scene = self._scene
        up = np.abs(scene.data.geom_xmat[self._panel].reshape(3, 3)[2])
        return float(scene.data.geom_xpos[self._panel][2] + up @ scene.model.geom_size[self._panel])

    @property
    def _contact(self) -> Vector:
        """Where on the door's face the fingertips push (m, world)."""
        scene, along, outer = self._scene, self._along, self._outer
        axes, size = scene.data.geom_xmat[self._panel].reshape(3, 3), scene.model.geom_size[self._panel]
        middle, hinge = scene.data.geom_xpos[self._panel], scene.data.xanchor[self._hinge]
        length = float((middle - hinge) @ along + np.abs(along @ axes) @ size)
        face = float((middle - hinge) @ outer + np.abs(outer @ axes) @ size)
        return np.r_[(hinge + REACH * length * along + face * outer)[:2], self._top - BELOW_TOP]

    @property
    def _rotation(self) -> Matrix:
        """The hand pointing down, its palm along the closed door, in the heading that is nearer home."""
        closed = rotation_about(self._scene.data.xaxis[self._hinge], self._closed - self._angle) @ self._along
        return nearer_home(self._scene, closed, -UP)

    def decide(self, state: SceneState) -> tuple[Phase, Action]:
        """The phase that a state is in, and what to do in it."""
        contact, outer = self._contact, self._outer
        outside = float((state.hand - contact) @ outer)
        if self.done:
            goal = state.hand + max(0.0, RETREAT - outside) * outer + 0.02 * UP
            return Phase.RETREAT, towards(state, goal, np.zeros(3), OPEN, 0.6)
        turn = rotation_vector(self._rotation @ state.rotation.T)
        start = contact + TOUCH * outer
        sideways, wrong = across(state.hand - start, outer), float(np.linalg.norm(turn))
        back = RETREAT * max(ramp(sideways, 0.02, 0.05), ramp(wrong, 0.1, 0.25), 1.0 - ramp(outside, -0.025, -0.015))
        if back == 0.0:
            return Phase.PUSH, towards(state, contact - LEAD * outer, turn, CLOSE, 0.6)
        goal = start + back * outer
        inside = 1.0 - ramp(outside, RETREAT - 0.04, RETREAT - 0.01)
        if inside > 0.0 and sideways > 0.05:
            # Over the door: the hand rises before it crosses and comes down on the other side.
            risen = ramp(float(state.hand[2]) - self._top, OVER - 0.05, OVER - 0.01)
            goal[:2] = state.hand[:2] + risen * (goal - state.hand)[:2]
            goal[2] = max(goal[2], self._top + inside * OVER)
        return Phase.APPROACH, towards(state, goal, turn, CLOSE, 1.0)
