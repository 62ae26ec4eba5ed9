"""Reads the simulator's privileged state after every control step of an episode.

A worker runs it beside a policy, as a :class:`wmjax.sim.worker.Watcher`; the policy never sees what it reads.
:mod:`wmjax.diagnostics.failure_classes` derives from it why an episode failed.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from wmjax.core.errors import UserError
from wmjax.recording.primitives.privileged_scene import Scene, SceneState, Vector
from wmjax.sim.env import LiberoEnv


class Moment(NamedTuple):
    """The state after one control step.

    Attributes:
        state: the hand, the goal's object and its place.
        gap: distance (m) from the point between the fingertips to the object's nearest mesh vertex.
        others: positions (m) of the scene's other movable objects, by name.

    """

    state: SceneState
    gap: float
    others: Mapping[str, Vector]


class Watch:
    """Reads one episode of a task in which an object is put onto or into something."""

    def __init__(self, env: LiberoEnv) -> None:
        """Reads ``env``, which is never stepped.

        Raises:
            UserError: the task's goal is of another kind.

        """
        more = len(env.predicates) - 1
        if more or len(env.goal) != 3 or env.goal[0] not in ("on", "in"):
            raise UserError(
                f"{env.suite} task {env.task_id}: failures have classes where one object is put on or in something, "
                f"this goal is {' '.join(env.goal)!r} and {more} more; leave the task out with --tasks"
            )
        self._scene = Scene(env.sim)
        self._item, self._target = env.goal[1:]
        self._others = [name for name in env.movable if name != self._item]

    def observe(self, action: np.ndarray | None, image: np.ndarray | None) -> Moment:
        """The current state. The last action and the image are not used."""
        scene = self._scene
        state = scene.observe(self._item, self._target)
        gap = float(np.linalg.norm(scene.vertices(self._item) - state.hand, axis=1).min())
        return Moment(state, gap, {name: scene.position(name) for name in self._others})
