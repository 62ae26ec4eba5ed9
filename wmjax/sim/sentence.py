"""The sentence that a policy gets as its instruction in an episode: the task's own, a neutral one, or another task's.

This module imports no simulator.
"""

from typing import Any, Literal, NamedTuple

import numpy as np

from wmjax.core.errors import UserError
from wmjax.sim.episode import EpisodeId

Sentence = Literal["own", "neutral", "other"]
NEUTRAL = "do the task"
"""A sentence that names no task. Not every backbone accepts an empty one."""


class Instruction(NamedTuple):
    """A sentence, and the task of the suite whose sentence it is; None for :data:`NEUTRAL`."""

    text: str = ""
    task_id: int | None = None


def choose_instruction(env: Any, episode: EpisodeId, sentence: Sentence) -> Instruction:
    """The sentence of an episode, a function of its identity.

    Args:
        env: an :class:`wmjax.sim.environment.Environment` of the episode's task.
        episode: its identity.
        sentence: ``own``, ``neutral``, or ``other``: that of a task of the suite, drawn from those whose sentences are
            not the task's own, each as likely.

    Raises:
        UserError: the environment does not tell the sentences of its suite, or all are the same.

    """
    if sentence == "own":
        return Instruction(env.instruction, episode.task_id)
    if sentence == "neutral":
        return Instruction(NEUTRAL)
    if not hasattr(env, "sentences"):
        raise UserError(
            f"sentence is 'other', and {type(env).__name__} has no method sentences() that names those of its suite; "
            "set it to 'own' or 'neutral'"
        )
    sentences = env.sentences()
    others = [task for task, text in enumerate(sentences) if text != env.instruction]
    if not others:
        raise UserError(f"sentence is 'other', and all tasks of {episode.suite} have the same; set it to 'own'")
    chosen = int(np.random.default_rng(episode.stream("sentence")).choice(others))
    return Instruction(sentences[chosen], chosen)
