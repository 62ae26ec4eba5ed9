"""The decisions and predictions of a policy during an episode, and the interface that makes videos of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8


@dataclasses.dataclass(frozen=True)
class Decided:
    """One decision.

    Attributes:
        frame: index of the newest frame that the decision knew.
        actions: the chunk, raw.
        numbers: what the policy reported, such as ``memory/gate`` and ``world/error``.

    """

    frame: int
    actions: Float32[np.ndarray, "steps action"]
    numbers: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Imagined:
    """One decision's latents, in the space in which the Prophet predicts.

    Attributes:
        frame: index of the newest frame that the decision knew.
        observed: the newest frames' latents, oldest first, up to z(t).
        predicted: ẑ(t+1), ẑ(t+2), ..., one per frame.

    """

    frame: int
    observed: Float32[np.ndarray, "history tokens dim"]
    predicted: Float32[np.ndarray, "future tokens dim"]

    @property
    def latents(self) -> Float32[np.ndarray, "frames tokens dim"]:
        """z(t), then ẑ(t+1), ẑ(t+2), ..."""
        return np.concatenate([self.observed[-1:], self.predicted])


@runtime_checkable
class EpisodeVideos(Protocol):
    """The interface through which the runner hands over finished episodes to be kept as videos."""

    def wanted(self, suite: str, task_id: int, outcome: str | None = None) -> bool:
        """Whether a video of that task would be kept; ``outcome`` is None while it is unknown."""
        ...

    def add(
        self,
        suite: str,
        task_id: int,
        episode: str,
        outcome: str,
        frames: UInt8[np.ndarray, "frames cameras height width 3"],
        captions: Sequence[str],
        imagined: Sequence[Imagined] = (),
        decided: Sequence[Decided] = (),
    ) -> object:
        """Takes the frames of an episode, a caption for each, and the decisions of the episode in order."""
        ...
