"""The real training step of an experiment on a mesh, without data: its programs, a call's shapes, its FLOPs."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wmjax.experiment.config import Experiment
from wmjax.models.world_model import network
from wmjax.scaling.flops import flops
from wmjax.scaling.shapes import batch_shapes, plain_specs, prompt_shapes, tasks
from wmjax.trainer.build import Built, DataSpecs, build
from wmjax.trainer.sharding import BATCH


def programs(experiment: Experiment, mesh: Mesh) -> Built:
    """The programs of an experiment on a mesh, for data with statistics that change nothing."""
    return build(
        lambda rngs: network(experiment.model, experiment.train.objective, rngs),
        mesh,
        DataSpecs(*plain_specs(experiment)),
        experiment.train,
        experiment.optimizer,
        experiment.mesh,
        max_shift=experiment.encoder.max_shift,
    )


def call_shapes(experiment: Experiment, built: Built, mesh: Mesh) -> tuple[Any, ...]:
    """The shapes of a call of the training step, each with its sharding."""

    def place(tree: Any, spec: PartitionSpec) -> Any:
        at = NamedSharding(mesh, spec)
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), tree)

    batch = place(batch_shapes(experiment, experiment.train.batch_size), BATCH)
    return *built.shapes.named(), batch, place(prompt_shapes(experiment, tasks(experiment)), PartitionSpec())


def bytes_per_device(shapes: Any) -> int:
    """The bytes of one device's share of arrays, by their shardings."""
    leaves = jax.tree.leaves(shapes)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def step_flops(experiment: Experiment, built: Built, mesh: Mesh) -> dict[str, float]:
    """FLOPs of a step over all devices, per sample: as executed, and without recomputation (the model's)."""
    batch = experiment.train.batch_size
    executed = flops(built.update, *call_shapes(experiment, built, mesh))
    model, backbone = executed, experiment.model.backbone
    if getattr(backbone, "remat", "none") != "none":
        changed: Any = {"remat": "none"}
        plain = dataclasses.replace(backbone, **changed)
        other = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, backbone=plain))
        built = programs(other, mesh)
        model = flops(built.update, *call_shapes(other, built, mesh))
    return {"executed_tflop_per_sample": executed / batch / 1e12, "model_tflop_per_sample": model / batch / 1e12}
