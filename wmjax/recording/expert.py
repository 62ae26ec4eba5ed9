"""A scripted pick-and-place expert whose action is a function of the simulator's state alone.

It reads the true poses of the simulation and has no counters, so its action in a state does not depend on who led to
that state. The same code therefore records demonstrations, labels other actions, and computes an oracle's future.
"""

from enum import StrEnum

import numpy as np
from jaxtyping import Float64

from wmjax.core.errors import UserError
from wmjax.recording.canonical import CLEARANCE, is_rim, usual_grasp
from wmjax.recording.grasp import Grasp, GraspStyle, NoGraspError, grasp_now, plan_grasp, reach_height
from wmjax.recording.privileged_scene import UP, Scene, Seen, Vector, rotation_vector
from wmjax.sim.env import LiberoEnv

Action = Float64[np.ndarray, "7"]
POSITION_SCALE, ROTATION_SCALE = 0.05, 0.5
"""The motion of robosuite's OSC_POSE controller for an action of 1 (m, rad)."""
GAIN = 1.5
"""Commanded distance per distance from the goal; below 1.5 the arm's friction leaves millimetres."""
OPEN, CLOSE = -1.0, 1.0
DROP_HEIGHT = 0.08
"""Height (m) above the middle of a container at which an object is released."""
DONE, DONE_INSIDE = 0.028, 0.08
"""An object this near (m, sideways) to its place, on something or in something, may stay there; LIBERO wants 0.03."""
AT_PLACE = 0.015
"""A held object this near (m, sideways) to its place may be let go."""
ROOM = 0.055
"""What must be free (m) below a held object before it is carried far."""
NEAR = 0.10
"""An object this near (m, sideways) to its place is carried at the height of letting down."""
ABOVE = 0.10
"""Height (m) above the place to which an object is carried before it is let down."""
WIDE = 0.065
"""Fingers this far (m) apart fit around what is to be grasped."""
EMPTY = 0.004
"""Fingers this near (m) to each other hold nothing."""
RISE = 0.03
"""Height (m) above the grasp up to which the hand rises with closed fingers after a miss."""
MOVED = 0.015
"""Size (m) of the cells of positions of the object in which the grasp is planned anew."""


class Phase(StrEnum):
    """The phases of the expert."""

    APPROACH = "approach"
    DESCEND = "descend"
    CLOSE = "close"
    REGRASP = "regrasp"
    LIFT = "lift"
    CARRY = "carry"
    LOWER = "lower"
    OPEN = "open"
    RETREAT = "retreat"


def ramp(value: float, low: float, high: float) -> float:
    """0 up to ``low``, 1 from ``high`` on, linear between."""
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))


class Expert:
    """Picks the goal's object up and puts it where the goal says.

    Attributes:
        phase: of the last action.
        seen: the state that the last action answered.
        style: how the object is usually grasped in this task, None if there is no usual way.

    """

    def __init__(self, env: LiberoEnv, style: GraspStyle | None = None) -> None:
        """Reads ``env``, which is never stepped; an episode may be under way in it.

        Args:
            env: the environment.
            style: how to grasp; the task's usual grasp when None, see :func:`wmjax.recording.canonical.usual_grasp`.

        Raises:
            UserError: the task is not one of putting an object onto or into something.

        """
        if len(env.goal) != 3 or env.goal[0] not in ("on", "in"):
            raise UserError(
                f"{env.suite} task {env.task_id}: the expert cannot do {' '.join(env.goal)!r}, only on or in"
            )
        relation, self._item, self._target = env.goal
        self.style = style or usual_grasp(env)
        self.phase = Phase.APPROACH
        self._scene = Scene(env.sim)
        self.seen = self._scene.look(self._item, self._target)
        self._drop = DROP_HEIGHT if relation == "in" else 0.0
        self._done = DONE_INSIDE if relation == "in" else DONE
        self._plans: dict[tuple[int, ...], Grasp | None] = {}

    def act(self) -> Action:
        """The action for the current state, each value in [-1, 1]."""
        self.seen = self._scene.look(self._item, self._target)
        self.phase, action = self._decide(self.seen)
        return np.clip(action, -1.0, 1.0)

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

    def _decide(self, seen: Seen) -> tuple[Phase, Action]:
        """The phase that a state is in, and what to do in it."""
        if _held(seen):
            if self._may_let_go(seen):
                return Phase.OPEN, _still(OPEN)
            if not _firm(seen):
                return Phase.CLOSE, _still(CLOSE)
            return self._carry(seen)
        if seen.aside < self._done and seen.height < (self._drop or 0.03):
            return _leave(seen)
        grasp = self.plan()
        return _leave(seen) if grasp is None else reach_and_close(seen, grasp)

    def _may_let_go(self, seen: Seen) -> bool:
        """Whether a held object is where it should be."""
        if self._drop:
            return seen.aside < DONE and seen.height < self._drop + 0.01
        stands = seen.height < 0.012 or (seen.supported and seen.speed < 0.03 and seen.height < 0.04)
        return seen.aside < AT_PLACE and stands

    def _carry(self, seen: Seen) -> tuple[Phase, Action]:
        """A held object: up while something is close below it, over its place, down."""
        offset = seen.hand - seen.item
        goal = seen.place + offset
        far = ramp(seen.aside, 0.008, 0.03)
        goal[2] += self._drop + 0.003 + far * ABOVE
        if seen.aside > NEAR:
            reach = reach_height(self._scene, seen.hand, seen.rotation)
            goal[2] = max(goal[2], min(max(seen.place[2] + self._drop + 0.15, seen.hand[2]), reach))
        free = self._free(seen)
        if free < 1.0:
            goal[2] = max(goal[2], seen.hand[2] + (1.0 - free) * 0.05)
        goal[:2] = seen.hand[:2] + free * (goal - seen.hand)[:2]
        phase = Phase.LIFT if free < 0.5 else Phase.CARRY if far == 1.0 else Phase.LOWER
        return phase, _towards(seen, goal, _levelling(seen), CLOSE, 1.0 if far > 0.2 else 0.4)

    def _free(self, seen: Seen) -> float:
        """How freely a held object may move sideways: 0 not at all, as in a drawer, 1 as fast as it can."""
        if seen.aside < 0.03:
            return 1.0
        need = ROOM if seen.aside > NEAR else 0.03
        free = ramp(self._scene.room_below(self._item), need - 0.015, need)
        if seen.aside > NEAR:
            free = min(free, ramp(self._scene.room_ahead(self._item, seen.place), 0.0, 0.015))
        reach = reach_height(self._scene, seen.hand, seen.rotation)
        return max(free, ramp(seen.hand[2], reach - 0.02, reach))  # higher is out of reach


def _held(seen: Seen) -> bool:
    """Whether the fingers hold the object: both touch it, or one does and something keeps them apart."""
    squeezed = seen.opening - seen.command
    blocked = seen.touching > 0 and squeezed > 0.002 and abs(seen.closing) < 0.02
    return squeezed > 0.0 and (seen.touching == 2 or blocked)


def _firm(seen: Seen) -> bool:
    """Whether the fingers have closed on what they hold."""
    return seen.command < 0.001 and abs(seen.closing) < 0.015


def reach_and_close(seen: Seen, grasp: Grasp) -> tuple[Phase, Action]:
    """The phase and the action of a hand that holds nothing: towards the grasp, from above; there the fingers close."""
    away = seen.hand - grasp.position
    sideways, high = float(np.linalg.norm(away[:2])), float(away[2])
    turn = rotation_vector(grasp.rotation @ seen.rotation.T)
    wrong = float(np.linalg.norm(turn))
    at_grasp = sideways < 0.02 and wrong < 0.3
    if at_grasp and high < RISE and seen.opening < WIDE:
        # How far apart the fingers are decides, not which way they move: one camera frame shows only the former.
        if seen.opening < EMPTY:
            return Phase.REGRASP, _towards(seen, grasp.position + (RISE + 0.015) * UP, turn, CLOSE, 1.0)
        return Phase.CLOSE, _still(CLOSE)
    if at_grasp and abs(high) < 0.02:
        close_enough = sideways < 0.008 and abs(high) < 0.006
        if close_enough or (seen.speed < 0.01 and sideways < 0.015):
            return Phase.CLOSE, _still(CLOSE)
    travel = grasp.travel_height - grasp.position[2]
    above = travel * max(ramp(sideways, 0.01, 0.03), ramp(wrong, 0.08, 0.2))
    if seen.opening < WIDE:
        above = max(above, RISE + 0.015)
    goal = grasp.position + above * UP
    near = sideways < 0.03 and wrong < 0.2
    return (Phase.DESCEND if near else Phase.APPROACH), _towards(seen, goal, turn, OPEN, 0.6 if near else 1.0)


def _leave(seen: Seen) -> tuple[Phase, Action]:
    """Lets go where it stands, then up and out of the way."""
    if seen.opening < WIDE and np.linalg.norm(seen.hand - seen.item) < 0.10:
        return Phase.OPEN, _still(OPEN)
    goal = seen.hand.copy()
    goal[2] = max(goal[2], seen.item[2] + 0.16)
    return Phase.RETREAT, _towards(seen, goal, np.zeros(3), OPEN, 0.6)


def _levelling(seen: Seen) -> Vector:
    """The rotation vector (rad) that would bring a leaning object upright; none for one that lies."""
    axis = np.cross(seen.item_rotation[:, 2], UP)
    angle = float(np.arctan2(np.linalg.norm(axis), seen.item_rotation[2, 2]))
    if not 0.02 < angle < 0.5:
        return np.zeros(3)
    return axis / np.linalg.norm(axis) * angle


def _still(gripper: float) -> Action:
    return np.r_[np.zeros(6), gripper]


def _towards(seen: Seen, position: Vector, turn: Vector, gripper: float, speed: float) -> Action:
    """The action towards a pose.

    Args:
        seen: the state.
        position: where the hand should be (m, world).
        turn: how far it should turn (rotation vector, rad).
        gripper: ``OPEN`` or ``CLOSE``.
        speed: largest translation command, in [0, 1].

    """
    move = GAIN * (position - seen.hand) / POSITION_SCALE
    move = move * min(1.0, speed / max(float(np.abs(move).max()), 1e-12))
    rotate = turn / ROTATION_SCALE if np.linalg.norm(turn) > 0.01 else np.zeros(3)
    return np.r_[move, np.clip(rotate, -0.5, 0.5), gripper]
