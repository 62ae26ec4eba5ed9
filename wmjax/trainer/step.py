"""The training step and the evaluation step: pure functions of trees, built once and jitted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32, Shaped, UInt8

from wmjax.core.rng import named_key
from wmjax.core.specs import ActionSpec, EncoderSpec
from wmjax.data.observation import Prompt
from wmjax.data.shift import shift_images
from wmjax.data.statistics import normalise_action, normalise_latents, normalise_state
from wmjax.models.inputs import ModelInput
from wmjax.models.parameters import from_named, to_named
from wmjax.models.world_model import WorldModel
from wmjax.trainer.colours import ColourConfig, jitter_colours
from wmjax.trainer.crops import crop_at_random

Parameters = nnx.State | dict[str, Any]
"""Parameters as an NNX state, or by name (:func:`wmjax.models.parameters.to_named`)."""


class TrainState(NamedTuple):
    """Trainable parameters, their exponential moving average, optimizer moments; all float32."""

    step: Int32[Array, ""]
    params: Parameters
    ema: Parameters | None
    opt: Any

    def named(self) -> "TrainState":
        """The same with everything by name."""
        return TrainState(self.step, to_named(self.params), to_named(self.ema), to_named(self.opt))

    def in_states(self, like: "TrainState") -> "TrainState":
        """The inverse of :meth:`named`, with the structure of ``like``."""
        return TrainState(self.step, *(from_named(*pair) for pair in zip(like[1:], self[1:], strict=True)))


def initial_state(params: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0: the average starts at the parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))


Batch = dict[str, Array]
Metrics = dict[str, Array]


def model_input(
    batch: Batch,
    prompts: Prompt,
    action_spec: ActionSpec,
    encoder_spec: EncoderSpec | None,
    decided_at: Float32[Array, "batch state"] | None = None,
) -> ModelInput:
    """A batch of the loader in the model's units: normalised state, actions and latents, each task's prompt found.

    ``decided_at`` is the raw state of actions that are differences to it; the batch's when None.
    """
    reference = batch["state"] if decided_at is None else decided_at
    inputs = ModelInput(
        images=batch.get("images"),
        features=decode(batch["features"], batch.get("feature_scale")) if "features" in batch else None,
        state=normalise_state(batch["state"], action_spec),
        prompt=jax.tree.map(lambda table: table[batch["task"]], prompts),
        pending=normalise_action(batch["pending"], action_spec, reference) if "pending" in batch else None,
    )
    if encoder_spec is None:
        return inputs
    return inputs._replace(
        latents=normalise_latents(batch["latents"], encoder_spec),
        future=normalise_latents(batch["future"], encoder_spec),
        future_mask=batch["future_mask"],
    )


def decode(
    features: Shaped[Array, "batch tokens channels"], scale: Float32[Array, "batch tokens"] | None
) -> Float[Array, "batch tokens channels"]:
    """The features of a batch as numbers: float32, or bfloat16 of its bits (:mod:`wmjax.data.packing`)."""
    if scale is not None:
        return features * scale[..., None]
    if features.dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(features, jnp.bfloat16)
    return features


def augment(
    batch: Batch, key: Array, max_shift: int, state_noise: Float32[Array, " state"], cameras: tuple[int, ...] = (0,)
) -> Batch:
    """Shifts the latents' cameras as their view was shifted, the others at random, and jitters the state.

    Args:
        batch: uint8 images ``[B, C, H, W, 3]`` (or none), ``shift`` ``[B, 2]`` in pixels, raw state.
        key: this step's key.
        max_shift: largest random shift, pixels.
        state_noise: standard deviation per state dimension, raw units.
        cameras: indices of the cameras that the latents, and with them ``shift``, belong to.

    """
    shift_key, noise_key = jax.random.split(key)
    state = batch["state"] + state_noise * jax.random.normal(noise_key, batch["state"].shape)
    if "images" not in batch:
        return {**batch, "state": state}
    images, size = batch["images"], batch["images"].shape[0]
    random = jax.random.randint(shift_key, (size, images.shape[1] - len(cameras), 2), -max_shift, max_shift + 1)
    given = batch["shift"][:, None].astype(random.dtype)
    others = iter(range(random.shape[1]))
    chosen = [given if i in cameras else random[:, (other := next(others)) : other + 1] for i in range(images.shape[1])]
    shift = jnp.concatenate(chosen, 1)
    return {**batch, "images": jax.vmap(jax.vmap(_shift_one))(images, shift), "state": state}


def _shift_one(image: UInt8[Array, "h w 3"], shift: Int32[Array, "2"]) -> UInt8[Array, "h w 3"]:
    return shift_images(image, shift[0], shift[1])


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    action_spec: ActionSpec,
    encoder_spec: EncoderSpec | None,
    *,
    seed: int | Array,
    ema_decay: float,
    max_shift: int,
    state_noise: float,
    crop: float = 1.0,
    colours: ColourConfig | None = None,
    cameras: tuple[int, ...] = (0,),
) -> Callable[[TrainState, nnx.State, Batch, Prompt], tuple[TrainState, Metrics]]:
    """The update ``(state, frozen, batch, prompts) -> (state, metrics)``; differentiates ``state.params`` only.

    ``cameras`` are the indices of the latents' cameras, see :func:`augment`.
    """
    noise = jnp.asarray(action_spec.state_scale, jnp.float32) * state_noise

    def train_step(state: TrainState, frozen: nnx.State, batch: Batch, prompts: Prompt) -> tuple[TrainState, Metrics]:
        decided_at = batch["state"]  # actions that are differences to it do not get its noise
        batch = augment(batch, named_key(seed, "augment", state.step), max_shift, noise, cameras)
        if crop < 1.0 and "images" in batch:
            batch = {**batch, "images": crop_at_random(batch["images"], named_key(seed, "crop", state.step), crop)}
        if colours is not None and colours.changes and "images" in batch:
            images = jitter_colours(batch["images"], named_key(seed, "colours", state.step), colours)
            batch = {**batch, "images": images}
        inputs = model_input(batch, prompts, action_spec, encoder_spec, decided_at)
        action = normalise_action(batch["action"], action_spec, decided_at)

        def loss(params: nnx.State) -> tuple[Float32[Array, ""], Metrics]:
            model = nnx.merge(graph, params, frozen)
            key = named_key(seed, "loss", state.step)
            return model.loss(inputs, action, batch["action_mask"], key, train=True)

        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt = optimizer.update(gradients, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = _average(state.ema, params, state.step, ema_decay)
        if isinstance(opt, optax.MultiStepsState):  # an average of updates, not of batches
            after = _average(state.ema, params, opt.gradient_step - 1, ema_decay)
            ema = jax.tree.map(lambda new, old: jnp.where(opt.mini_step == 0, new, old), after, state.ema)
        metrics = {**metrics, "loss": value, "gradient_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, ema, opt), metrics

    return train_step


def _average(ema: Parameters | None, params: Parameters, updates: Int32[Array, ""], most: float) -> Any:
    """The moving average after one more update; its decay is lower at the start, to forget the initialisation soon."""
    decay = jnp.minimum(most, (1.0 + updates) / (10.0 + updates))
    return jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, params)


def make_eval_step(
    graph: nnx.GraphDef, action_spec: ActionSpec, encoder_spec: EncoderSpec | None, *, seed: int | Array
) -> Callable[
    [nnx.State, nnx.State, Batch, Prompt, Int32[Array, ""]], tuple[Float32[Array, "batch chunk dim"] | None, Metrics]
]:
    """``(params, frozen, batch, prompts, index) -> (predicted chunk, loss metrics)``, the chunk in normalised units.

    A model that does not act (:class:`wmjax.models.world_model.WorldModel`) predicts no chunk: it is None.
    """

    def eval_step(
        params: nnx.State, frozen: nnx.State, batch: Batch, prompts: Prompt, index: Int32[Array, ""]
    ) -> tuple[Float32[Array, "batch chunk dim"] | None, Metrics]:
        inputs = model_input(batch, prompts, action_spec, encoder_spec)
        action = normalise_action(batch["action"], action_spec, batch["state"])
        model = nnx.merge(graph, params, frozen)
        value, metrics = model.loss(inputs, action, batch["action_mask"], named_key(seed, "eval", index), train=False)
        metrics = {**metrics, "loss": value}
        if isinstance(model, WorldModel):
            return None, metrics
        predicted, _ = model.sample(inputs, named_key(seed, "eval noise", index))
        return predicted, metrics

    return eval_step
