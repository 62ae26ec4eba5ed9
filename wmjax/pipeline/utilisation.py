"""How well a training uses its devices: tokens/s, the share of their FLOP/s, and the memory that it takes."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from wmjax.data.loader import BatchSource
from wmjax.experiment.config import Experiment
from wmjax.models.prompts import mean_tokens
from wmjax.scaling.chips import peak_flops
from wmjax.scaling.flops import flops
from wmjax.scaling.program import programs, without_remat
from wmjax.trainer.build import DataSpecs
from wmjax.trainer.config import Inputs
from wmjax.trainer.sharding import MeshConfig, make_mesh


def utilisation(experiment: Experiment, inputs: Inputs) -> Callable[[float], dict[str, float]]:
    """A function from samples/s to metrics.

    ``tokens_per_second`` counts the tokens of the backbone's decoder: those of images, text, state and actions, without
    padding, on average over the tasks' prompts; a Prophet that is trained alone reads none. ``mfu`` is the share of the
    devices' dense bfloat16 FLOP/s that the model's own products take, without those of rematerialisation and of stored
    features; only for devices whose data sheet is known (:data:`wmjax.scaling.chips.CHIPS`). ``memory_gb`` is the most
    that was in use on one device, in 10^9 bytes, where jax can tell. A CPU has neither of these two.
    """
    device = jax.local_devices()[0]
    peak = peak_flops(device.device_kind)
    tokens = mean_tokens(inputs.prompts, experiment.model) if experiment.train.objective == "policy" else None

    @functools.cache
    def needed() -> float | None:
        try:
            return sample_flops(experiment, inputs)
        except NotImplementedError:  # a backbone of another package may have loops that cannot be counted
            return None

    def measure(samples_per_second: float) -> dict[str, float]:
        found = {} if tokens is None else {"tokens_per_second": samples_per_second * tokens}
        if peak is not None and (each := needed()) is not None:
            found["mfu"] = samples_per_second * each / (peak * jax.device_count())
        used = (device.memory_stats() or {}).get("peak_bytes_in_use")
        return found if used is None else found | {"memory_gb": used / 1e9}

    return measure


def sample_flops(experiment: Experiment, inputs: Inputs) -> float:
    """FLOPs of a training step per sample, of these inputs, without rematerialisation; nothing is computed."""
    plain = dataclasses.replace(without_remat(experiment), mesh=MeshConfig())
    built = programs(plain, make_mesh(plain.mesh, jax.local_devices()[:1]), DataSpecs.of(inputs))
    return float(flops(built.update, *built.shapes.named(), one_sample(inputs), inputs.prompts))


def one_sample(inputs: Inputs) -> dict[str, np.ndarray]:
    """A batch of one sample."""
    loader = dataclasses.replace(inputs.loader, batch_size=1)
    return BatchSource(inputs.store, inputs.latents, inputs.train_episodes, loader, inputs.features)[0]
