"""The dry run: resolved settings, parameters, shapes, sharding and memory, without data and weights."""

import json
from collections import Counter

import jax

from wmjax.core.settings import dotted
from wmjax.experiment.changes import is_auto
from wmjax.experiment.config import Experiment, to_dict
from wmjax.models.parameters import count, to_named
from wmjax.scaling.program import bytes_per_device, call_shapes, programs
from wmjax.scaling.shapes import feature_bytes
from wmjax.trainer.sharding import make_mesh, require_divisible
from wmjax.trainer.step import Parameters


def describe(experiment: Experiment) -> str:
    """The dry run's text.

    Raises:
        UserError: the mesh does not fit the devices or the batch, or nothing is trainable.

    """
    mesh = make_mesh(experiment.mesh)
    require_divisible(experiment.train.batch_size, mesh)
    built = programs(experiment, mesh)
    params, frozen = built.shapes.state.params, built.shapes.frozen
    lines = [f"{name} = {json.dumps(value)}" for name, value in dotted(to_dict(experiment)).items()]
    lines += ["", f"mesh: {dict(mesh.shape)} on {jax.device_count()} {jax.devices()[0].device_kind}"]
    lines += [f"parameters: {count(params) + count(frozen):,}, trainable {count(params):,}"]
    lines += _parts(params)
    state, guard, base, *batch = (bytes_per_device(tree) / 1e6 for tree in call_shapes(experiment, built, mesh))
    lines += [
        f"memory per device: {state + guard:,.1f} MB of trained parameters, their average and moments, "
        f"{base:,.1f} MB frozen, {sum(batch):,.1f} MB of batch and prompts; "
        "activations come on top, wmjax.estimate counts them"
    ]
    if is_auto(experiment):
        lines += ["remat auto: chosen by the memory of the devices when the training begins; none on CPUs"]
    if size := feature_bytes(experiment):
        lines += [f"vision features: {size / 1e3:,.1f} kB per frame and view, {experiment.encoder.views} views"]
    return "\n".join(lines)


def _parts(params: Parameters) -> list[str]:
    sizes: Counter[str] = Counter()
    for name, leaf in to_named(params).items():
        sizes[name.partition("/")[0]] += leaf.size
    return [f"  {name}: {size:,}" for name, size in sorted(sizes.items())]
