"""The identity of an episode. This module imports no simulator, so that every other module may use it."""

import dataclasses
import hashlib
from typing import Literal, cast, get_args

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.settings import parse_integer

Init = Literal["benchmark", "random"]

START_NOISE = 0.02
"""Standard deviation (rad) of the arm's joint angles at a random start, as in the benchmark's initial states.

robosuite's own default; LIBERO's wrapper switches it off, so that a plain reset always starts from one pose.
"""
RECORDING_VERSION = 4
"""Raised when the expert or the random placements change, so that older recordings are not taken for new ones.

1: objects could stand inside one another. 2: placements in which objects do not stand are drawn again; after a miss the
expert rises with closed fingers. 3: what is put into something is carried around thin walls, and a drawer is filled
from lower. 4: what is held under something is carried from under it before it is lifted; objects that share a region
are put beside each other.
"""
DEMONSTRATION_INDEX = 1_000_000
"""Random episodes from this index on are demonstrations; evaluation on random resets stays below it."""
SCENE_INDEX = 10**15
"""Random episodes from this index on are recordings of random motion; demonstrations of every seed stay below it."""


@dataclasses.dataclass(frozen=True, order=True)
class EpisodeId:
    """The identity of an episode: everything that determines its settled start, and nothing else.

    Attributes:
        suite: for example ``libero_spatial``.
        task_id: index of the task within the suite.
        init: ``benchmark`` for one of the suite's fixed initial states, ``random`` for a random placement.
        index: which initial state, or which random placement.

    """

    suite: str
    task_id: int
    init: Init
    index: int

    def __post_init__(self) -> None:
        if self.init not in get_args(Init):
            raise unknown_name("EpisodeId.init", self.init, get_args(Init))
        for field in ("task_id", "index"):
            value = getattr(self, field)
            if value < 0:
                raise UserError(f"EpisodeId.{field} is {value!r}; it must be 0 or more")

    @classmethod
    def parse(cls, key: str) -> "EpisodeId":
        """The episode that has a :attr:`key`.

        Raises:
            UserError: it is not an episode's key.

        """
        suite, *rest = key.rsplit("/", 3)
        if len(rest) == 3 and rest[1] in get_args(Init):
            task, index = parse_integer(rest[0]), parse_integer(rest[2])
            if task is not None and index is not None:
                found = cls(suite, task, cast(Init, rest[1]), index)
                if found.key == key:
                    return found
        raise UserError(f"{key!r} is not an episode's key; keys are like 'libero_spatial/3/random/17'")

    @property
    def key(self) -> str:
        """For example ``libero_spatial/3/random/17``."""
        return f"{self.suite}/{self.task_id}/{self.init}/{self.index}"

    @property
    def seed(self) -> int:
        """The seed of the reset, in [0, 2**32): a hash of the key, the same in every process and version."""
        return int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:4], "big")

    def stream(self, purpose: str) -> int:
        """A seed in [0, 2**64) for something else in this episode that is random, such as ``drift``."""
        return int.from_bytes(hashlib.sha256(f"{self.key}/{purpose}".encode()).digest()[:8], "big")
