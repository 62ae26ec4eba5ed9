"""Which goals of a suite's tasks hold in one scene of LIBERO, by the simulator's own predicates.

The tasks of libero_goal share a scene and differ in the goal: what a policy does there shows which sentence it
followed.
"""

import contextlib
import functools
import importlib
import io
from typing import Any

from wmjax.sim.libero import suite_tasks

Predicate = tuple[str, ...]


class SharedGoals:
    """The goals of a suite that can be judged in one environment.

    A goal can be judged where everything that it names is there under the same name: objects and fixtures of the same
    kind, regions at the same place. Of several tasks with the same goal the environment's own counts, else the first.

    Args:
        env: LIBERO's environment (robosuite's, not the wrapper's).
        suite: the suite's name.
        task_id: the environment's own task.

    """

    def __init__(self, env: Any, suite: str, task_id: int) -> None:
        self._env = env
        own, problems = env.parsed_problem, _problems(suite)
        by_goal: dict[frozenset[Predicate], int] = {}
        for task in (task_id, *range(len(problems))):
            goal = _goal(problems[task])
            names = {name for part in goal for name in part[1:]}
            if all(_meaning(own, name) == _meaning(problems[task], name) is not None for name in names):
                by_goal.setdefault(goal, task)
        self._goals = {task: sorted(goal) for goal, task in by_goal.items()} if len(by_goal) > 1 else {}

    def held(self) -> tuple[int, ...] | None:
        """The tasks whose goals hold now, ascending; None if the scene has no goal but its own."""
        if not self._goals:
            return None
        held = self._env._eval_predicate
        return tuple(sorted(task for task, goal in self._goals.items() if all(held(part) for part in goal)))


@functools.cache
def _problems(suite: str) -> tuple[dict[str, Any], ...]:
    """The parsed BDDL files of a suite."""
    parse = importlib.import_module("libero.libero.envs.bddl_utils").robosuite_parse_problem
    with contextlib.redirect_stdout(io.StringIO()):
        return tuple(parse(task.bddl_file) for task in suite_tasks(suite))


def _goal(problem: dict[str, Any]) -> frozenset[Predicate]:
    """The predicates of a goal, all of which must hold."""
    return frozenset(tuple(part) for part in problem["goal_state"])


def _meaning(problem: dict[str, Any], name: str) -> Any:
    """What a name stands for in a problem: a kind of object or fixture, or a region; None if it is not there."""
    for kind in ("objects", "fixtures"):
        for category, names in problem[kind].items():
            if name in names:
                return category
    return problem["regions"].get(name)
