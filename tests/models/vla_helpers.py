"""A policy small enough to compile in a second, and batches for it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tests.variants import VARIANTS
from wmjax.core.settings import build
from wmjax.models.backbones.base import Backbone, Hidden
from wmjax.models.backbones.qwen2_5_vl.backbone import State
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig, TextConfig, VisionConfig
from wmjax.models.backbones.qwen2_5_vl.prompt import Prompt
from wmjax.models.heads.base import HeadConfig, HeadSizes
from wmjax.models.heads.flow import FlowConfig, FlowHead
from wmjax.models.inputs import ModelInput
from wmjax.models.vla import VLA, VLAConfig
from wmjax.models.world.injection import InjectionConfig
from wmjax.models.world.prophet import ProphetConfig

BATCH, CHUNK, LENGTH, HIDDEN = 3, 4, 16, 32
HISTORY, FUTURE, TOKENS, DIM = 3, 2, 4, 8
IMAGE_TOKEN = 40


def tiny_config(variant: str = "e2", **changes: Any) -> VLAConfig:
    """One layer of everything; ``changes`` replace fields."""
    backbone = Qwen2_5_VLConfig(
        vision=VisionConfig(depth=1, hidden=16, heads=2, mlp=32, out=HIDDEN, window=28, full_attention=()),
        text=TextConfig(vocabulary=48, hidden=HIDDEN, depth=2, heads=4, kv_heads=2, mlp=32, rope_sections=(2, 1, 1)),
        image_token=IMAGE_TOKEN,
        vision_start_token=41,
        vision_end_token=42,
    )
    config = VLAConfig(
        action_dim=7,
        grippers=1,
        state_dim=8,
        memory=VARIANTS[variant],
        head=FlowConfig(draws=2, steps=3),
        backbone=backbone,
        prophet=ProphetConfig(
            width=16, layers=2, heads=2, history=HISTORY, future=FUTURE, tokens=TOKENS, latent_dim=DIM
        ),
        injection=InjectionConfig(width=16, heads=2),
        head_sizes=HeadSizes(hidden=16, width=16, layers=2, heads=2),
        chunk=CHUNK,
    )
    return dataclasses.replace(config, **changes)


def head_config(kind: str) -> HeadConfig:
    """A head's settings, with few draws and steps."""
    return FlowConfig(draws=2, steps=3) if kind == "flow" else build(HeadConfig, {"kind": kind})


class TinyBackbone(Backbone):
    """A stand-in VLM: tokens, an image feature, one causal average. Compiles in no time."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.table = nnx.Embed(48, HIDDEN, rngs=rngs)
        self.vision = nnx.Linear(3, HIDDEN, rngs=rngs)
        self.mix = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)

    def encode(self, prompt: Prompt, images: jax.Array, own: jax.Array, key: jax.Array | None = None) -> State:
        feature = self.vision(jnp.mean(images.astype(jnp.float32) / 255.0, axis=(1, 2, 3)))
        embeddings = self.table(prompt.tokens) + feature[:, None]
        placed = jnp.concatenate([embeddings[:, : -own.shape[1]], own], axis=1)
        return State(placed, prompt.positions, prompt.mask)

    def decode(self, state: State, key: jax.Array | None = None, *, last: int | None = None) -> tuple[Hidden, None]:
        embeddings, _, mask = state
        seen = jnp.cumsum(embeddings * mask[..., None], axis=1) / jnp.maximum(jnp.cumsum(mask, axis=1), 1)[..., None]
        return Hidden(embeddings + jnp.tanh(self.mix(seen)), mask), None

    def words(self, prompt: Prompt, own: int) -> tuple[jax.Array, jax.Array]:
        is_word = jnp.asarray(prompt.mask) & (prompt.tokens != IMAGE_TOKEN)
        return self.table(prompt.tokens), is_word.at[:, -own:].set(False)


ZEROS = ("out", "modulation", "gate")
"""Modules that start at zero; test_prophet and test_flow use the real initialisation."""


def initialised(make: Callable[[nnx.Rngs], Any]) -> Any:
    """A module with parameters from numpy: initialising eagerly compiles one program per parameter shape."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def fill(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        names = [str(getattr(p, "key", getattr(p, "name", ""))) for p in path]
        own = names[0] != "backbone" and "attention" not in "".join(names)
        if (own and any(name in ZEROS for name in names)) or names[-2:] == ["bias", "value"] or "bias" in names:
            return jnp.zeros(leaf.shape)
        if leaf.ndim == 1 or any("norm" in name for name in names):
            return jnp.ones(leaf.shape)
        return jnp.asarray(rng.normal(size=leaf.shape) / leaf.shape[-2] ** 0.5, jnp.float32)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state))


def make_vla(
    variant: str = "e2", *, gate: float | None = None, real: bool = False, layers: tuple[int, ...] = (), **changes: Any
) -> VLA:
    """A tiny policy, with a stand-in VLM unless ``real`` or injected after ``layers``; ``gate`` opens its gates."""
    config = tiny_config(variant, **changes)
    config = dataclasses.replace(config, injection=dataclasses.replace(config.injection, layers=layers))
    stand_in = not (real or layers)
    model = initialised(lambda rngs: VLA(config, rngs=rngs, backbone=TinyBackbone(rngs) if stand_in else None))
    if gate is not None:
        model.world.injection.gate[...] = jnp.full(model.world.injection.gate.shape, gate)
    return model


def wake(model: Any) -> Any:
    """Opens the outputs that start at zero, so that what the policy is given matters."""
    outputs = [model.head.out if isinstance(model.head, FlowHead) else model.head.mlp.down]
    outputs += [model.world.prophet.out] if model.world.prophet is not None else []
    for i, out in enumerate(outputs):
        out.kernel[...] = jax.random.normal(jax.random.key(i), out.kernel.shape)
    return model


def make_inputs(batch: int = BATCH, seed: int = 0) -> ModelInput:
    """Random inputs: two cameras of one merged token each, left padding of two tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 39, (batch, LENGTH)).astype(np.int32)
    tokens[:, [4, 7]] = IMAGE_TOKEN
    mask = np.ones((batch, LENGTH), bool)
    mask[:, :2] = False
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (batch, 3, LENGTH))
    inputs = ModelInput(
        images=rng.integers(0, 256, (batch, 2, 28, 28, 3)).astype(np.uint8),
        state=rng.normal(size=(batch, 8)).astype(np.float32),
        prompt=Prompt(tokens, mask, positions),
        latents=rng.normal(size=(batch, HISTORY, TOKENS, DIM)).astype(np.float32),
        future=rng.normal(size=(batch, FUTURE, TOKENS, DIM)).astype(np.float32),
        future_mask=np.ones((batch, FUTURE), bool),
    )
    return jax.tree.map(jnp.asarray, inputs)


def make_actions(batch: int = BATCH, seed: int = 1) -> tuple[jax.Array, jax.Array]:
    """Random actions with a binary gripper, and a mask that ends the last sample's chunk early."""
    rng = np.random.default_rng(seed)
    action = rng.normal(size=(batch, CHUNK, 7)).astype(np.float32)
    action[..., -1] = np.sign(action[..., -1])
    mask = np.ones((batch, CHUNK), bool)
    mask[-1, -1] = False
    return jnp.asarray(action), jnp.asarray(mask)


def fit(
    params: nnx.State, loss: Callable[[nnx.State, jax.Array], tuple[jax.Array, Any]], steps: int, rate: float = 3e-3
) -> tuple[nnx.State, Any]:
    """Minimises ``loss(params, key) -> (value, aux)`` with Adam in one scan; also returns every step's aux."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps, 0.05))

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, Any]:
        params, state = carry
        (_, aux), gradients = jax.value_and_grad(loss, has_aux=True)(params, key)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(params, updates), state), aux

    @jax.jit
    def run(params: nnx.State) -> tuple[tuple, Any]:
        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(0), steps))

    (params, _), aux = run(params)
    return params, aux
