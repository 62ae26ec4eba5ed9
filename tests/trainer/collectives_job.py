"""Compiles the training step of the tiny network for meshes of this process's simulated devices.

``python -m tests.trainer.collectives_job JOBS.json`` prints, for each job, megabytes by kind and by element type, and
those of the arrays that explain them.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from tests.tiny import IMAGE_SIZE, LATENT_DIM, tiny_config
from wmjax.core.specs import EncoderSpec
from wmjax.models.nn.lora import LoRAConfig
from wmjax.models.vla import VLA
from wmjax.scaling.hlo import Program, summarise
from wmjax.scaling.shapes import Prompt
from wmjax.sim.libero import ACTION_SPEC
from wmjax.trainer.build import Built, DataSpecs, build
from wmjax.trainer.config import TrainConfig
from wmjax.trainer.optimizer import OptimizerConfig
from wmjax.trainer.sharding import BATCH, MeshConfig, make_mesh

LENGTH, TOKENS, STATE, HIDDEN = 56, 16, 8, 48


def built_for(job: dict[str, Any], mesh: jax.sharding.Mesh, config: MeshConfig) -> Built:
    """The programs of e2_flow, with LoRA on a frozen backbone or with everything trained."""
    half = {"dtype": "bfloat16"} if job["half"] else {}
    backbone: dict[str, Any] = {"remat": "full", **half}
    if job["lora"]:
        backbone |= {"lora": LoRAConfig(rank=2), **({"param_dtype": "bfloat16"} if half else {})}
    model = dataclasses.replace(tiny_config("e2", "flow", **backbone), **half)
    zeros, ones = (0.0,) * LATENT_DIM, (1.0,) * LATENT_DIM
    action = dataclasses.replace(
        ACTION_SPEC, chunk=model.chunk, state_offset=(0.0,) * STATE, state_scale=(1.0,) * STATE
    )
    specs = DataSpecs(action, EncoderSpec(dim=LATENT_DIM, tokens_per_frame=TOKENS, mean=zeros, std=ones))
    adapters = {"trainable": "adapters", "backbone_weights": "random"} if job["lora"] else {}
    train = TrainConfig(batch_size=job["batch"], **adapters)
    return build(lambda rngs: VLA(model, rngs=rngs), mesh, specs, train, OptimizerConfig(), config, max_shift=2)


def batch_of(batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What the loader would deliver."""
    columns = {
        "images": ((2, IMAGE_SIZE, IMAGE_SIZE, 3), "uint8"),
        "state": ((STATE,), "float32"),
        "action": ((8, 7), "float32"),
        "action_mask": ((8,), "bool"),
        "task": ((), "int32"),
        "shift": ((2,), "int32"),
        "latents": ((3, TOKENS, LATENT_DIM), "float32"),
        "future": ((4, TOKENS, LATENT_DIM), "float32"),
        "future_mask": ((4,), "bool"),
    }
    return {name: jax.ShapeDtypeStruct((batch, *shape), dtype) for name, (shape, dtype) in columns.items()}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """The collectives of one mesh's training step."""
    config = MeshConfig(fsdp=job["fsdp"], tensor=job["tensor"], shard_frozen=job["fsdp"] > 1)
    mesh = make_mesh(config)

    def place(tree: Any, spec: PartitionSpec) -> Any:
        at = NamedSharding(mesh, spec)
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), tree)

    built = built_for(job, mesh, config)
    prompt = ((1, LENGTH), "int32"), ((1, LENGTH), "bool"), ((1, 3, LENGTH), "int32")
    prompts = Prompt(*(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in prompt))
    arguments = *built.shapes, place(batch_of(job["batch"]), BATCH), place(prompts, PartitionSpec())
    exchanges = Program(built.train_step.lower(*arguments).compile().as_text()).collectives()
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e6  # noqa: E731
    return {
        "collectives": summarise(exchanges),
        "largest": sorted(({"mb": one.times * one.size / 1e6, **dataclasses.asdict(one)} for one in exchanges),
                          key=lambda one: -one["mb"])[:12],
        "trained_mb": size(built.shapes.state.params),
        "frozen_mb": size(built.shapes.frozen),
        "tokens_mb": job["batch"] * LENGTH * HIDDEN * 4 / 1e6,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps([measure(job) for job in json.loads(Path(sys.argv[1]).read_text())]))
