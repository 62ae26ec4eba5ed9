"""Opening and closing a drawer: ``(open R)`` and ``(close R)``, where R is a region that moves along a slide."""

import numpy as np

from wmjax.recording.primitives.base import Primitive
from wmjax.recording.primitives.canonical import CLEARANCE
from wmjax.recording.primitives.grasp import Grasp, GraspStyle, nearer_home, reach_cost
from wmjax.recording.primitives.motion import (
    CLOSE,
    OPEN,
    WIDE,
    Action,
    Phase,
    across,
    firm,
    held,
    ramp,
    reach_and_close,
    still,
    towards,
)
from wmjax.recording.primitives.privileged_scene import (
    UP,
    Matrix,
    Scene,
    SceneState,
    Vector,
    rotation_vector,
)
from wmjax.sim.env import LiberoEnv

PITCH = np.deg2rad(75)
"""How far (rad) the hand is pitched up from pointing down, so that it reaches under the handle of the drawer above."""
LOW_PITCH = np.deg2rad(27)
"""How far (rad) the hand is pitched up when it pushes the lowest drawer: more, and it is inside the table."""
RETREAT = 0.10
"""Distance (m) from the handle, against the fingers' direction, at which the hand arrives and leaves."""
PASSABLE = 0.03
"""A drawer that lacks at most this much (m) of being open can be filled: the hand may push it in a little."""
CLEAR = 0.05
"""Distance (m) from the handle at which the fingers are off it."""
LEAD = 0.04
"""Distance (m) ahead of the handle to which the hand is sent while it pulls or pushes."""
PAST = {"open": 0.003, "close": 0.0005}
"""How far (m) beyond the first position that counts the drawer is moved; a closed one has no more room."""
OVER = 0.18
"""Height (m) above the handle at which the hand passes over a drawer that it will close."""
TOUCH = 0.02
"""Distance (m) in front of the handle's middle at which the closed fingers begin to push."""


def find_slide(env: LiberoEnv, region: str) -> tuple[int, float] | None:
    """The id of the joint on which a drawer's region slides, and the sign of its axis in the direction of opening.

    Returns:
        None if the region is not that of a drawer.

    """
    import mujoco

    name, model = env.joint(region), env.sim.model._model
    if name is None or model.joint(name).type[0] != mujoco.mjtJoint.mjJNT_SLIDE:
        return None
    opened, closed = (float(np.mean(env.articulation(region, state))) for state in ("open", "close"))
    return model.joint(name).id, float(np.sign(opened - closed))


class Drawer(Primitive):
    """Grips the handle of a drawer and pulls it open, or pushes it closed with closed fingers.

    Attributes:
        phase: of the last action.
        state: that of the scene in which the last action was decided; the item is the drawer, at its handle.
        style: None, because the way to grip follows from the handle.

    """

    predicates = ("open", "close")

    def __init__(self, env: LiberoEnv, goal: tuple[str, ...], style: GraspStyle | None = None) -> None:
        """Reads ``env``, which is never stepped; an episode may be under way in it. ``style`` has no meaning here."""
        predicate, region = goal
        self._opens = predicate == "open"
        self._scene = Scene(env.sim)
        model, slide = self._scene.model, find_slide(env, region)
        assert slide is not None, f"{region} is no drawer, see `fits`"
        self._joint, self._sign = slide
        body = int(model.jnt_bodyid[self._joint])
        self._drawer = model.body(body).name
        limits = np.sort(np.array(env.articulation(region, predicate)) * self._sign)
        # In the direction of opening: beyond the least opening that counts, or short of the largest.
        self._enough = limits[0] + PAST["open"] if self._opens else limits[1] - PAST["close"]
        geoms = np.flatnonzero((model.geom_bodyid == body) & (model.geom_contype > 0))
        self._handle = int(max(geoms, key=lambda geom: float(self._scene.data.geom_xpos[geom] @ self._outward)))
        self._from_above = not self._opens and self._is_lowest(body)
        self._pitch = LOW_PITCH if self._from_above else PITCH
        self.observe()

    @classmethod
    def fits(cls, env: LiberoEnv, goal: tuple[str, ...]) -> bool:
        """Whether the goal is to open or close something that moves along a slide."""
        return super().fits(env, goal) and find_slide(env, goal[1]) is not None

    def _is_lowest(self, body: int) -> bool:
        """Whether a drawer is the lowest of several in a cabinet, so that a pitched hand would be inside the table."""
        import mujoco

        model, places = self._scene.model, self._scene.data.geom_xpos
        slides = model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE]
        drawers = slides[model.body_parentid[slides] == model.body_parentid[body]]
        heights = {int(drawer): float(places[model.geom_bodyid == drawer, 2].mean()) for drawer in drawers}
        return len(heights) > 1 and heights[body] == min(heights.values())

    @property
    def done(self) -> bool:
        """Whether the drawer is open, or closed, as the predicate wants it."""
        return self._value >= self._enough if self._opens else self._value <= self._enough

    @property
    def passable(self) -> bool:
        """Whether the drawer that is to be opened is open so far that something can be put in."""
        return self._value >= self._enough - PASSABLE

    @property
    def holding(self) -> bool:
        """Whether the fingers hold the handle to pull it."""
        return self._opens and held(self.state)

    @property
    def clear(self) -> bool:
        """Whether the hand is away from the handle."""
        return float(np.linalg.norm(self.state.hand - self._position)) > CLEAR

    def observe(self) -> SceneState:
        """Reads the current state into ``state``."""
        self.state = self._scene.observe(self._drawer, self._drawer)._replace(item=self._position)
        return self.state

    def plan(self) -> Grasp:
        """How the handle would be gripped where it is now, with the cost of reaching that."""
        path = [self._position - distance * self._fingers for distance in (RETREAT, 0.5 * RETREAT, 0.0)]
        return self._grasp(reach_cost(self._scene, self._drawer, path, self._rotation, CLEARANCE / 2))

    @property
    def _value(self) -> float:
        """How far (m) the drawer is open."""
        return float(self._sign * self._scene.data.qpos[self._scene.model.jnt_qposadr[self._joint]])

    @property
    def _outward(self) -> Vector:
        """The direction (unit vector, world) in which the drawer opens."""
        return self._sign * self._scene.data.xaxis[self._joint]

    @property
    def _fingers(self) -> Vector:
        """The direction (unit vector, world) of the fingers at the handle."""
        return -np.sin(self._pitch) * self._outward - np.cos(self._pitch) * UP

    @property
    def _position(self) -> Vector:
        """The middle of the handle (m, world)."""
        return self._scene.data.geom_xpos[self._handle].copy()

    @property
    def _rotation(self) -> Matrix:
        """The hand at the handle in the heading that is nearer home.

        One finger is above the handle and one below it. At a handle that is pushed from above they are side by side.
        """
        closing, fingers = np.cos(self._pitch) * self._outward - np.sin(self._pitch) * UP, self._fingers
        if self._from_above:
            closing = np.cross(UP, self._outward)
        return nearer_home(self._scene, closing, fingers)

    def _grasp(self, cost: float = 0.0) -> Grasp:
        position = self._position
        style = GraspStyle(0, 1, float(self._pitch))
        return Grasp(0.0, position, self._rotation, np.zeros(3), float(position[2]) + RETREAT, cost, style)

    def decide(self, state: SceneState) -> tuple[Phase, Action]:
        """The phase that a state is in, and what to do in it."""
        if self.done:
            return self._leave(state)
        return self._pull(state) if self._opens else self._push(state)

    def _pull(self, state: SceneState) -> tuple[Phase, Action]:
        grasp = self._grasp()
        if not held(state):
            return reach_and_close(state, grasp, -self._fingers)
        if not firm(state):
            return Phase.CLOSE, still(CLOSE)
        turn = rotation_vector(grasp.rotation @ state.rotation.T)
        return Phase.PULL, towards(state, grasp.position + LEAD * self._outward, turn, CLOSE, 0.6)

    def _push(self, state: SceneState) -> tuple[Phase, Action]:
        """Arrives in front of the handle, above the drawer's content, then continues inward."""
        start = self._position + TOUCH * self._outward
        turn = rotation_vector(self._rotation @ state.rotation.T)
        sideways, wrong = across(state.hand - start, self._outward), float(np.linalg.norm(turn))
        back = RETREAT * max(ramp(sideways, 0.015, 0.035), ramp(wrong, 0.1, 0.25))
        if back > 0.0:
            behind = 1.0 - ramp(float((state.hand - start) @ self._outward), back - 0.05, back - 0.02)
            goal = start + back * self._outward + behind * OVER * UP
            return Phase.APPROACH, towards(state, goal, turn, CLOSE, 1.0)
        return Phase.PUSH, towards(state, self._position - LEAD * self._outward, turn, CLOSE, 0.6)

    def _leave(self, state: SceneState) -> tuple[Phase, Action]:
        """Lets go, and away from the handle."""
        if self._opens and not self.clear and state.opening < WIDE:
            return Phase.OPEN, still(OPEN)
        goal = self._position - 1.2 * RETREAT * self._fingers
        return Phase.RETREAT, towards(state, goal, np.zeros(3), OPEN, 0.6)
