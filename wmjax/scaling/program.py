"""The real programs of an experiment without data, the training step and a decision: their shapes and FLOPs."""

import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wmjax.experiment.changes import with_remat
from wmjax.experiment.config import Experiment
from wmjax.models.inputs import ModelInput
from wmjax.models.vla import VLA
from wmjax.models.world_model import network
from wmjax.scaling.flops import flops
from wmjax.scaling.shapes import batch_shapes, decision_shapes, plain_specs, prompt_shapes, tasks
from wmjax.trainer.build import Built, DataSpecs, build
from wmjax.trainer.sharding import BATCH


def programs(experiment: Experiment, mesh: Mesh, specs: DataSpecs | None = None) -> Built:
    """The programs of an experiment on a mesh; without ``specs`` for data whose statistics change nothing."""
    return build(
        lambda rngs: network(experiment.model, experiment.train.objective, rngs),
        mesh,
        specs or DataSpecs(*plain_specs(experiment)),
        experiment.train,
        experiment.optimizer,
        experiment.mesh,
        max_shift=experiment.encoder.max_shift,
    )


def call_shapes(experiment: Experiment, built: Built, mesh: Mesh) -> tuple[Any, ...]:
    """The shapes of a call of the training step, each with its sharding."""
    batch = placed(batch_shapes(experiment, experiment.train.batch_size), mesh, BATCH)
    return *built.shapes.named(), batch, placed(prompt_shapes(experiment, tasks(experiment)), mesh, PartitionSpec())


def placed(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """The shapes of arrays, with a sharding over the mesh."""
    at = NamedSharding(mesh, spec)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), tree)


def decision(experiment: Experiment, rows: int, mesh: Mesh) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A policy's decision for so many robots, whole on every device of the mesh, and the shapes of a call.

    The latents of the world model's encoder are given; the encoder is no part of the program.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: VLA(experiment.model, rngs=nnx.Rngs(0))))

    def act(state: nnx.State, inputs: ModelInput, keys: jax.Array) -> Any:
        return nnx.merge(graph, state).sample(inputs, keys)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    return act, placed((state, decision_shapes(experiment, rows), keys), mesh, PartitionSpec())


def bytes_per_device(shapes: Any) -> int:
    """The bytes of one device's share of arrays, by their shardings."""
    leaves = jax.tree.leaves(shapes)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def step_flops(experiment: Experiment, built: Built, mesh: Mesh) -> dict[str, float]:
    """FLOPs of a step over all devices, per sample: as executed, and without recomputation (the model's)."""
    batch = experiment.train.batch_size
    executed = flops(built.update, *call_shapes(experiment, built, mesh))
    model, other = executed, without_remat(experiment)
    if other != experiment:
        built = programs(other, mesh)
        model = flops(built.update, *call_shapes(other, built, mesh))
    return {"executed_tflop_per_sample": executed / batch / 1e12, "model_tflop_per_sample": model / batch / 1e12}


def without_remat(experiment: Experiment) -> Experiment:
    """The same experiment, in which nothing is computed again; itself if it has a backbone without that setting."""
    return with_remat(experiment, "none") if hasattr(experiment.model.backbone, "remat") else experiment
