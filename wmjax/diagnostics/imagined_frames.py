"""The Prophet's predictions as existing frames: the training frames whose latents are nearest to a prediction.

A latent cannot be decoded, but its nearest neighbours can be viewed. Two references tell what the prediction adds: the
same search from z(t), which is a Prophet that copies, and from the true z(t+k), the most that any prediction could
retrieve.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from wmjax.analysis.neighbours import nearest
from wmjax.core.text_table import text_table
from wmjax.diagnostics.samples import LatentWindows
from wmjax.reporting.video.latent_colours import LatentColours, on_grid

NEIGHBOURS = 2
"""Nearest frames shown of every predicted latent; the numbers are of the first."""
EXAMPLES = 6
"""Samples in the picture."""
PREDICTED, COPY, TRUE, RANDOM = "ẑ(t+k)", "z(t), a copy", "z(t+k), the truth", "a random training frame"


@dataclasses.dataclass(frozen=True)
class Bank:
    """The training frames that may be retrieved: their indices in the store, latents, positions (m) and origins."""

    frames: Int[np.ndarray, " n"]
    latents: Float32[np.ndarray, "n tokens dim"]
    position: Float32[np.ndarray, "n xyz"]
    episode: Int[np.ndarray, " n"]
    task: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class ImaginationSection:
    """The errors of the training frame nearest to a latent as a picture of the future, per future frame.

    Attributes:
        distance: median distance (cm) of the end effector in the retrieved frame from where it will be at t+k, by
            what was searched for.
        same_task: share of retrieved frames that are of the sample's own task.
        samples: future frames that exist, per horizon.

    """

    distance: dict[str, Float[np.ndarray, " future"]]
    same_task: dict[str, Float[np.ndarray, " future"]]
    samples: tuple[int, ...]

    def table(self) -> str:
        """A plain-text report."""
        head = [f"t+{k + 1}" for k in range(len(self.samples))]
        rows = [(f"cm off, nearest to {name}", *values) for name, values in self.distance.items()]
        rows += [(f"same task, nearest to {name}", *values) for name, values in self.same_task.items()]
        return text_table(("nearest training frame", *head), [*rows, ("samples", *self.samples)])


@dataclasses.dataclass(frozen=True)
class Imagined:
    """The samples of the picture, all with a complete future.

    Attributes:
        frames: of the store: the sample's own, then its future's.
        nearest: of the store: the training frames nearest to each prediction, the nearest first.
        nearest_true: the one nearest to each true future latent.
        actual, predicted: colours of z(t), z(t+1), ... and of z(t), ẑ(t+1), ...: principal components of the
            training latents less their mean at the same place of the grid.
        skill: of each prediction against copying z(t).

    """

    frames: Int[np.ndarray, "examples now_and_future"]
    nearest: Int[np.ndarray, "examples future near"]
    nearest_true: Int[np.ndarray, "examples future"]
    actual: UInt8[np.ndarray, "examples now_and_future rows columns 3"]
    predicted: UInt8[np.ndarray, "examples now_and_future rows columns 3"]
    skill: Float[np.ndarray, "examples future"]


def imagination_section(
    prediction: Float32[np.ndarray, "n future tokens dim"],
    test: LatentWindows,
    task: Int[np.ndarray, " n"],
    bank: Bank,
    seed: int = 0,
) -> ImaginationSection:
    """Scores the frames that predictions retrieve.

    Args:
        prediction: ẑ of the samples of ``test``.
        test: what happened.
        task: of each sample.
        bank: what may be retrieved.
        seed: of the random frames.

    """
    horizon, apart = range(test.mask.shape[1]), (test.episode, bank.episode)
    now = nearest(test.now, bank.latents, apart=apart)[:, 0]
    chance = np.random.default_rng(seed).integers(0, len(bank.frames), (len(horizon), len(task)))
    found = {
        PREDICTED: [nearest(prediction[:, k], bank.latents, apart=apart)[:, 0] for k in horizon],
        COPY: [now for _ in horizon],
        TRUE: [nearest(test.future[:, k], bank.latents, apart=apart)[:, 0] for k in horizon],
        RANDOM: list(chance),
    }
    return ImaginationSection(
        distance={name: np.array([_off(rows[k], test, k, bank) for k in horizon]) for name, rows in found.items()},
        same_task={
            name: np.array([_mean(bank.task[rows[k]] == task, test, k) for k in horizon])
            for name, rows in found.items()
        },
        samples=tuple(int(test.mask[:, k].sum()) for k in horizon),
    )


def _off(rows: Int[np.ndarray, " n"], test: LatentWindows, k: int, bank: Bank) -> float:
    """Median distance (cm) between the retrieved and the true future position; NaN if the state has none."""
    if not bank.position.shape[-1]:
        return float("nan")
    off = np.linalg.norm(bank.position[rows] - test.position[:, 1 + k], axis=1)[test.mask[:, k]]
    return float(100.0 * np.median(off)) if len(off) else float("nan")


def _mean(hits: np.ndarray, test: LatentWindows, k: int) -> float:
    existing = hits[test.mask[:, k]]
    return float(existing.mean()) if len(existing) else float("nan")


def imagine(
    prediction: Float32[np.ndarray, "n future tokens dim"],
    test: LatentWindows,
    frames: Int[np.ndarray, " n"],
    bank: Bank,
    count: int = EXAMPLES,
) -> Imagined | None:
    """The contents of the picture; None without a sample whose whole future exists.

    The samples are spread evenly over how much truly changes until the last future frame, from least to most: they
    are not chosen by how well they were predicted.
    """
    change = np.square(test.future[:, -1] - test.now).sum((1, 2))
    complete = np.flatnonzero(test.mask.all(1))
    if not len(complete):
        return None
    order = complete[np.argsort(change[complete], kind="stable")]
    rows = order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))]
    examples, guess = test.take(rows), prediction[rows]
    place = bank.latents.mean(0)
    colours = LatentColours.fit(bank.latents - place)
    pictures = [
        colours(on_grid(np.concatenate([examples.now[:, None], future], 1) - place))
        for future in (examples.future, guess)
    ]
    apart, horizon = (examples.episode, bank.episode), range(guess.shape[1])
    near = [bank.frames[nearest(guess[:, k], bank.latents, NEIGHBOURS, apart)] for k in horizon]
    true = [bank.frames[nearest(examples.future[:, k], bank.latents, apart=apart)[:, 0]] for k in horizon]
    error, copy = (np.square(values - examples.future).sum((2, 3)) for values in (guess, examples.now[:, None]))
    return Imagined(
        frames=frames[rows][:, None] + np.arange(1 + guess.shape[1]),
        nearest=np.stack(near, 1),
        nearest_true=np.stack(true, 1),
        actual=pictures[0],
        predicted=pictures[1],
        skill=1.0 - error / np.maximum(copy, 1e-12),
    )
