"""Putting an object with a handle into something that is open at a side, such as a microwave: ``(in A B)``."""

import dataclasses
from typing import NamedTuple

import numpy as np

from wmjax.recording.primitives.base import Primitive
from wmjax.recording.primitives.canonical import CLEARANCE
from wmjax.recording.primitives.door import find_hinge
from wmjax.recording.primitives.grasp import WALL_WIDTH, Grasp, GraspStyle, nearer_home, reach_cost
from wmjax.recording.primitives.motion import (
    CLOSE,
    OPEN,
    WIDE,
    Action,
    Phase,
    firm,
    held,
    leave,
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

PITCH = np.deg2rad(45)
"""How far (rad) the hand is pitched up from pointing down: less and it does not fit under the ceiling, more and it is
in the way of what stands in front."""
YAW = np.deg2rad(15)
"""How far (rad) the hand is turned about the vertical, its wrist nearer the robot, so that it can reach the handle."""
HANDLE = 0.012
"""Depth (m) of the handle's outermost part, in whose middle the fingers close."""
RETREAT = 0.10
"""Distance (m) from the handle, against the fingers' direction, at which the hand arrives."""
DEPTH = 0.05
"""How far (m) beyond the region's front an object is put, so far that the palm stays outside."""
TOLERANCE = 0.02
"""How far (m) an object may be from its place, inward and sideways, when it is let go."""
FRONT = 0.17
"""Distance (m) before its place at which an object is brought to the right height and side."""
BESIDE_DOOR, ASIDE = 0.02, 0.07
"""How far (m) from the middle, away from an open door, an object is put, and how much farther it is carried there."""
LIFTED = 0.022
"""Height (m) above the floor at which an object is moved in."""
CLEAR = 0.12
"""Distance (m) from the handle at which the hand can turn to something else."""


class Cavity(NamedTuple):
    """The inside of a fixture.

    Attributes:
        inward: the direction (unit vector, world) in which something is moved in.
        front: the place (m, world) on the floor at the region's front, in the middle between the walls.

    """

    inward: Vector
    front: Vector


def find_cavity(scene: Scene, region: str, fixture: str) -> Cavity | None:
    """The cavity that a region is in, None if it has no floor, no ceiling or not exactly one open side.

    The door and what stands inside make no difference.
    """
    middle, ways = scene.region_box(region)
    body = scene.body(fixture)
    floor, ceiling = (_distance(scene, body, middle, sign * UP) for sign in (-1, 1))
    sides = [sign * way for way in ways[:2] for sign in (1, -1)]
    walls = [_distance(scene, body, middle, side / np.linalg.norm(side)) for side in sides]
    if floor is None or ceiling is None or walls.count(None) != 1:
        return None
    outward = sides[walls.index(None)]
    shift = np.zeros(3)
    for side, wall in zip(sides, walls, strict=True):
        if wall is not None and abs(side @ outward) < 1e-9:
            shift += wall / 2 * side / np.linalg.norm(side)
    return Cavity(-outward / np.linalg.norm(outward), middle + shift + outward - floor * UP)


def _distance(scene: Scene, body: int, start: Vector, direction: Vector) -> float | None:
    """How far (m) a body is from a point in a direction, whatever else is there; None if it is not there."""
    import mujoco

    geom, gone = np.full(1, -1, np.int32), 0.0
    for _ in range(30):
        step = mujoco.mj_ray(scene.model, scene.data, start + gone * direction, direction, None, 1, -1, geom)
        if geom[0] < 0:
            return None
        gone += step
        if int(scene.model.geom_bodyid[geom[0]]) == body:
            return gone
        gone += 1e-4
    return None


class Insert(Primitive):
    """Grips an object by the handle that points away from the opening, and moves it in with a pitched hand.

    Attributes:
        phase: of the last action.
        state: that of the scene in which the last action was decided.
        style: the pitch of the hand.

    """

    predicates = ("in",)
    style: GraspStyle = GraspStyle(0, 1, float(PITCH))

    def __init__(self, env: LiberoEnv, goal: tuple[str, ...], style: GraspStyle | None = None) -> None:
        """Reads ``env``, which is never stepped; an episode may be under way in it. ``style`` has no meaning here."""
        self._env, self._goal = env, goal
        _, self._item, self._region = goal
        self._scene = Scene(env.sim)
        cavity = find_cavity(self._scene, self._region, env.fixture(self._region))
        assert cavity is not None, f"{self._region} is open at the top, see `fits`"
        self._inward = cavity.inward
        self._aside = self._away_from_door(cavity)
        self._place = cavity.front + DEPTH * cavity.inward + BESIDE_DOOR * self._aside
        self._place += self._scene.base(self._item) * UP
        self.observe()

    @classmethod
    def fits(cls, env: LiberoEnv, goal: tuple[str, ...]) -> bool:
        """Whether the goal is to put something into a region that is covered and open at a side."""
        if not super().fits(env, goal) or env.joint(goal[2]) is not None:
            return False
        scene = Scene(env.sim)
        return scene.is_region(goal[2]) and find_cavity(scene, goal[2], env.fixture(goal[2])) is not None

    def _away_from_door(self, cavity: Cavity) -> Vector:
        """The direction (unit vector, sideways) away from the hinge of the fixture's door; zero without a door."""
        hinge = find_hinge(self._env, self._env.fixture(self._region))
        if hinge is None:
            return np.zeros(3)
        across = np.cross(UP, cavity.inward)
        return float(np.sign((cavity.front - self._scene.data.xanchor[hinge]) @ across)) * across

    @property
    def done(self) -> bool:
        """Whether the object is inside and not held."""
        return not held(self.state) and self._env.holds(self._goal)

    @property
    def clear(self) -> bool:
        """Whether the hand is away from the object's handle."""
        return float(np.linalg.norm(self.state.hand - self.state.item)) > CLEAR

    def observe(self) -> SceneState:
        """Reads the current state into ``state``."""
        self.state = self._scene.observe(self._item, self._item)._replace(place=self._place)
        return self.state

    @property
    def _fingers(self) -> Vector:
        """The direction (unit vector, world) of the fingers."""
        return np.sin(PITCH) * self._heading - np.cos(PITCH) * UP

    @property
    def _heading(self) -> Vector:
        """The horizontal part of the fingers' direction (unit vector, world)."""
        across = np.cross(UP, self._inward)
        robot = float(np.sign((self._scene.shoulder_position - self._place) @ across))
        return np.cos(YAW) * self._inward - np.sin(YAW) * robot * across

    @property
    def _rotation(self) -> Matrix:
        """The pitched hand, its fingers on both sides of the handle, in the heading that is nearer home."""
        return nearer_home(self._scene, np.cross(UP, self._heading), self._fingers)

    def plan(self) -> Grasp | None:
        """How the handle would be gripped where it is now; None if no handle points away from the opening."""
        grasp = self._grasp()
        if grasp is None:
            return None
        path = [grasp.position - distance * self._fingers for distance in (RETREAT, 0.5 * RETREAT, 0.0)]
        cost = reach_cost(self._scene, self._item, path, grasp.rotation, CLEARANCE / 2)
        return dataclasses.replace(grasp, cost=cost)

    def _grasp(self) -> Grasp | None:
        """As :meth:`plan`, without the cost of reaching the handle."""
        vertices, origin = self._scene.vertices(self._item), self._scene.position(self._item)
        outward = -vertices @ self._inward
        handle = vertices[outward > outward.max() - HANDLE]
        width = handle @ np.cross(UP, self._inward)
        if self._scene.rotation(self._item)[2, 2] < 0.9 or width.max() - width.min() > WALL_WIDTH:
            return None
        position = (handle.max(0) + handle.min(0)) / 2
        travel = float(position[2]) + RETREAT
        return Grasp(0.0, position, self._rotation, position - origin, travel, 0.0, self.style)

    def decide(self, state: SceneState) -> tuple[Phase, Action]:
        """The phase that a state is in, and what to do in it."""
        if held(state):
            if self._may_let_go(state):
                return Phase.OPEN, still(OPEN)
            if not firm(state):
                return Phase.CLOSE, still(CLOSE)
            return self._carry(state)
        if self.done:
            return self._leave(state)
        grasp = self._grasp()
        return leave(state) if grasp is None else reach_and_close(state, grasp, -self._fingers)

    def _may_let_go(self, state: SceneState) -> bool:
        """Whether a held object stands where it should be."""
        return state.aside < TOLERANCE and (state.height < 0.004 or (state.supported and state.height < 0.02))

    def _carry(self, state: SceneState) -> tuple[Phase, Action]:
        """A held object: up and past the open door, to in front of the opening, straight in, down."""
        missing = state.place - state.item
        inward = float(missing @ self._inward)
        coming, outside = ramp(inward, FRONT + 0.005, FRONT + 0.02), ramp(inward, 0.06, 0.09)
        sideways = missing * [1, 1, 0] - inward * self._inward + coming * ASIDE * self._aside
        low = LIFTED - state.height
        off = max(ramp(float(np.linalg.norm(sideways)), 0.01, 0.025), ramp(low, 0.004, 0.012))
        # As long as it is too low or beside its path it stays where it is or, before the opening, moves back there.
        ahead = (1.0 - off) * (inward - FRONT + 0.01) if coming > 0.0 else inward - outside * off * FRONT
        there = abs(inward) < 0.005
        rise = (-0.01 if there else LIFTED) - state.height
        phase = Phase.LIFT if low > 0.012 and outside > 0.0 else Phase.LOWER if there else Phase.CARRY
        turn = rotation_vector(self._rotation @ state.rotation.T)
        move = ahead * self._inward + sideways + rise * UP
        return phase, towards(state, state.hand + move, turn, CLOSE, 0.8 if outside > 0.0 else 0.5)

    def _leave(self, state: SceneState) -> tuple[Phase, Action]:
        """Lets go, and out the way that the hand came in."""
        if state.opening < WIDE and not self.clear:
            return Phase.OPEN, still(OPEN)
        return Phase.RETREAT, towards(state, state.hand - 0.05 * state.rotation[:, 2], np.zeros(3), OPEN, 0.6)
