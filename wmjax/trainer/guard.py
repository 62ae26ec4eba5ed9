"""Skips updates that would do harm: a loss or gradient that is not finite, or a loss far above the usual one.

The decision is made on the device, inside of the training step, so that it comes before the update and costs no wait.
The loop reads :class:`GuardState` when it logs, and then names the batches whose updates were skipped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, Int32

from wmjax.core.errors import UserError
from wmjax.data.observation import Prompt
from wmjax.trainer.step import Batch, Metrics, TrainState

RECENT = 64
"""How many skipped steps are remembered."""
SETTLED = 20
"""Accepted steps after which the usual loss is known well enough to call another one a spike."""
MEMORY = 0.98
"""Decay per step of the usual loss, an exponential moving average over about fifty steps."""


class GuardState(NamedTuple):
    """The state of the guard, carried from step to step beside the :class:`TrainState`.

    Attributes:
        skipped: steps without an update so far.
        in_a_row: those of them at the end.
        steps: the newest of them, in a ring; 0 where there was none.
        losses: their losses.
        accepted: steps with an update.
        usual: moving average of their losses.

    """

    skipped: Int32[Array, ""]
    in_a_row: Int32[Array, ""]
    steps: Int32[Array, " recent"]
    losses: Float32[Array, " recent"]
    accepted: Int32[Array, ""]
    usual: Float32[Array, ""]


GuardedStep = Callable[[TrainState, GuardState, nnx.State, Batch, Prompt], tuple[TrainState, GuardState, Metrics]]


def initial_guard() -> GuardState:
    """The guard's state before the first step."""
    return GuardState(
        skipped=jnp.zeros((), jnp.int32),
        in_a_row=jnp.zeros((), jnp.int32),
        steps=jnp.zeros(RECENT, jnp.int32),
        losses=jnp.zeros(RECENT, jnp.float32),
        accepted=jnp.zeros((), jnp.int32),
        usual=jnp.zeros((), jnp.float32),
    )


def guarded(train_step: Callable[..., tuple[TrainState, Metrics]], spike: float) -> GuardedStep:
    """A training step that leaves parameters, average and moments as they are where an update would do harm.

    The step's number goes on: the next step takes the next batch and other random keys.

    Args:
        train_step: as :func:`wmjax.trainer.step.make_train_step` makes it.
        spike: a loss above ``spike`` times the usual one is skipped too; 0 for none.

    """

    def step(
        state: TrainState, guard: GuardState, frozen: nnx.State, batch: Batch, prompts: Prompt
    ) -> tuple[TrainState, GuardState, Metrics]:
        new, metrics = train_step(state, frozen, batch, prompts)
        loss = metrics["loss"].astype(jnp.float32)
        good = jnp.isfinite(loss) & jnp.isfinite(metrics["gradient_norm"])
        if spike:
            good &= (guard.accepted < SETTLED) | (loss <= spike * guard.usual)
        selected: TrainState = jax.tree.map(lambda after, before: jnp.where(good, after, before), new, state)
        return selected._replace(step=new.step), _note(guard, good, new.step, loss), metrics

    return step


def _note(guard: GuardState, good: Array, step: Int32[Array, ""], loss: Float32[Array, ""]) -> GuardState:
    place = guard.skipped % RECENT
    usual = jnp.where(guard.accepted == 0, loss, MEMORY * guard.usual + (1.0 - MEMORY) * loss)
    return GuardState(
        skipped=guard.skipped + ~good,
        in_a_row=jnp.where(good, 0, guard.in_a_row + 1),
        steps=guard.steps.at[place].set(jnp.where(good, guard.steps[place], step)),
        losses=guard.losses.at[place].set(jnp.where(good, guard.losses[place], loss)),
        accepted=guard.accepted + good,
        usual=jnp.where(good, usual, guard.usual),
    )


def skipped_since(guard: Any, known: int) -> list[tuple[int, float]]:
    """Steps (and their losses) that were skipped after the first ``known`` ones, oldest first, as far as remembered.

    ``guard`` is a :class:`GuardState` of numpy arrays.
    """
    total = int(guard.skipped)
    places = [number % RECENT for number in range(max(known, total - RECENT), total)]
    return [(int(np.asarray(guard.steps)[place]), float(np.asarray(guard.losses)[place])) for place in places]


def require_progress(guard: Any, most: int) -> None:
    """Ends a training in which too many updates in a row were skipped.

    Raises:
        UserError: the last ``most`` updates, or more, were skipped.

    """
    if int(guard.in_a_row) >= most:
        raise UserError(
            f"the last {int(guard.in_a_row)} updates were skipped (train.max_skipped is {most}), because loss or "
            "gradient were not finite or above train.spike_factor; lower optimizer.learning_rate, or look at the "
            "batches that the log names"
        )
