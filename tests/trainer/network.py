"""The tiny policy network on meshes of this process's simulated devices: its collectives, and a few training steps.

``python -m tests.trainer.network collectives|steps JOBS.json`` prints one line of JSON per job.
"""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.tiny import IMAGE_SIZE, LATENT_DIM, tiny_config
from wmjax.core.specs import EncoderSpec
from wmjax.models.backbones.qwen2_5_vl.prompt import Prompt
from wmjax.models.nn.lora import LoRAConfig
from wmjax.models.parameters import to_named
from wmjax.models.vla import VLA
from wmjax.scaling.hlo import Program, summarise
from wmjax.sim.libero import ACTION_SPEC
from wmjax.trainer.build import Built, DataSpecs, build
from wmjax.trainer.config import TrainConfig
from wmjax.trainer.optimizer import OptimizerConfig
from wmjax.trainer.sharding import BATCH, MeshConfig, make_mesh, shard_batch

LENGTH, TOKENS, STATE, HIDDEN, DEPTH = 56, 16, 8, 48, 2
STREAMS = ((DEPTH, LENGTH * HIDDEN), (2, 2 * 16 * 32), (1, 4 * TOKENS * 24), (1, 4 * 8 * 24))
"""Layers and values per sample of the residual streams: decoder, vision tower of two cameras, Prophet, head."""
Job = dict[str, Any]
"""``devices``, ``fsdp``, ``tensor``, ``batch``; ``lora`` (on a frozen backbone) and ``half`` (bfloat16). ``guess``
leaves the layout of activations to XLA, ``cast`` casts parameters, and so their gradients, to half precision.
``variant`` is another than e2, ``layers`` are those after which the memory is injected."""


def built_for(job: Job) -> tuple[Built, Mesh]:
    """The programs of a recipe with the flow head. A frozen backbone is split over fsdp too."""
    half = {"dtype": "bfloat16"} if job["half"] else {}
    backbone: dict[str, Any] = {"remat": "full", **half}
    if job["lora"]:
        backbone |= {"lora": LoRAConfig(rank=2), **({"param_dtype": "bfloat16"} if half else {})}
    model = tiny_config(job.get("variant", "e2"), "flow", **backbone)
    injection = dataclasses.replace(model.injection, layers=job.get("layers", ()))
    model = dataclasses.replace(model, injection=injection, **half)
    zeros, ones = (0.0,) * LATENT_DIM, (1.0,) * LATENT_DIM
    statistics = {"state_offset": (0.0,) * STATE, "state_scale": (1.0,) * STATE}
    action = dataclasses.replace(ACTION_SPEC, chunk=model.chunk, **statistics)
    specs = DataSpecs(
        action, EncoderSpec(cameras=("agentview",), dim=LATENT_DIM, tokens_per_frame=TOKENS, mean=zeros, std=ones)
    )
    adapters = {"trainable": "adapters", "backbone_weights": "random"} if job["lora"] else {}
    train = TrainConfig(batch_size=job["batch"], **adapters)
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=1)
    config = MeshConfig(fsdp=job["fsdp"], tensor=job["tensor"], shard_frozen=True)
    mesh = make_mesh(config, jax.devices()[: job["devices"]])
    return build(lambda rngs: VLA(model, rngs=rngs), mesh, specs, train, optimizer, config, max_shift=2), mesh


def batch_of(size: int) -> dict[str, np.ndarray]:
    """Noise, as the loader would deliver it."""
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (size, 2, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8),
        "state": rng.normal(size=(size, STATE)).astype(np.float32),
        "action": rng.uniform(-1, 1, (size, 8, 7)).astype(np.float32),
        "action_mask": np.ones((size, 8), bool),
        "task": np.zeros(size, np.int32),
        "shift": np.zeros((size, 2), np.int32),
        "latents": rng.normal(size=(size, 3, TOKENS, LATENT_DIM)).astype(np.float32),
        "future": rng.normal(size=(size, 4, TOKENS, LATENT_DIM)).astype(np.float32),
        "future_mask": np.ones((size, 4), bool),
    }


def prompts() -> Prompt:
    """One prompt: four image tokens of each camera, then words."""
    tokens = np.full((1, LENGTH), 5, np.int32)
    tokens[0, 1:9] = tiny_config().backbone.image_token
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (1, 3, LENGTH))
    return Prompt(tokens, np.ones((1, LENGTH), bool), np.ascontiguousarray(positions))


def step_shapes(built: Built, mesh: Mesh, batch: int) -> tuple[Any, ...]:
    """The arguments of the training step as shapes with their layout."""

    def place(tree: Any, spec: PartitionSpec) -> Any:
        at = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree)

    columns = {name: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for name, x in batch_of(1).items()}
    return *built.shapes.named(), place(columns, BATCH), place(prompts(), PartitionSpec())


def collectives(job: Job) -> dict[str, Any]:
    """Those of the training step, and the sizes that explain them."""
    built, mesh = built_for(job)
    arguments = step_shapes(built, mesh, job["batch"])
    with contextlib.ExitStack() as patches:
        if job.get("guess"):
            patches.enter_context(mock.patch("wmjax.trainer.build.activations_on", nothing))
        if job.get("cast"):
            for module in ("lora", "transformer"):
                patches.enter_context(mock.patch(f"wmjax.models.nn.{module}.matmul", cast_matmul))
        lowered = built.train_step.lower(*arguments)
    found = Program(lowered.compile().as_text()).collectives()
    largest = sorted(found, key=lambda one: -one.times * one.size)[:10]
    return {
        "collectives": summarise(found),
        "largest": [f"{one.times * one.size / 1e6:.3f} MB {one.kind} x{one.times} {one.shape[:90]}" for one in largest],
        "trained_mb": megabytes(built.shapes.state.params),
        "frozen_mb": megabytes(built.shapes.frozen),
        "tokens_mb": job["batch"] * LENGTH * HIDDEN * 4 / 1e6,
        "streams_mb": job["batch"] * job["tensor"] / job["devices"] * 4e-6 * sum(n * size for n, size in STREAMS),
    }


def cast_matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel.astype(x.dtype)


def nothing(mesh: Mesh | None = None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def megabytes(tree: Any) -> float:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e6


def steps(job: Job) -> dict[str, Any]:
    """Losses of three steps; then every parameter and the first moment of its gradients."""
    built, mesh = built_for(job)
    state, guard, frozen = built.initialise().named()
    batch, losses = shard_batch(batch_of(job["batch"]), mesh), []
    for _ in range(3):
        state, guard, metrics = jax.block_until_ready(built.train_step(state, guard, frozen, batch, prompts()))
        losses.append(float(metrics["loss"]))
    named = {name: np.asarray(value).ravel().tolist() for name, value in to_named(state._replace(ema=None)).items()}
    return {"losses": losses, "skipped": int(guard.skipped), "arrays": named}


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[2]).read_text()):
        print(json.dumps({"collectives": collectives, "steps": steps}[sys.argv[1]](job)), flush=True)
