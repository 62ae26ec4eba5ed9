"""A scripted pick-and-place expert: it plans a grasp, then goes through phases under closed-loop control.

It reads the true poses of the simulation and computes its action anew from every observation. Its actions are
therefore corrective labels even where another action was executed.
"""

import dataclasses
from collections.abc import Callable
from enum import StrEnum

import numpy as np
from jaxtyping import Float64

from wmjax.core.errors import UserError
from wmjax.recording.grasp import Grasp, NoGraspError, plan_grasp, reach_height
from wmjax.recording.privileged_scene import UP, Matrix, Scene, Vector, rotation_vector
from wmjax.sim.env import LiberoEnv

POSITION_SCALE, ROTATION_SCALE = 0.05, 0.5
"""The motion of robosuite's OSC_POSE controller for an action of 1 (m, rad)."""
OPEN, CLOSE = -1.0, 1.0
MAX_RETRIES = 2
DROP_HEIGHT = 0.08
"""Height (m) above the middle of a container at which an object is released."""
MOVED = 0.015
"""An object that is this far (m) from where its grasp was planned needs another plan."""
STANDS = 0.03
"""An object this near (m, sideways) to its place is above it, or stands on it if it is as low."""
AT_GRASP = 0.012
"""A hand this near (m, sideways and in height) to the grasp may close."""


class Phase(StrEnum):
    """The phases of the expert."""

    APPROACH = "approach"
    DESCEND = "descend"
    CLOSE = "close"
    LIFT = "lift"
    REGRASP = "regrasp"
    CARRY = "carry"
    LOWER = "lower"
    OPEN = "open"
    RETREAT = "retreat"


class HandController:
    """Proportional control of the hand's pose with a little integral action near the goal."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._integral = np.zeros(3)

    def reset(self) -> None:
        """Forgets the integral."""
        self._integral = np.zeros(3)

    def action(
        self, position: Vector, rotation: Matrix, gripper: float, speed: float = 1.0
    ) -> Float64[np.ndarray, "7"]:
        """The action towards a pose.

        Args:
            position: where the hand should be (m, world).
            rotation: how it should be turned.
            gripper: ``OPEN`` or ``CLOSE``.
            speed: largest translation command, in [0, 1].

        """
        error = position - self._scene.hand_position
        if np.linalg.norm(error) < 0.03:
            self._integral = np.clip(self._integral + 0.15 * error, -0.015, 0.015)
        else:
            self._integral = self._integral * 0.7
        move = (error + self._integral) / POSITION_SCALE
        move *= min(1.0, speed / max(float(np.abs(move).max()), 1e-12))
        turn = rotation_vector(rotation @ self._scene.hand_rotation.T) / ROTATION_SCALE
        if np.linalg.norm(turn) < 0.02:
            turn = np.zeros(3)
        return np.r_[np.clip(move, -1, 1), np.clip(turn, -0.5, 0.5), gripper]


class Expert:
    """Picks the goal's object up and puts it where the goal says.

    Attributes:
        phase: what it is doing now.
        grasp: the planned grasp; its cost is infinite when there is none.

    """

    def __init__(self, env: LiberoEnv, *, clearance: float = 0.008, under_way: bool = False) -> None:
        """Plans for the episode that ``env`` has just been reset to.

        Args:
            env: the environment, read but never stepped.
            clearance: distance (m) that the hand should keep from obstacles while grasping.
            under_way: the episode has gone on under somebody else; nothing is planned before :meth:`take_over`.

        Raises:
            UserError: the task is not one of putting an object onto or into something.

        """
        if len(env.goal) != 3 or env.goal[0] not in ("on", "in"):
            raise UserError(
                f"{env.suite} task {env.task_id}: the expert cannot do {' '.join(env.goal)!r}, only on or in"
            )
        relation, self._item, self._target = env.goal
        self._scene = Scene(env.sim)
        self._rim = "bowl" in self._item
        self._drop = DROP_HEIGHT if relation == "in" else None
        self._clearance = clearance
        self._rejected: list[float] = []
        self._hand = HandController(self._scene)
        self._actions: dict[Phase, Callable[[], Float64[np.ndarray, "7"]]] = {
            phase: getattr(self, f"_{phase.value}") for phase in Phase
        }
        self._kept: tuple[Grasp, Vector] | None = None
        if not under_way:
            self._plan()

    def take_over(self) -> None:
        """Goes on from the scene as it is, in the phase that it is in, whoever has acted until now.

        May be called again and again, as when a future is tried out at every decision of an episode. The grasp stays
        the one of the call before while the object stands where it stood: two ways to grasp may be equally good, and
        an expert that changes its mind never arrives. Without any way to grasp, the hand is raised.
        """
        scene, self._rejected = self._scene, []
        self._hand.reset()
        item, place = scene.position(self._item), scene.place_position(self._target)
        above = np.linalg.norm((item - place)[:2]) < STANDS
        if scene.held(self._item):
            self._carry_on(item, place, bool(above))
        elif above and item[2] - place[2] < (self._drop or STANDS):
            self.grasp = self._as_it_is(item)
            self._enter(Phase.RETREAT)
        else:
            self._resume_grasping(item)

    def _as_it_is(self, item: Vector) -> Grasp:
        """The grasp that the hand is in now."""
        hand = self._scene.hand_position
        return Grasp(0.0, hand, self._scene.hand_rotation, hand - item, float(hand[2]), 0.0)

    def _carry_on(self, item: Vector, place: Vector, above: bool) -> None:
        """With the object in the hand: lifts it, carries it or lowers it."""
        self.grasp, self._item_start = self._as_it_is(item), item
        self._lift_height = max(float(self._scene.hand_position[2]), place[2] + 0.15 + (self._drop or 0.0))
        if above:
            self._enter(Phase.LOWER)
        else:
            self._enter(Phase.CARRY if item[2] - place[2] > 0.05 + (self._drop or 0.0) else Phase.LIFT)

    def _resume_grasping(self, item: Vector) -> None:
        """With the object somewhere else: as far along the planned grasp as the hand is."""
        if self._kept is None or np.linalg.norm(item - self._kept[1]) > MOVED:
            self._plan()
            if self.phase is Phase.RETREAT:
                return
            self._kept = (self.grasp, self._item_start)
        self.grasp, self._item_start = self._kept
        hand = self._scene.hand_position
        away = hand - self._grasp_position(item)
        sideways = np.linalg.norm(away[:2])
        turned = np.linalg.norm(rotation_vector(self.grasp.rotation @ self._scene.hand_rotation.T)) < 0.15
        if not turned or sideways > 0.02 or hand[2] > self.grasp.travel_height + 0.02:
            self._enter(Phase.APPROACH)
        else:
            self._enter(Phase.CLOSE if sideways < AT_GRASP and abs(away[2]) < AT_GRASP else Phase.DESCEND)

    def act(self) -> Float64[np.ndarray, "7"]:
        """The action for the current state, each value in [-1, 1]. Call once per control step."""
        self._count += 1
        return np.clip(self._actions[self.phase](), -1.0, 1.0)

    def _plan(self) -> None:
        """Chooses a grasp and approaches it; if nothing could grasp the object, as when it has fallen, gives up."""
        scene = self._scene
        self._item_start = scene.position(self._item)
        self._hand.reset()
        try:
            self.grasp = plan_grasp(
                scene, self._item, self._target, rim=self._rim, clearance=self._clearance, rejected=self._rejected
            )
        except NoGraspError:
            self.grasp = dataclasses.replace(self._as_it_is(self._item_start), cost=np.inf)
            self._enter(Phase.RETREAT)
        else:
            self._enter(Phase.APPROACH)

    def _enter(self, phase: Phase) -> None:
        """Starts a phase at the next action; ``_count`` counts its actions from 1, ``_anchor`` is where it began."""
        self.phase, self._count = phase, 0
        self._anchor = self._scene.hand_position
        self._last = np.inf

    def _go(self, position: Vector, gripper: float, speed: float = 1.0) -> Float64[np.ndarray, "7"]:
        return self._hand.action(position, self.grasp.rotation, gripper, speed)

    def _reach(self, position: Vector) -> float:
        return reach_height(self._scene, position, self.grasp.rotation)

    def _held(self) -> tuple[Vector, Vector]:
        """The object's position as seen from the hand, and where the object should end up."""
        scene = self._scene
        return scene.position(self._item) - scene.hand_position, scene.place_position(self._target)

    def _grasp_position(self, item: Vector) -> Vector:
        """The position at which the hand closes, with the object at ``item`` but at its original height."""
        return np.r_[item[:2], self._item_start[2]] + self.grasp.offset

    def _approach(self) -> Float64[np.ndarray, "7"]:
        """To a safe height above the grasp, already turned."""
        scene = self._scene
        goal = np.r_[self.grasp.position[:2], self.grasp.travel_height]
        turned = np.linalg.norm(rotation_vector(self.grasp.rotation @ scene.hand_rotation.T)) < 0.08
        action = self._go(goal, OPEN)
        if (np.linalg.norm(scene.hand_position - goal) < 0.02 and turned) or self._count > 70:
            self._enter(Phase.DESCEND)
        return action

    def _descend(self) -> Float64[np.ndarray, "7"]:
        """Down to the grasp, following the object if it moved; first sideways when off by more than 12 mm."""
        hand, item = self._scene.hand_position, self._scene.position(self._item)
        grasp = self._grasp_position(item)
        sideways = np.linalg.norm((hand - grasp)[:2])
        goal = grasp.copy()
        if sideways > 0.012:
            goal[2] = max(grasp[2] + 0.03, min(hand[2], grasp[2] + 0.08))
        action = self._go(goal, OPEN, speed=0.6)
        if (sideways < 0.008 and abs(hand[2] - grasp[2]) < 0.006) or self._count > 50:
            self._enter(Phase.CLOSE)
        return action

    def _close(self) -> Float64[np.ndarray, "7"]:
        """Closes where it stands until the fingers stop."""
        if self._count == 1:
            self._anchor = self._scene.hand_position
        action = self._go(self._anchor, CLOSE)
        opening = self._scene.finger_opening
        stopped = abs(opening - self._last) < 4e-4
        self._last = opening
        if self._count >= 8 and (stopped or self._count >= 20):
            self._enter(Phase.LIFT)
        return action

    def _lift(self) -> Float64[np.ndarray, "7"]:
        """Straight up; tries another grasp if the object stayed behind."""
        scene, hand = self._scene, self._scene.hand_position
        if self._count == 1:
            self._anchor = hand
            above = scene.place_position(self._target)[2] + 0.15 + (self._drop or 0.0)
            self._lift_height = min(max(hand[2] + 0.07, above), max(self._reach(hand), hand[2] + 0.05))
        goal = np.r_[self._anchor[:2], self._lift_height]
        action = self._go(goal, CLOSE)
        if abs(hand[2] - goal[2]) < 0.015 or self._count > 40:
            item = scene.position(self._item)
            lifted = item[2] - self._item_start[2] > 0.02 and np.linalg.norm(item - hand) < 0.12
            self._after_lift(bool(lifted))
        return action

    def _after_lift(self, lifted: bool) -> None:
        if lifted or len(self._rejected) >= MAX_RETRIES:
            self._enter(Phase.CARRY)
        else:
            self._rejected.append(self.grasp.angle)
            self._enter(Phase.REGRASP)

    def _regrasp(self) -> Float64[np.ndarray, "7"]:
        """Opens, moves up a little, plans again."""
        if self._count == 1:
            self._anchor = self._scene.hand_position
        action = self._go(self._anchor + 0.04 * UP, OPEN)
        if self._count >= 8:
            self._plan()
        return action

    def _carry(self) -> Float64[np.ndarray, "7"]:
        """To above the target, high until near."""
        hand = self._scene.hand_position
        offset, place = self._held()
        goal = place - offset + (0.10 + (self._drop or 0.0)) * UP
        sideways = np.linalg.norm((hand - goal)[:2])
        if sideways > 0.10:
            goal[2] = max(goal[2], min(self._lift_height, self._reach(hand)))
        action = self._go(goal, CLOSE)
        if (sideways < 0.008 and abs(hand[2] - goal[2]) < 0.04) or self._count > 80:
            self._enter(Phase.LOWER)
        return action

    def _lower(self) -> Float64[np.ndarray, "7"]:
        """Down until the object stands, or to the height from which it may fall."""
        offset, place = self._held()
        release = 0.003 if self._drop is None else self._drop
        action = self._go(place - offset + release * UP, CLOSE, speed=0.4)
        height = self._scene.position(self._item)[2] - place[2]
        stuck = self._count > 8 and abs(self._last - height) < 3e-4
        self._last = height
        low_enough = 0.012 if self._drop is None else self._drop + 0.01
        if height < low_enough or stuck or self._count > 40:
            self._enter(Phase.OPEN)
        return action

    def _open(self) -> Float64[np.ndarray, "7"]:
        """Lets go where it stands."""
        action = self._go(self._anchor, OPEN, speed=0.3)
        if self._count >= 6:
            anchor = self._anchor
            self._enter(Phase.RETREAT)
            self._anchor = anchor
        return action

    def _retreat(self) -> Float64[np.ndarray, "7"]:
        """Up and out of the way, for as long as it is asked."""
        return self._go(self._anchor + 0.10 * UP, OPEN, speed=0.6)
