"""The scripted expert, which reaches a task's goal by the primitives of its predicates, one after the other.

It reads the true poses of the simulation and has no counters, so its action in a state does not depend on what led to
that state. The same code therefore records demonstrations, labels other actions, and computes an oracle's future.
"""

import numpy as np

from wmjax.recording.primitives.base import Primitive, primitive_for
from wmjax.recording.primitives.drawer import Drawer
from wmjax.recording.primitives.grasp import Grasp, GraspStyle
from wmjax.recording.primitives.motion import Action, Phase
from wmjax.recording.primitives.privileged_scene import SceneState
from wmjax.sim.env import LiberoEnv

LAST = ("close",)
"""Predicates that are made true when all others hold."""


class Expert:
    """Solves any task of a LIBERO environment; the environment names this class as its expert.

    Of a goal with several predicates it makes true the first that does not hold, and a drawer is opened before
    something is put in it. It continues with an object that it holds, and does not turn to another one before the hand
    is clear of the last.

    Args:
        env: the environment, which is never stepped; an episode may be under way in it.
        style: how to grasp; the primitive's own choice when None.

    Raises:
        UserError: see :func:`wmjax.recording.primitives.base.primitive_for`.

    """

    def __init__(self, env: LiberoEnv, style: GraspStyle | None = None) -> None:
        self._env = env
        goals = sorted(env.predicates, key=lambda goal: goal[0] in LAST)
        kinds = [primitive_for(env, goal) for goal in goals]  # a goal out of reach is refused before a grasp is chosen
        self._primitives = [kind(env, goal, style) for kind, goal in zip(kinds, goals, strict=True)]
        self._openers = [self._opener(goal) for goal in goals]
        self._active = self._choose()

    def _opener(self, goal: tuple[str, ...]) -> Drawer | None:
        """Opens the drawer that something is to be put in."""
        if goal[0] != "in" or self._env.joint(goal[2]) is None:
            return None
        return Drawer(self._env, ("open", goal[2]))

    @property
    def phase(self) -> Phase:
        """Of the last action."""
        return self._active.phase

    @property
    def state(self) -> SceneState:
        """The state that the last action answered."""
        return self._active.state

    @property
    def style(self) -> GraspStyle | None:
        """How the object is usually grasped in this task, None if there is no usual way."""
        return self._active.style

    def act(self) -> Action:
        """The action for the current state, each value in [-1, 1]."""
        self._active = self._choose()
        return self._active.act()

    def plan(self) -> Grasp | None:
        """How the object would be grasped where it is now; None if nothing could grasp it, as when it has fallen."""
        return self._active.plan()

    def _choose(self) -> Primitive:
        """The primitive that acts in the current state."""
        if len(self._primitives) == 1 and self._openers == [None]:
            return self._primitives[0]
        needed, finished = self._sorted()
        for primitive in needed + finished:
            if primitive.holding:
                return primitive
        nearest = min((_aside(primitive) for primitive in needed), default=np.inf)
        for primitive in finished:
            if not primitive.clear and _aside(primitive) < nearest:
                return primitive
        return needed[0] if needed else self._primitives[-1]

    def _sorted(self) -> tuple[list[Primitive], list[Primitive]]:
        """The primitives that have something left to do in the current state, in order, and the others."""
        needed: list[Primitive] = []
        finished: list[Primitive] = []
        for primitive, opener in zip(self._primitives, self._openers, strict=True):
            primitive.observe()
            if opener is not None:
                opener.observe()
                (finished if primitive.done or opener.passable else needed).append(opener)
            (finished if primitive.done else needed).append(primitive)
        return needed, finished


def _aside(primitive: Primitive) -> float:
    """Distance (m, sideways) of the hand from the object."""
    return float(np.linalg.norm((primitive.state.hand - primitive.state.item)[:2]))
