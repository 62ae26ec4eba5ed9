"""Turning the knob of a stove: ``(turnon A)`` and ``(turnoff A)``."""

import dataclasses

import numpy as np

from wmjax.recording.primitives.base import Primitive
from wmjax.recording.primitives.canonical import CLEARANCE
from wmjax.recording.primitives.grasp import HOPELESS, Candidate, Grasp, GraspStyle, facing_down, obstacle_cost
from wmjax.recording.primitives.motion import (
    CLOSE,
    Action,
    Phase,
    firm,
    held,
    leave,
    reach_and_close,
    still,
    towards,
)
from wmjax.recording.primitives.privileged_scene import Scene, SceneState, rotation_vector, rotation_z
from wmjax.sim.env import LiberoEnv

DEPTH = 0.022
"""How far (m) below the top of the knob's bar the fingertips close."""
LEAD = 0.35
"""How far (rad) the hand is turned ahead of the knob that it holds."""
PAST = {"turnon": 0.06, "turnoff": 0.002}
"""How far (rad) beyond the first angle that counts the knob is turned before it is let go; off is at its stop."""
TRAVEL = 0.10
"""Height (m) above the grasp at which the hand travels."""


class Turn(Primitive):
    """Grips the bar of a knob across its width and turns it about the vertical.

    Attributes:
        phase: of the last action.
        state: that of the scene in which the last action was decided; the item is the knob.
        style: None, because the way to grasp follows from the knob's angle.

    """

    predicates = ("turnon", "turnoff")

    def __init__(self, env: LiberoEnv, goal: tuple[str, ...], style: GraspStyle | None = None) -> None:
        """Reads ``env``, which is never stepped; an episode may be under way in it. ``style`` has no meaning here."""
        predicate, fixture = goal
        self._scene = Scene(env.sim)
        self._knob = f"{fixture}_button"
        self._bar, self._axis = _find_bar(self._scene, self._scene.body(self._knob))
        self._joint = env.sim.model.get_joint_qpos_addr(self._knob)
        self._sign = 1 if predicate == "turnon" else -1
        # In the direction of turning: beyond the least angle that counts.
        self._enough = min(self._sign * angle for angle in env.articulation(fixture, predicate)) + PAST[predicate]
        self.observe()

    @property
    def done(self) -> bool:
        """Whether the knob is turned far enough."""
        return self._sign * float(self._scene.data.qpos[self._joint]) >= self._enough

    def observe(self) -> SceneState:
        """Reads the current state into ``state``."""
        self.state = self._scene.observe(self._knob, self._knob)
        return self.state

    def plan(self) -> Grasp:
        """How the knob would be gripped at its angle now, with the cost of reaching that."""
        grasp = self._grasp()
        candidate = Candidate(0.0, grasp.angle, grasp.position, grasp.rotation, grasp.style, shifted=False)
        cost = obstacle_cost(self._scene, self._knob, self._knob, candidate, CLEARANCE, HOPELESS)
        return dataclasses.replace(grasp, cost=cost)

    def decide(self, state: SceneState) -> tuple[Phase, Action]:
        """The phase that a state is in, and what to do in it."""
        if self.done:
            return leave(state)
        grasp = self._grasp()
        if not held(state):
            return reach_and_close(state, grasp)
        if not firm(state):
            return Phase.CLOSE, still(CLOSE)
        ahead = rotation_z(self._sign * LEAD) @ grasp.rotation
        return Phase.TURN, towards(state, grasp.position, rotation_vector(ahead @ state.rotation.T), CLOSE, 0.4)

    def _grasp(self) -> Grasp:
        """The hand upright over the knob's axis, its fingers on both sides of the bar, nearer home of two headings."""
        data, origin = self._scene.data, self._scene.position(self._knob)
        rotation = data.geom_xmat[self._bar].reshape(3, 3)
        along = rotation[:, self._axis]
        angle = float(np.arctan2(along[1], along[0]) + np.pi / 2)
        home = self._scene.home_rotation
        sign = max((1, -1), key=lambda sign: float(np.trace(facing_down(angle, sign) @ home.T)))
        position = np.r_[origin[:2], _top(self._scene, self._bar) - DEPTH]
        style = GraspStyle(round(np.rad2deg(angle)), sign, 0.0)
        return Grasp(
            angle, position, facing_down(angle, sign), position - origin, float(position[2]) + TRAVEL, 0.0, style
        )


def _find_bar(scene: Scene, body: int) -> tuple[int, int]:
    """The box of a knob that stands up highest, and which of its axes is the longest of those that lie flat."""
    geoms = np.flatnonzero((scene.model.geom_bodyid == body) & (scene.model.geom_contype > 0))
    bar = max(map(int, geoms), key=lambda geom: _top(scene, geom))
    flat = np.abs(scene.data.geom_xmat[bar].reshape(3, 3)[2]) < 0.5
    return bar, int(np.argmax(np.where(flat, scene.model.geom_size[bar], 0.0)))


def _top(scene: Scene, geom: int) -> float:
    """Height (m) of the highest point of a box."""
    up = np.abs(scene.data.geom_xmat[geom].reshape(3, 3)[2])
    return float(scene.data.geom_xpos[geom][2] + up @ scene.model.geom_size[geom])
