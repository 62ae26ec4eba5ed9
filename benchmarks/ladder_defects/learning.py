"""Faults of the training step: what the optimizer is given, how it rounds, and what the actions are shown."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float32

from wmjax.models.inputs import ModelInput
from wmjax.models.parameters import path_name
from wmjax.models.vla import VLA
from wmjax.models.world.memory import WorldMemory, WorldOutput
from wmjax.trainer import build
from wmjax.trainer.config import TrainConfig

FIRST_SHARE, LAST_SHARE = 0.9, 0.1
"""The predecessor's shares of samples with the true future, at the first and at the last step; linear between them."""
TEACHER = 7
"""Name folded into the key of a loss, for the draw of the samples that are shown the true future."""


@contextlib.contextmanager
def adapters_left_out() -> Iterator[None]:
    """The optimizer is given neither the backbone's adapters nor the tokens of the actions.

    They stay bit-identical to their initial values, as does the backbone. The network around them (Prophet, injection,
    head, and the MLP of the state if there is one) is trained. The token that stands for a missing state is left out
    too, because the predecessor had no such token.
    """

    def make_optimizer(*arguments: Any, **settings: Any) -> optax.GradientTransformation:
        drop = optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(_without_tokens, updates))
        # The gradients before, so that clipping does not count them; the updates after, because of the weight decay.
        return optax.chain(drop, original(*arguments, **settings), drop)

    original = build.make_optimizer
    with mock.patch.object(build, "make_optimizer", make_optimizer):
        yield


def _without_tokens(path: tuple[Any, ...], update: Array) -> Array:
    """Zero for the backbone, the queries of the actions and the learned token of the state."""
    first, *rest = path_name(path).split("/")
    is_token = rest == ["value"] and first in ("queries", "state_in")
    return jnp.zeros_like(update) if first == "backbone" or is_token else update


@contextlib.contextmanager
def bfloat16_parameters() -> Iterator[None]:
    """Trained parameters and AdamW's moments are bfloat16, with no float32 copy to add small updates to.

    Every value is rounded to the nearest bfloat16 after the initialisation and after every step, so an update below
    half of the distance to the next bfloat16 number is lost. Arrays stay float32 in memory, and activations and the
    averaged parameters of an evaluation (``train.ema_decay``) are not rounded.
    """

    def initial_state(*arguments: Any) -> Any:
        state = made(*arguments)
        params = round_to_bfloat16(state.params)
        return state._replace(params=params, ema=jax.tree.map(jnp.copy, params))

    def make_train_step(*arguments: Any, **settings: Any) -> Callable[..., Any]:
        exact = step(*arguments, **settings)

        def rounded(*arguments: Any) -> Any:
            state, metrics = exact(*arguments)
            # Without an average of parameters the evaluation's are the rounded ones too.
            ema = round_to_bfloat16(state.ema) if settings["ema_decay"] == 0.0 else state.ema
            params, opt = round_to_bfloat16(state.params), round_to_bfloat16(state.opt)
            return state._replace(params=params, ema=ema, opt=opt), metrics

        return rounded

    made, step = build.initial_state, build.make_train_step
    with (
        mock.patch.object(build, "initial_state", initial_state),
        mock.patch.object(build, "make_train_step", make_train_step),
    ):
        yield


def round_to_bfloat16(tree: Any) -> Any:
    """The floating-point arrays of a tree at the nearest values that bfloat16 has, of their own type."""

    def one(leaf: Array) -> Array:
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        # Not a cast there and back: XLA may leave out such a pair.
        return jax.lax.reduce_precision(leaf, exponent_bits=8, mantissa_bits=7) if is_float else leaf

    return jax.tree.map(one, tree)


class Teacher(NamedTuple):
    """The memory of the true future, and the samples that are shown it."""

    memory: Float32[Array, "batch future tokens dim"]
    chosen: Bool[Array, " batch"]


SHARE: ContextVar[Array | None] = ContextVar("share", default=None)
"""The share of samples that are shown the true future, while a training step is traced."""
TEACHING: ContextVar[Teacher | None] = ContextVar("teaching", default=None)
"""What the loss that is being traced shows them."""


@contextlib.contextmanager
def true_futures_in_memory() -> Iterator[None]:
    """Scheduled sampling by the predecessor: the actions are shown the true future, of which acting knows nothing.

    In training each sample's memory is, with a probability that falls from 0.9 to 0.1, the true latents of the frames
    that follow, those of the action chunk included, in place of the Prophet's prediction of them. The world loss is
    that of the prediction. Validation and acting have the prediction alone.
    """
    make_steps, loss, remember = build.make_steps, VLA.loss, WorldMemory.__call__

    def scheduled(*arguments: Any, **settings: Any) -> Any:
        update, evaluate = make_steps(*arguments, **settings)
        config = next(given for given in arguments if isinstance(given, TrainConfig))

        def taught(state: Any, *arguments: Any) -> Any:
            with _set(SHARE, true_share(state.step, config.steps)):
                return update(state, *arguments)

        return taught, evaluate

    def leaking_loss(self: VLA, inputs: ModelInput, action: Array, mask: Array, key: Array, train: bool = True) -> Any:
        share = SHARE.get()
        if share is None:
            return loss(self, inputs, action, mask, key, train)
        truth = self.world.true_future(inputs.latents, inputs.future, inputs.future_mask)
        chosen = jax.random.bernoulli(jax.random.fold_in(key, TEACHER), share, (len(truth),))
        with _set(TEACHING, Teacher(truth, chosen)):
            return loss(self, inputs, action, mask, key, train)

    def mixed(self: WorldMemory, hidden: Array, mask: Array, chunk: int, latents: Any, **settings: Any) -> WorldOutput:
        if (teacher := TEACHING.get()) is not None:
            predicted = self.recall(latents, len(hidden), settings.get("prophet_context"))
            settings["memory"] = jnp.where(teacher.chosen[:, None, None, None], teacher.memory, predicted)
        return remember(self, hidden, mask, chunk, latents, **settings)

    with (
        mock.patch.object(build, "make_steps", scheduled),
        mock.patch.object(VLA, "loss", leaking_loss),
        mock.patch.object(WorldMemory, "__call__", mixed),
    ):
        yield


def true_share(step: Array | int, steps: int) -> Array:
    """The probability at a step, from 0 on, that a sample is shown the true future."""
    return FIRST_SHARE + (LAST_SHARE - FIRST_SHARE) * jnp.asarray(step, jnp.float32) / max(1, steps - 1)


@contextlib.contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
