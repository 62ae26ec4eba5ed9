"""How often a sample is drawn: stores with weights, balanced tasks, episodes of which only the video is used."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int

from wmjax.core.errors import UserError
from wmjax.data.store import TrainingStore

Balance = Literal["none", "task"]
"""``none`` draws every sample equally often, ``task`` every task."""


@dataclasses.dataclass(frozen=True)
class Mixture:
    """How often samples are drawn.

    Attributes:
        weights: the share of each store in what is drawn, up to a common factor; empty for shares that follow the
            numbers of samples.
        balance: ``task`` gives each task the same share; within a task the stores keep their proportion.
        labelled_per_task: of each task's training episodes so many, the first ones, have actions; of the others only
            the video is used. None: all have.
        labelled_share: share of the drawn samples that have actions; None: as many as there are, 1: no video is drawn.

    """

    weights: tuple[float, ...] = ()
    balance: Balance = "none"
    labelled_per_task: int | None = None
    labelled_share: float | None = None

    def __post_init__(self) -> None:
        if self.labelled_share is not None and self.labelled_per_task is None:
            raise UserError(
                f"data.labelled_share is {self.labelled_share:g}, but all episodes have actions; set "
                "data.labelled_per_task too, or leave it out"
            )


UNIFORM = Mixture()


def expected_draws(
    store: TrainingStore, samples: Int[np.ndarray, " n"], mixture: Mixture, video_only: Sequence[int] = ()
) -> Float64[np.ndarray, " n"] | None:
    """How often each sample is drawn in an epoch, on average; None if each is drawn once.

    Args:
        store: one store, or several as one.
        samples: indices of its frames.
        mixture: how often they are drawn.
        video_only: the episodes of which only the video is used.

    Returns:
        Numbers that sum to ``n``, none of them negative.

    Raises:
        UserError: another number of weights than of stores.

    """
    count = len(getattr(store, "stores", (store,)))
    if mixture.weights and len(mixture.weights) != count:
        raise UserError(f"data.weights has {len(mixture.weights)} numbers for {count} stores; give one for each")
    weights = mixture.weights if count > 1 else ()
    share = mixture.labelled_share if video_only else None
    if not weights and mixture.balance == "none" and share is None:
        return None
    episodes = store.frame_episode[samples]
    source = np.array([entry.get("store", 0) for entry in store.episodes])[episodes]
    chance = np.ones(len(samples))
    if weights:
        chance = np.asarray(weights, np.float64)[source] / np.bincount(source, minlength=count)[source]
    if mixture.balance == "task":
        task = np.array([entry["task"] for entry in store.episodes])[episodes]
        chance = chance / np.bincount(task, chance)[task]
    if share is not None:
        video = np.isin(episodes, video_only)
        for group, part in ((video, 1 - share), (~video, share)):
            chance[group] *= part / max(chance[group].sum(), 1e-12)  # a split may have no episode of a group
    return chance * (len(samples) / chance.sum())


def draw_weighted(expected: Float64[np.ndarray, " n"], random: np.random.Generator) -> Int[np.ndarray, " n"]:
    """The samples of an epoch, each as often as expected, rounded up or down (systematic resampling).

    One uniform number places ``n`` equally spaced points on the cumulative sum; the samples whose intervals they fall
    into are drawn. See Carpenter, Clifford and Fearnhead (1999), "Improved particle filter for nonlinear problems".
    """
    edges = np.cumsum(expected)
    points = (np.arange(len(expected)) + random.random()) * (edges[-1] / len(expected))
    return np.minimum(np.searchsorted(edges, points, side="right"), len(expected) - 1)
