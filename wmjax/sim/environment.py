"""The interface between the closed loop and a simulator, and the environments that a protocol may name.

``env = "libero"`` in a protocol names an environment of :data:`ENVIRONMENTS`, ``env = "package.module:Class"`` a class
of any installed package. Worker processes import that class and build one environment for each task. The parent
imports it too, for its class attributes: a module of an environment imports its simulator inside functions.
``docs/extending.md`` adds one.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from wmjax.core.registry import Registry
from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.sim.disturbance import Disturbance
from wmjax.sim.episode import EpisodeId


@runtime_checkable
class Environment(Protocol):
    """One task in this process.

    The observation must be a function of the physical state: after :meth:`restore` it is that of the restored state.
    The start of an episode must be a function of its :class:`EpisodeId`, independent of earlier episodes.

    Two methods are optional. ``sentences()`` returns the sentences of all tasks of the suite, in order; a
    protocol with ``sentence = "other"`` needs it. ``goals_held()`` returns the tasks of the suite whose goals hold now,
    as task ids in ascending order, or None where only the task's own goal can be judged; the evaluation's summary then
    lists the goals that were reached.

    Attributes:
        observation_spec: its observations, unless a policy or a setting requires others, such as another image size.
        action_spec: its actions. ``hold`` must be given: the robot executes it while, under a delay, no other action
            is due.
        suites: how many tasks each of its suites has.
        initial_states: how many fixed starts, the episodes of ``init = "benchmark"``, a task has; 0 for none.
        expert: ``"package.module:Class"`` of a scripted expert, built with the environment as
            :class:`wmjax.recording.expert.Expert` is; "" for none.
        spec: the observations of this instance, with ``simulator`` filled in.
        instruction: the task in words.
        settled_state: the full simulator state in which the current episode started, see :meth:`sim_state`.
        settled_hash: the identity of that state, for example 16 hex digits of its hash.

    """

    observation_spec: ClassVar[ObservationSpec]
    action_spec: ClassVar[ActionSpec]
    suites: ClassVar[Mapping[str, int]]
    initial_states: ClassVar[int]
    expert: ClassVar[str]
    spec: ObservationSpec
    instruction: str
    settled_state: Float64[np.ndarray, " values"]
    settled_hash: str

    def __init__(self, suite: str, task_id: int, spec: ObservationSpec) -> None:
        """Builds a task.

        Raises:
            UserError: the task does not exist, or the simulator cannot render what the spec requires.

        """

    @classmethod
    def simulator(cls, spec: ObservationSpec | None = None) -> str:
        """Names and versions of the packages that determine the images, found without building anything.

        Raises:
            UserError: it is not installed, or images of ``spec`` were drawn by another one.

        """

    def reset(self, episode: EpisodeId) -> None:
        """Starts an episode."""

    def disturb(self, disturbance: Disturbance, episode: EpisodeId) -> None:
        """Disturbs the episode that has just been reset, until the next reset.

        Raises:
            UserError: the environment has no such disturbance.

        """

    def step(self, action: Float[np.ndarray, " action"]) -> bool:
        """Executes one control step; returns whether the task's goal holds afterwards."""

    def render(self) -> UInt8[np.ndarray, "cameras size size 3"]:
        """Images of the spec's cameras in the current state."""

    def state(self) -> Float32[np.ndarray, "state"]:
        """Proprioception in the current state, as the spec describes it."""

    def sim_state(self) -> Float64[np.ndarray, " values"]:
        """The full state on which the future depends."""

    def restore(self, state: Float64[np.ndarray, " values"]) -> None:
        """Returns to a state of :meth:`sim_state`."""

    def close(self) -> None:
        """Frees what the task holds."""


ENVIRONMENTS: Registry[Any] = Registry("env", {"libero": "wmjax.sim.env:LiberoEnv"})
"""The environments that have a name; each is an :class:`Environment`."""


class CurrentTask:
    """The environment of the task that a worker process is at: it is rebuilt only when the task changes.

    Args:
        spec: what the environment shows.
        env: a name of :data:`ENVIRONMENTS`, or ``package.module:Class``.

    """

    def __init__(self, spec: ObservationSpec, env: str = "libero") -> None:
        self._spec, self._name = spec, env
        self._env: Environment | None = None
        self._task: tuple[str, int] | None = None

    def enter(self, suite: str, task_id: int) -> Environment:
        """The task's environment.

        Raises:
            UserError: the environment or the task does not exist.

        """
        if self._env is None or self._task != (suite, task_id):
            self.close()
            self._env = ENVIRONMENTS.resolve(self._name)(suite, task_id, self._spec)
            self._task = (suite, task_id)
        return self._env

    def close(self) -> None:
        """Closes the environment, if there is one."""
        if self._env is not None:
            self._env.close()
            self._env = None
