"""The grasp that the expert uses in all demonstrations of a task, chosen over random resets and cached on disk.

Several grasps are often equally good, and a policy that is trained on a mixture of them averages them and misses. The
choice is therefore made once per task and object, from fixed seeds: by the 90 % quantile of a grasp's cost over resets,
and by whether the expert succeeds with it in trials.
"""

import dataclasses

import numpy as np

from wmjax.core.files import hash_json, write_json
from wmjax.core.paths import cache_root
from wmjax.core.reading import read_json
from wmjax.recording.primitives.base import Primitive, primitive_for
from wmjax.recording.primitives.grasp import HOPELESS, RIMS, GraspStyle, grasp_candidates, obstacle_cost
from wmjax.recording.primitives.privileged_scene import Scene
from wmjax.sim.env import LiberoEnv
from wmjax.sim.episode import EpisodeId

RESETS = 16
"""Random resets over which grasps are compared."""
FIRST_INDEX = 1_900_000
"""Index of the first of these resets: neither a demonstration nor an evaluation starts there."""
QUANTILE = 0.9
CANDIDATES = 6
"""How many of the cheapest styles are tried."""
TRIALS, TRIAL_STEPS = 12, 180
"""Further random resets in which a style is tried, and the control steps of each trial."""
CLEARANCE = 0.008
"""Distance (m) that the hand should keep from obstacles while grasping."""
METHOD = 4
"""Version of the method. A new version invalidates cached choices."""


def usual_grasp(env: LiberoEnv, goal: tuple[str, ...]) -> GraspStyle | None:
    """The grasp for a predicate of a task's goal, read from the cache.

    If it is not there, it is chosen (seconds) in a simulation of its own and cached.

    Args:
        env: the task's environment, neither stepped nor reset.
        goal: the predicate.

    Returns:
        None if no grasp fits the object in any reset.

    """
    key = hash_json(
        {"method": METHOD, "simulator": env.spec.simulator, "goal": goal, "resets": RESETS, "trials": TRIALS}
    )
    path = cache_root() / "grasps" / f"{env.suite}-{env.task_id:02d}-{key}.json"
    if not path.exists():
        style = _choose_apart(env, goal)
        write_json(path, None if style is None else dataclasses.asdict(style))
    return read_json(path, GraspStyle | None, "delete it, it is made again")


def _choose_apart(env: LiberoEnv, goal: tuple[str, ...]) -> GraspStyle | None:
    """Chooses in a second simulation, so that the episode of ``env`` is left alone."""
    random = np.random.get_state()
    other = LiberoEnv(env.suite, env.task_id, env.spec)
    try:
        return choose_grasp(other, goal)
    finally:
        other.close()
        np.random.set_state(random)


def choose_grasp(env: LiberoEnv, goal: tuple[str, ...]) -> GraspStyle | None:
    """The first of the cheapest styles with which the expert succeeds in every trial, or else the most successful.

    Args:
        env: the task's environment, which is reset.
        goal: a predicate of its goal.

    Returns:
        None if no grasp fits the object in any reset.

    """
    best, best_failures = None, TRIALS + 1
    for style in rank_styles(env, goal)[:CANDIDATES]:
        failures = _failures(env, goal, style, best_failures)
        if failures < best_failures:
            best, best_failures = style, failures
        if not failures:
            break
    return best


def rank_styles(env: LiberoEnv, goal: tuple[str, ...]) -> list[GraspStyle]:
    """All styles by the 90 % quantile of preference and obstacle cost over :data:`RESETS` random resets, best first.

    Where a style does not fit the object it is as bad as a hopeless one.
    """
    item, target = goal[1:]
    scene = Scene(env.sim)
    costs: dict[GraspStyle, list[float]] = {}
    for number in range(RESETS):
        env.reset(_reset(env, number))
        for candidate in grasp_candidates(scene, item, is_rim(item)):
            if not candidate.shifted:
                cost = obstacle_cost(scene, item, target, candidate, CLEARANCE, 2 * HOPELESS)
                costs.setdefault(candidate.style, []).append(candidate.preference + cost)
    ranked = {style: float(np.quantile(_filled(found), QUANTILE)) for style, found in costs.items()}
    return sorted(ranked, key=lambda style: (ranked[style], dataclasses.astuple(style)))


def _filled(costs: list[float]) -> list[float]:
    return costs + [HOPELESS] * (RESETS - len(costs))


def _reset(env: LiberoEnv, number: int) -> EpisodeId:
    return EpisodeId(env.suite, env.task_id, "random", FIRST_INDEX + number)


def _failures(env: LiberoEnv, goal: tuple[str, ...], style: GraspStyle, enough: int) -> int:
    """In how many of :data:`TRIALS` resets the expert fails with a style; it stops counting at ``enough``."""
    failures = 0
    for number in range(RESETS, RESETS + TRIALS):
        env.reset(_reset(env, number))
        failures += not _reaches(env, goal, primitive_for(env, goal)(env, goal, style))
        if failures >= min(enough, 3):
            break
    return failures


def _reaches(env: LiberoEnv, goal: tuple[str, ...], primitive: Primitive) -> bool:
    """Whether a primitive makes its predicate true within a trial."""
    for _ in range(TRIAL_STEPS):
        env.step(primitive.act())
        if env.holds(goal):
            return True
    return False


def is_rim(item: str) -> bool:
    """Whether an object is grasped by its rim, as bowls and plates are."""
    return any(kind in item for kind in RIMS)
