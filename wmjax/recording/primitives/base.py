"""The interface of primitives, and the table of them.

A primitive is a class in its own module and a line of :data:`PRIMITIVES`. It must be Markov: its action is a
function of the simulator's state, so that it can continue from any state. That makes its labels independent of what led
to a state.
"""

import abc
from typing import ClassVar

import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.registry import Registry
from wmjax.recording.primitives.grasp import Grasp, GraspStyle
from wmjax.recording.primitives.motion import Action, Phase, clear, held
from wmjax.recording.primitives.privileged_scene import SceneState
from wmjax.sim.env import LiberoEnv


class Primitive(abc.ABC):
    """Makes one predicate true.

    Attributes:
        predicates: those that it makes true, as LIBERO spells them in a parsed goal.
        phase: of the last action.
        state: that of the scene in which the last action was decided.
        style: how the object is usually grasped in this task, None if there is no usual way.

    """

    predicates: ClassVar[tuple[str, ...]]
    phase = Phase.APPROACH
    state: SceneState
    style: GraspStyle | None = None

    @abc.abstractmethod
    def __init__(self, env: LiberoEnv, goal: tuple[str, ...], style: GraspStyle | None = None) -> None:
        """Reads ``env``, which is never stepped; an episode may be under way in it. ``goal`` is the predicate."""

    @classmethod
    def fits(cls, env: LiberoEnv, goal: tuple[str, ...]) -> bool:
        """Whether this primitive can make a predicate of the environment's goal true."""
        return goal[0] in cls.predicates

    @property
    @abc.abstractmethod
    def done(self) -> bool:
        """Whether ``state`` is a state in which the predicate is reached."""

    @abc.abstractmethod
    def observe(self) -> SceneState:
        """Reads the current state into ``state``."""

    @abc.abstractmethod
    def decide(self, state: SceneState) -> tuple[Phase, Action]:
        """The phase that a state is in, and what to do in it."""

    @abc.abstractmethod
    def plan(self) -> Grasp | None:
        """How the object would be grasped where it is now; None if nothing could grasp it."""

    def act(self) -> Action:
        """The action for the current state, each value in [-1, 1]."""
        self.phase, action = self.decide(self.observe())
        return np.clip(action, -1.0, 1.0)

    @property
    def holding(self) -> bool:
        """Whether in ``state`` the hand holds the object for this predicate, and must let go before it turns away."""
        return held(self.state)

    @property
    def clear(self) -> bool:
        """Whether the hand of ``state`` can turn to another object without touching this one."""
        return clear(self.state)


PRIMITIVES: Registry[Primitive] = Registry(
    "primitive",
    {
        "insert": "wmjax.recording.primitives.insert:Insert",
        "put": "wmjax.recording.primitives.put:Put",
        "drawer": "wmjax.recording.primitives.drawer:Drawer",
        "door": "wmjax.recording.primitives.door:Door",
        "turn": "wmjax.recording.primitives.turn:Turn",
    },
)
"""All primitives; the first that fits a predicate makes it true."""


def primitive_for(env: LiberoEnv, goal: tuple[str, ...]) -> type[Primitive]:
    """The primitive that makes a predicate of a task's goal true.

    Raises:
        UserError: there is none.

    """
    kinds = [PRIMITIVES.resolve(name) for name in PRIMITIVES.known]
    for kind in kinds:
        if kind.fits(env, goal):
            return kind
    known = "; ".join(f"{kind.__name__} ({', '.join(kind.predicates)})" for kind in kinds)
    wanted = f"{env.suite} task {env.task_id}: no primitive reaches {' '.join(goal)!r}"
    raise UserError(f"{wanted}; there are {known}; leave the task out")
