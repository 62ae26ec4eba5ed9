"""Replacements of the world memory in an evaluation: another episode's memory, or an oracle's true future.

The corruptions ``shuffled`` and ``shuffled_in_task`` make the world memory from the latents of a *donor*, a
demonstration of the policy's training store. Donors' memories are therefore in distribution, and no evaluated episode
is among them, because random resets and the benchmark are disjoint from the demonstrations. The donor of an episode
depends on the episode's identity only, not on the worker, the batch row, or what ran before.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from wmjax.core.errors import UserError
from wmjax.core.settings import Corruption
from wmjax.core.specs import ActionSpec, EncoderSpec
from wmjax.data.latents import LatentStore
from wmjax.data.observation import Prompt
from wmjax.data.split import recording_of
from wmjax.data.statistics import normalise_latents, normalise_state
from wmjax.data.store import TrainingStore
from wmjax.data.windows import history_indices
from wmjax.models.vla import VLA
from wmjax.models.world.conditioning import Context


class Donor(NamedTuple):
    """Other episodes' inputs, row by row: raw latents up to now (oldest first), raw state, and their tasks' prompts."""

    latents: Float32[np.ndarray, "batch history tokens dim"]
    state: Float32[np.ndarray, "batch state"]
    prompt: Prompt

    def normalised(self, encoder: EncoderSpec, action: ActionSpec) -> "Donor":
        """The same in the units of the policy network, whose inputs have these names too; traceable by jax."""
        return self._replace(
            latents=normalise_latents(self.latents, encoder), state=normalise_state(self.state, action)
        )


class Donors:
    """The episodes of a training store, with the latents of their unshifted view.

    Args:
        store: the demonstrations.
        latents: of its frames.
        history: frames that the Prophet looks back.
        prompts: of the store's tasks, in its order.

    Raises:
        UserError: the store has one episode only.

    """

    def __init__(self, store: TrainingStore, latents: LatentStore, history: int, prompts: Prompt) -> None:
        if len(store.episodes) < 2:
            raise UserError(
                f"a shuffled memory is another episode's, but {store.folder} has {len(store.episodes)}; "
                "choose another corruption"
            )
        self.store, self.latents, self._history, self._prompts = store, latents, history, prompts
        self._recording = recording_of(store.episodes)

    def choose(
        self,
        rng: np.random.Generator,
        corruption: Corruption,
        suite: str,
        task_id: int,
        apart_from: int | None = None,
    ) -> int:
        """The index of an episode to show to one of a task: any but one, of the same task if the corruption says so.

        With an episode all parts of its recorded episode are left out, because they show the same scene.

        Raises:
            UserError: there is no (other) episode of the task.

        """
        within = corruption == "shuffled_in_task"
        entries = [e for e in self.store.episodes if not within or (e["suite"], e["task_id"]) == (suite, task_id)]
        own = None if apart_from is None else self._recording[apart_from]
        others = [entry["index"] for entry in entries if self._recording[entry["index"]] != own]
        if not others:
            raise UserError(
                f"corruption is {corruption!r}, but {self.store.folder} has no other episode of {suite} task "
                f"{task_id}; evaluate tasks that the policy was trained on, or use 'shuffled'"
            )
        return int(rng.choice(others))

    def at(self, episodes: Int[np.ndarray, " batch"], steps: Int[np.ndarray, " batch"]) -> Donor:
        """The inputs of episodes at control steps; an episode that has ended by then stays at its last frame."""
        entries = [self.store.episodes[index] for index in episodes]
        first = np.array([entry["frame_start"] for entry in entries])
        last = np.array([entry["num_frames"] for entry in entries]) - 1
        frames = first + np.minimum(np.asarray(steps) // self.store.spec.frame_stride, last)
        past = history_indices(frames, first, self._history)
        tasks = np.array([entry["task"] for entry in entries])
        return Donor(
            latents=self.latents.latents[0, past].astype(np.float32),
            state=self.store.state[self.store.frame_row[frames]],
            prompt=jax.tree.map(lambda table: np.asarray(table)[tasks], self._prompts),
        )


class Errors(NamedTuple):
    """Mean squared errors of each row: of a prediction, and of taking the present for the future.

    Their ratio means nothing for a single decision in which nothing moves; take it of their means.
    """

    prediction: Float32[Array, " batch"]
    copy: Float32[Array, " batch"]

    @classmethod
    def of(
        cls,
        prediction: Float32[Array, " batch *rest"],
        present: Float32[Array, " batch *rest"],
        came: Float32[Array, " batch *rest"],
    ) -> "Errors":
        """The errors against the true future."""
        axes = tuple(range(1, came.ndim))
        return cls(*(jnp.mean(jnp.square(guess - came), axis=axes) for guess in (prediction, present)))

    def named(self, prefix: str) -> dict[str, Float32[Array, " batch"]]:
        """The errors as numbers of a decision, by name."""
        return {f"{prefix}/error": self.prediction, f"{prefix}/copy_error": self.copy}


def mix(
    model: VLA,
    history: Float32[Array, "batch history tokens dim"],
    truth: Float32[Array, "batch future pooled dim"],
    oracle: float,
    prophet_context: Context | None = None,
) -> tuple[Float32[Array, "batch future pooled dim"], Errors]:
    """The oracle bracket's memory, α·ẑ + (1-α)·z₊, and the errors of ẑ."""
    observed = model.world.prepare(history)
    copy = jnp.repeat(observed[:, -1:], truth.shape[1], 1)
    prediction = model.world.recall(history, len(observed), prophet_context)
    return oracle * prediction + (1.0 - oracle) * truth, Errors.of(prediction, copy, truth)
