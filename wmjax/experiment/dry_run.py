"""The dry run: resolved settings, parameters, shapes, sharding and memory, without data and weights."""

import json
from typing import Any

import jax
from flax import nnx

from wmjax.core.settings import dotted
from wmjax.experiment.config import Experiment, to_dict
from wmjax.models.parameters import count, split_model, trainable_filter
from wmjax.models.vla import VLA
from wmjax.trainer.sharding import make_mesh, shardings

MOMENTS = 4
"""Copies of a trainable parameter in memory while training: itself, its average and two moments."""


def describe(experiment: Experiment) -> str:
    """The dry run's text.

    Raises:
        UserError: the mesh does not fit the devices, or nothing is trainable.

    """
    model = nnx.eval_shape(lambda: VLA(experiment.model, rngs=nnx.Rngs(0)))
    _, params, frozen = split_model(model, trainable_filter(experiment.train.trainable))
    mesh = make_mesh(experiment.mesh)
    lines = [f"{name} = {json.dumps(value)}" for name, value in dotted(to_dict(experiment)).items()]
    lines += ["", f"mesh: {dict(mesh.shape)} on {jax.device_count()} {jax.devices()[0].device_kind}"]
    lines += [f"parameters: {count(params) + count(frozen):,}, trainable {count(params):,}"]
    lines += _parts(params)
    lines += [
        f"state per device: {_megabytes(params, mesh) * MOMENTS + _megabytes(frozen, mesh):,.1f} MB, before activations"
    ]
    return "\n".join(lines)


def _parts(params: nnx.State) -> list[str]:
    return [f"  {name}: {count(part):,}" for name, part in sorted(nnx.to_pure_dict(params).items())]


def _megabytes(state: nnx.State, mesh: Any) -> float:
    """Bytes of one device's share."""
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(shardings(state, mesh)), strict=True)
    return sum(_size(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in leaves) / 1e6


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
