"""Putting an object onto or into something: ``(on A B)`` and ``(in A B)``."""

import numpy as np

from wmjax.recording.primitives.base import Primitive
from wmjax.recording.primitives.canonical import CLEARANCE, is_rim, usual_grasp
from wmjax.recording.primitives.drawer import find_slide
from wmjax.recording.primitives.grasp import Grasp, GraspStyle, NoGraspError, grasp_now, plan_grasp, reach_height
from wmjax.recording.primitives.motion import (
    CLOSE,
    OPEN,
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
from wmjax.recording.primitives.privileged_scene import UP, Scene, SceneState, Vector
from wmjax.sim.env import LiberoEnv

DROP_HEIGHT, DRAWER_HEIGHT = 0.08, 0.05
"""Height (m) above the middle of a container, and of a drawer with its low walls, at which an object is released."""
RELEASE = 0.01
"""How far (m) above that height it may be released. Fingers that open there must not close again."""
DONE, DONE_INSIDE = 0.028, 0.08
"""An object this near (m, sideways) to its place, on something or in something, may stay there; LIBERO wants 0.03."""
STUCK = 0.01
"""A hand that is slower than this (m/s) comes no lower, as under the handle of the drawer above."""
AT_PLACE = 0.015
"""A held object this near (m, sideways) to its place may be let go."""
FORWARD = 0.022
"""Distance (m) from a drawer's middle, towards its handle, at which an object is put in."""
ROOM = 0.055
"""What must be free (m) below a held object before it is carried far."""
NEAR = 0.10
"""An object this near (m, sideways) to its place is carried at the height of letting down."""
ABOVE = 0.10
"""Height (m) above the place to which an object is carried before it is let down."""
STANDS = 0.03
"""A base that is less than this (m) below the origin makes no difference to LIBERO's ``on``."""
SURFACES = (0.06, 0.10)
"""Distances (m, sideways) from a held object at which it is asked how high the surface is on its way."""
WALLS = tuple(np.arange(0.03, 0.125, 0.005).tolist())
"""The same on the way to a container, whose walls are thin."""
SPREAD = 0.65
"""Objects that share a region are put within this part of it, from its middle, along its longer side."""
OUT = 0.05
"""Room (m) beside a held object into which it may be moved."""
OFF_GROUND = 0.02
"""Height (m) at which a held object is moved away from under something."""
COVER = 0.25
"""Height (m) above a held object within which something may be in its way up, as an open drawer is."""
MOVED = 0.015
"""Size (m) of the cells of positions of the object in which the grasp is planned again."""


class Put(Primitive):
    """Picks an object up and puts it where the predicate says.

    Attributes:
        phase: of the last action.
        state: that of the scene in which the last action was decided.
        style: how the object is usually grasped in this task, None if there is no usual way.

    """

    predicates = ("on", "in")

    def __init__(self, env: LiberoEnv, goal: tuple[str, ...], style: GraspStyle | None = None) -> None:
        """Reads ``env``, which is never stepped; an episode may be under way in it.

        Args:
            env: the environment.
            goal: one of these predicates.
            style: how to grasp; the task's usual grasp when None, see
                :func:`wmjax.recording.primitives.canonical.usual_grasp`.

        """
        relation, self._item, self._target = goal
        self.style = style or usual_grasp(env, goal)
        self._scene = Scene(env.sim)
        # What is put onto something stands on its base, which may be below its origin.
        base = self._scene.base(self._item) if relation == "on" else 0.0
        self._base = base if base > STANDS else 0.0
        forward = self._forward(env)
        self._shift = forward + self._base * UP + self._share(env, goal)
        self.observe()
        self._drop = 0.0 if relation == "on" else DRAWER_HEIGHT if forward.any() else DROP_HEIGHT
        self._done = DONE_INSIDE if relation == "in" else DONE
        self._plans: dict[tuple[int, ...], Grasp | None] = {}

    def _forward(self, env: LiberoEnv) -> Vector:
        """How far (m) in front of a drawer's middle its object is put: above the middle is the drawer above."""
        slide = find_slide(env, self._target)
        return np.zeros(3) if slide is None else FORWARD * slide[1] * self._scene.data.xaxis[slide[0]]

    def _share(self, env: LiberoEnv, goal: tuple[str, ...]) -> Vector:
        """How far (m, world) from a region's middle an object is put if others of the goal are put there too."""
        sharing = [other for other in env.predicates if other[0] == "on" and other[2] == self._target]
        if goal not in sharing or len(sharing) == 1 or not self._scene.is_region(self._target):
            return np.zeros(3)
        along = np.linspace(-SPREAD, SPREAD, len(sharing))[sharing.index(goal)]
        # The longer horizontal side: the x axis of a square region.
        return along * max(self._scene.region_box(self._target)[1][:2], key=lambda way: float(np.linalg.norm(way)))

    @property
    def done(self) -> bool:
        """Whether the object lies where it may stay."""
        high = DROP_HEIGHT + 2 * RELEASE if self._drop else 0.03
        return not held(self.state) and self.state.aside < self._done and self.state.height < high

    def observe(self) -> SceneState:
        """Reads the current state into ``state``."""
        state = self._scene.observe(self._item, self._target)
        self.state = state._replace(place=state.place + self._shift)
        return self.state

    def plan(self) -> Grasp | None:
        """How the object would be grasped where it is now; None if nothing could grasp it, as when it has fallen.

        Which way is kept for every cell of positions, so that it does not depend on when it is asked for; the pose
        follows from where the object is now.
        """
        cell = tuple(np.floor(self._scene.position(self._item) / MOVED).astype(int).tolist())
        if cell not in self._plans:
            self._plans[cell] = self._planned()
        grasp = self._plans[cell]
        if grasp is None:
            return None
        return grasp_now(self._scene, self._item, grasp, rim=is_rim(self._item)) or self._planned()

    def _planned(self) -> Grasp | None:
        item = self._item
        try:
            return plan_grasp(self._scene, item, self._target, rim=is_rim(item), clearance=CLEARANCE, style=self.style)
        except NoGraspError:
            return None

    def decide(self, state: SceneState) -> tuple[Phase, Action]:
        """The phase that a state is in, and what to do in it."""
        if held(state):
            if self._may_let_go(state):
                return Phase.OPEN, still(OPEN)
            if not firm(state):
                return Phase.CLOSE, still(CLOSE)
            return self._carry(state)
        if self.done:
            return leave(state)
        grasp = self.plan()
        return leave(state) if grasp is None else reach_and_close(state, grasp)

    def _may_let_go(self, state: SceneState) -> bool:
        """Whether a held object is where it should be."""
        if self._drop:
            limit = DROP_HEIGHT if state.speed < STUCK else self._drop
            return state.aside < DONE and state.height < limit + RELEASE
        placed = state.height < 0.012 or (state.supported and state.speed < 0.03 and state.height < 0.04)
        return state.aside < AT_PLACE and placed

    def _carry(self, state: SceneState) -> tuple[Phase, Action]:
        """A held object: up while something is close below it, over its place, down."""
        offset = state.hand - state.item
        goal = state.place + offset
        far = ramp(state.aside, 0.008, 0.03)
        goal[2] += self._drop + 0.003 + far * ABOVE
        if state.aside > NEAR:
            reach = reach_height(self._scene, state.hand, state.rotation)
            goal[2] = max(goal[2], min(max(state.place[2] + self._drop + 0.15, state.hand[2]), reach))
        free = self._free(state)
        if free < 1.0 and (way := self._way_out(state)).any():
            return Phase.LIFT, towards(state, state.hand + OUT * way, np.zeros(3), CLOSE, 0.4)
        if free < 1.0:
            goal[2] = max(goal[2], state.hand[2] + (1.0 - free) * 0.05)
        goal[:2] = state.hand[:2] + free * (goal - state.hand)[:2]
        phase = Phase.LIFT if free < 0.5 else Phase.CARRY if far == 1.0 else Phase.LOWER
        return phase, towards(state, goal, _levelling(state), CLOSE, 1.0 if far > 0.2 else 0.4)

    def _way_out(self, state: SceneState) -> Vector:
        """In which direction (unit vector, sideways) a held object leaves what it is under; zero if it is not."""
        if state.aside < NEAR or state.supported or self._scene.room_below(self._item) - self._base < OFF_GROUND:
            return np.zeros(3)
        return self._scene.way_out(self._item, COVER, OUT)

    def _free(self, state: SceneState) -> float:
        """How freely a held object may move sideways: 0 not at all, as in a drawer, 1 as fast as it can."""
        if state.aside < 0.03:
            return 1.0
        need = ROOM if state.aside > NEAR else 0.03
        free = ramp(self._scene.room_below(self._item) - self._base, need - 0.015, need)
        if state.aside > NEAR:
            ahead = self._scene.room_ahead(self._item, state.place, WALLS if self._drop else SURFACES)
            free = min(free, ramp(ahead - self._base, 0.0, 0.015))
        reach = reach_height(self._scene, state.hand, state.rotation)
        return max(free, ramp(state.hand[2], reach - 0.02, reach))  # higher is out of reach


def _levelling(state: SceneState) -> Vector:
    """The rotation vector (rad) that would bring a leaning object upright; none for one that lies."""
    axis = np.cross(state.item_rotation[:, 2], UP)
    angle = float(np.arctan2(np.linalg.norm(axis), state.item_rotation[2, 2]))
    if not 0.02 < angle < 0.5:
        return np.zeros(3)
    return axis / np.linalg.norm(axis) * angle
