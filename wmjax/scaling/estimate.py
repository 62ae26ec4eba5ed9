"""Compiles the real training step, the initialisation and a decision for a topology and counts what they need.

No device, no data and no weights.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from wmjax.encoders.base import ENCODERS
from wmjax.experiment.config import Experiment, load
from wmjax.experiment.dimensions import of_store
from wmjax.models.parameters import count
from wmjax.scaling.chips import Topology, parse_topology
from wmjax.scaling.devices import devices
from wmjax.scaling.fitting import Attempt, attempt, choose
from wmjax.scaling.flops import flops
from wmjax.scaling.hlo import Program, summarise
from wmjax.scaling.program import bytes_per_device, call_shapes, decision, programs, step_flops
from wmjax.scaling.request import Request
from wmjax.scaling.roofline import cost
from wmjax.scaling.shapes import feature_bytes, image_size, latent_tokens
from wmjax.trainer.build import Built
from wmjax.trainer.sharding import MeshConfig, batch_parts, make_mesh, require_divisible

LATENT_BYTES = 2
"""A latent store's values are float16."""


def estimate(request: Request) -> dict[str, Any]:
    """Everything that the command prints, as JSON-able values; sizes are in units of 10^9 or 10^6 bytes.

    Raises:
        UserError: bad settings, or a mesh or batch that does not fit the topology.

    """
    topology = parse_topology(request.topology)
    experiment = of_store(load(request.recipe, request.scale, request.dataset, request.settings), None)
    mesh = make_mesh(experiment.mesh, devices(topology))
    require_divisible(experiment.train.batch_size, mesh)
    compile_step = functools.partial(_compile, mesh=mesh)
    memory = None if topology.chip is None else topology.chip.memory
    experiment, step, _ = choose(experiment, compile_step, memory, batch_parts(mesh))
    built = programs(experiment, mesh)
    backbone, counted = experiment.model.backbone, step_flops(experiment, built, mesh)
    found = {
        "recipe": experiment.recipe,
        "scale": experiment.scale,
        "topology": request.topology,
        "devices": topology.devices,
        "mesh": dict(mesh.shape),
        "shard_frozen": experiment.mesh.shard_frozen,
        "batch": experiment.train.batch_size,
        "accumulate": experiment.train.accumulate,
        "remat": getattr(backbone, "remat", None),
        "jax": jax.__version__,
        "parameters": count(built.shapes.state.params) + count(built.shapes.frozen),
        "trainable": count(built.shapes.state.params),
        "flops": counted,
        "arguments_gb": bytes_per_device(call_shapes(experiment, built, mesh)) / 1e9,
        "storage": _storage(experiment, built, request),
        "encoding": _encoding(topology, experiment, request),
    }
    found |= _compiled(topology, experiment, step or compile_step(experiment), request, counted)
    if request.initialises:
        found["initialisation"] = _initialisation(topology, built)
    return found | ({"decision": _decision(topology, experiment, request.rows)} if request.rows else {})


def _compile(experiment: Experiment, mesh: jax.sharding.Mesh) -> Attempt:
    """The training step."""
    built = programs(experiment, mesh)
    return attempt(lambda: built.train_step.lower(*call_shapes(experiment, built, mesh)))


def _decision(topology: Topology, experiment: Experiment, rows: int) -> dict[str, Any]:
    """A decision of the policy on one device, for so many robots at a time."""
    act, shapes = decision(experiment, rows, make_mesh(MeshConfig(), devices(topology)[:1]))
    found = {"rows": rows, "tflop": flops(act, *shapes) / 1e12}
    compiled = attempt(lambda: jax.jit(act).lower(*shapes))
    if compiled.program is None:
        return found | {"fits": False, "refused": compiled.refused, "memory": None, "roofline_s": None}
    memory = _memory(compiled, topology)
    kernels = None if topology.chip is None else cost(Program(compiled.program.as_text()), topology.chip)
    return found | {
        "fits": _fits(memory),
        "memory": memory,
        "roofline_s": None if kernels is None else kernels.seconds,
    }


def _fits(memory: dict[str, Any]) -> bool | None:
    """None where nobody knows how much memory there is."""
    return None if memory["available_gb"] is None else memory["needed_gb"] <= memory["available_gb"]


def _initialisation(topology: Topology, built: Built) -> dict[str, Any]:
    """The program that draws the first parameters, those that published weights replace left out."""
    compiled = attempt(built.draw.lower)
    if compiled.program is None:
        return {"fits": False, "refused": compiled.refused, "memory": None}
    memory = _memory(compiled, topology)
    return {"fits": _fits(memory), "memory": memory, "compile_s": compiled.compile_s}


def _storage(experiment: Experiment, built: Built, request: Request) -> dict[str, float]:
    """Sizes on disk: a checkpoint, the parameters in it that a policy needs, latents and features of the frames."""
    state, frames = built.shapes.state, request.frames
    width = latent_tokens(experiment) * experiment.model.prophet.latent_dim * LATENT_BYTES
    latents = frames * _views(experiment) * width if experiment.model.memory.reads_latents else 0
    features = frames * experiment.encoder.views * feature_bytes(experiment)
    return {
        "checkpoint_gb": _bytes(state) / 1e9,
        "checkpoint_s": _bytes(state) / 1e9 / request.disk,
        "disk_gb_per_s": request.disk,
        "policy_mb": _bytes(state.ema) / 1e6,
        "frames": frames,
        "latents_gb": latents / 1e9,
        "features_gb": features / 1e9,
    }


def _views(experiment: Experiment) -> int:
    """The distinct views of an episode."""
    return experiment.encoder.views if experiment.encoder.max_shift else 1


def _encoding(topology: Topology, experiment: Experiment, request: Request) -> dict[str, float] | None:
    """What the latents of the frames cost on one device; None if there are none, or only a download could tell."""
    encoder = experiment.encoder
    encode = ENCODERS.resolve(encoder.kind).without_weights(encoder)
    if encode is None or not experiment.model.memory.reads_latents:
        return None
    size = image_size(experiment)
    one = flops(encode, jax.ShapeDtypeStruct((1, encoder.clip_length, size, size, 3), jnp.uint8))
    clips = request.frames * _views(experiment) * len(encoder.cameras)
    found = {"tflop_per_clip": one / 1e12, "clips": clips, "efficiency": request.export_efficiency}
    if topology.chip is None:
        return found
    return found | {"hours": clips * one / (request.export_efficiency * topology.chip.flops) / 3600}


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _compiled(
    topology: Topology,
    experiment: Experiment,
    step: Attempt,
    request: Request,
    counted: dict[str, float],
) -> dict[str, Any]:
    """The values that only the compiled training step has."""
    if step.program is None:
        return {"fits": False, "refused": step.refused, "memory": None, "collectives": None, "time": None}
    memory = _memory(step, topology)
    program = Program(step.program.as_text())
    exchanges = program.collectives()
    return {
        "compile_s": step.compile_s,
        "lower_s": step.lower_s,
        "memory": memory,
        "fits": _fits(memory),
        "collectives": summarise(exchanges),
        "time": _time(topology, program, sum(one.traffic for one in exchanges), experiment, request, counted),
    }


def _memory(compiled: Attempt, topology: Topology) -> dict[str, Any]:
    """The memory of one device, as the compiler plans it."""
    plan = compiled.program.memory_analysis()
    return {
        "arguments_gb": plan.argument_size_in_bytes / 1e9,
        "temporaries_gb": plan.temp_size_in_bytes / 1e9,
        "program_gb": plan.generated_code_size_in_bytes / 1e9,
        "needed_gb": (compiled.needed or 0) / 1e9,
        "available_gb": topology.chip.memory / 1e9 if topology.chip else None,
    }


def _time(
    topology: Topology,
    program: Program,
    traffic: float,
    experiment: Experiment,
    request: Request,
    counted: dict[str, float],
) -> dict[str, float] | None:
    """Seconds of a step by the roofline model and at the stated efficiency; None for CPUs."""
    if topology.chip is None:
        return None
    kernels, exchange = cost(program, topology.chip), traffic / topology.link
    seconds = kernels.seconds + exchange
    rate = request.efficiency * experiment.train.batch_size / seconds
    peak = topology.chip.flops * topology.devices
    return {
        "kernels_s": kernels.seconds,
        "by_cycles_s": kernels.by_cycles,
        "kernels": kernels.kernels,
        "products_tflop": kernels.flops / 1e12,
        "memory_traffic_gb": kernels.traffic / 1e9,
        "collectives_s": exchange,
        "roofline_s": seconds,
        "efficiency": request.efficiency,
        "samples_per_s": rate,
        "mfu": rate * counted["model_tflop_per_sample"] * 1e12 / peak,
        "hours_per_epoch": request.frames / rate / 3600,
    }
