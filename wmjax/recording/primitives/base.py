"""The interface of primitives, and the table of the predicates that they make true.

A primitive is a class in a module of its own and a line of :data:`PRIMITIVES`. It must be Markov: its action is a
function of the simulator's state, so that it can take over from anywhere. That makes its labels independent of who led
to a state.
"""

from typing import Any, Protocol

from wmjax.core.errors import UserError
from wmjax.core.registry import Registry
from wmjax.recording.primitives.grasp import Grasp, GraspStyle
from wmjax.recording.primitives.motion import Action, Phase
from wmjax.recording.primitives.privileged_scene import Seen
from wmjax.sim.env import LiberoEnv


class Primitive(Protocol):
    """Makes one predicate true; built as ``Class(env, style)``, where ``env.goal`` is that predicate.

    Attributes:
        phase: of the last action.
        seen: the state that the last action answered.
        style: how the object is usually grasped in this task, None if there is no usual way.

    """

    phase: Phase
    seen: Seen
    style: GraspStyle | None

    def __init__(self, env: LiberoEnv, style: GraspStyle | None = None) -> None:
        """Reads ``env``, which is never stepped; an episode may be under way in it."""

    def act(self) -> Action:
        """The action for the current state, each value in [-1, 1]."""

    def plan(self) -> Grasp | None:
        """How the object would be grasped where it is now; None if nothing could grasp it."""


PRIMITIVES: Registry[Any] = Registry(
    "predicate",
    {
        "on": "wmjax.recording.primitives.put:Put",
        "in": "wmjax.recording.primitives.put:Put",
        "turnon": "wmjax.recording.primitives.turn:Turn",
    },
)
"""By the predicate, as LIBERO spells it in a parsed goal; each is a :class:`Primitive`."""


def primitive_for(env: LiberoEnv) -> type[Primitive]:
    """The primitive that reaches a task's goal.

    Raises:
        UserError: no primitive makes the goal's predicate true, or the goal has several.

    """
    task, goal = f"{env.suite} task {env.task_id}", " ".join(env.goal)
    if env.goal[0] not in PRIMITIVES.known:
        raise UserError(
            f"{task}: no primitive reaches {goal!r}; there are primitives for {', '.join(PRIMITIVES.known)}, leave the "
            "task out"
        )
    if env.goals > 1:
        raise UserError(
            f"{task}: its goal is {goal!r} and {env.goals - 1} more, and the expert reaches goals of one predicate; "
            "leave the task out"
        )
    return PRIMITIVES.resolve(env.goal[0])
