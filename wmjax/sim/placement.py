"""Random placements in which objects rest: LIBERO's sampler can put them inside one another.

While such a placement settles, the objects throw each other about; ``benchmarks/placements.py`` measures how far.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

MAX_MOVE, MAX_TILT, MAX_SPEED = 0.06, np.deg2rad(10), 0.1
"""The largest motion (m, sideways), tilt (rad) and remaining speed (m/s) of an object that has settled.

In the benchmark's initial states of libero_spatial's tasks 0 and 2, the first 20 of each, objects move by up to 5.6 cm.
"""
MAX_TILT_ON_OBJECT = np.deg2rad(20)
"""The same of an object that the task puts on another one: the bowl of libero_spatial's task 5 rests at 15.9 degrees on
its ramekin, in the benchmark's initial states too."""


class Poses(NamedTuple):
    """The movable objects' names, positions (m, world) and rotations."""

    names: tuple[str, ...]
    position: Float64[np.ndarray, "objects 3"]
    rotation: Float64[np.ndarray, "objects 3 3"]


def object_poses(env: Any) -> Poses:
    """The poses of a LIBERO environment's movable objects."""
    data = env.sim.data._data
    bodies = [env.obj_body_id[name] for name in env.objects_dict]
    return Poses(tuple(env.objects_dict), data.xpos[bodies].copy(), data.xmat[bodies].reshape(-1, 3, 3).copy())


class Motion(NamedTuple):
    """The effect of settling on each movable object: motion (m, sideways), tilt (rad) and remaining speed (m/s).

    ``on_object`` are the objects that the task puts on another movable object.
    """

    names: tuple[str, ...]
    moved: Float64[np.ndarray, " objects"]
    tilt: Float64[np.ndarray, " objects"]
    speed: Float64[np.ndarray, " objects"]
    on_object: frozenset[str] = frozenset()

    @property
    def disturbed(self) -> list[str]:
        """The objects that were thrown, turned over or are in motion, as happens where they were inside others."""
        max_tilt = np.where([name in self.on_object for name in self.names], MAX_TILT_ON_OBJECT, MAX_TILT)
        bad = (self.moved > MAX_MOVE) | (self.tilt > max_tilt) | (self.speed > MAX_SPEED)
        return [name for name, is_bad in zip(self.names, bad, strict=True) if is_bad]


def motion_since(env: Any, placed: Poses) -> Motion:
    """The motion of a LIBERO environment's objects since they had these poses."""
    now, model, data = object_poses(env), env.sim.model._model, env.sim.data._data
    moved = np.linalg.norm((now.position - placed.position)[:, :2], axis=1)
    cosine = (now.rotation[:, 2] * placed.rotation[:, 2]).sum(-1)  # of the world's vertical as the object sees it
    joints = [model.joint(env.objects_dict[name].joints[0]).dofadr[0] for name in now.names]
    speed = np.array([np.linalg.norm(data.qvel[start : start + 3]) for start in joints])
    begins = (fact for fact in env.parsed_problem["initial_state"] if len(fact) == 3)
    on_object = frozenset(item for _, item, support in begins if support in env.objects_dict)
    return Motion(now.names, moved, np.arccos(np.clip(cosine, -1, 1)), speed, on_object)
