"""The scripted expert: a task's goal, reached by the primitive of its predicate.

It reads the true poses of the simulation and has no counters, so its action in a state does not depend on who led to
that state. The same code therefore records demonstrations, labels other actions, and computes an oracle's future.
"""

from wmjax.recording.primitives.base import primitive_for
from wmjax.recording.primitives.grasp import Grasp, GraspStyle
from wmjax.recording.primitives.motion import Action, Phase
from wmjax.recording.primitives.privileged_scene import Seen
from wmjax.sim.env import LiberoEnv


class Expert:
    """Solves the task of an environment: the one class that an environment names as its expert, whatever its tasks.

    Args:
        env: the environment, which is never stepped; an episode may be under way in it.
        style: how to grasp; the primitive's own choice when None.

    Raises:
        UserError: see :func:`wmjax.recording.primitives.base.primitive_for`.

    """

    def __init__(self, env: LiberoEnv, style: GraspStyle | None = None) -> None:
        self._primitive = primitive_for(env)(env, style)

    @property
    def phase(self) -> Phase:
        """Of the last action."""
        return self._primitive.phase

    @property
    def seen(self) -> Seen:
        """The state that the last action answered."""
        return self._primitive.seen

    @property
    def style(self) -> GraspStyle | None:
        """How the object is usually grasped in this task, None if there is no usual way."""
        return self._primitive.style

    def act(self) -> Action:
        """The action for the current state, each value in [-1, 1]."""
        return self._primitive.act()

    def plan(self) -> Grasp | None:
        """How the object would be grasped where it is now; None if nothing could grasp it, as when it has fallen."""
        return self._primitive.plan()
