"""One decision of ``e2_flow`` at 3b: two new frames through V-JEPA, the VLM, the Prophet and ten flow steps.

Milliseconds from arrays on the host to the action chunk on the host, medians. The encoder runs in float32, as the
policy has it, and in bfloat16.
"""

import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import qwen_3b
from benchmarks.accelerator_stages.session import Session
from benchmarks.accelerator_stages.train_step import RECIPE
from wmjax.encoders.vjepa2 import PRESETS, VJEPA2Encoder, latents
from wmjax.experiment.config import load
from wmjax.models.backbones.qwen2_5_vl.prompt import Prompt
from wmjax.models.inputs import ModelInput
from wmjax.models.vla import VLA
from wmjax.policy.carry import Carry, observe
from wmjax.scaling.arrays import compiled, filled_model, peak_gb
from wmjax.scaling.clock import clocked
from wmjax.scaling.shapes import batch_shapes

FRAMES = 2
"""New frames of a decision."""
CALLS, WARM_UP = 12, 2


def run(session: Session) -> None:
    """The stage."""
    batches = session.sizes.decision_batches
    order = [(batch, "float32") for batch in batches]
    order += [(batch, "bfloat16") for batch in dict.fromkeys((batches[0], batches[-1]))]
    experiment = load(RECIPE, session.sizes.scale, None, {"train": {"backbone_weights": "random"}})
    model = filled_model(lambda: VLA(experiment.model, rngs=nnx.Rngs(0)))
    for batch, dtype in order:
        work = functools.partial(measure, session, experiment, model, batch, dtype)
        session.attempt(work, needs=20, batch=batch, encoder=dtype)


def measure(session: Session, experiment: Any, model: VLA, batch: int, dtype: str) -> dict[str, Any]:
    """Compiles and times a decision for ``batch`` simulators at once."""
    config = PRESETS[session.sizes.encoder]
    encoder = filled_model(lambda: VJEPA2Encoder(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)))
    graph, state = nnx.split((model, encoder))

    def act(state: Any, carry: Carry, images: Any, proprioception: Any, prompt: Prompt, keys: Any) -> Any:
        model, encoder = nnx.merge(graph, state)
        encode = functools.partial(latents, encoder, grid=experiment.encoder.pooling_grid)
        carry = observe(carry, images[:, :, :1], jnp.zeros(batch, bool), encode)
        inputs = ModelInput(images[:, -1], proprioception, prompt, carry.latents)
        return carry, model.sample(inputs, keys)[0]

    carry, images, prompt = inputs_of(experiment, batch)
    proprioception = np.zeros((batch, experiment.model.state_dim), np.float32)
    given = (images, proprioception, prompt)
    calls = jax.random.split(jax.random.key(0), (CALLS, batch))
    program, needs = compiled(jax.jit(act, donate_argnums=1), state, carry, *given, calls[0])
    box = [carry]

    def decide(keys: jax.Array) -> np.ndarray:
        box[0], chunk = program(state, box[0], *given, keys)
        return np.asarray(chunk)

    times = [clocked(functools.partial(decide, keys))[1] for keys in calls]
    median = statistics.median(times[WARM_UP:])
    return {"ms": 1e3 * median, "decisions_per_s": batch / median} | needs | {"peak_gb": peak_gb()}


def inputs_of(experiment: Any, batch: int) -> tuple[Carry, np.ndarray, Prompt]:
    """What a policy remembers, and a batch of observations on the host."""
    shapes = batch_shapes(experiment, batch)
    cameras, side = shapes["images"].shape[1:3]
    clip = (batch, experiment.encoder.clip_length, 1, side, side, 3)
    carry = Carry(jnp.zeros(clip, jnp.uint8), jnp.zeros(shapes["latents"].shape), jnp.zeros((batch, 0, 0, 0)))
    images = np.random.default_rng(0).integers(0, 256, (batch, FRAMES, cameras, side, side, 3), np.uint8)
    given = qwen_3b.make_inputs(experiment.model.backbone, batch, side, experiment.prompt.length)
    return carry, images, Prompt(given["tokens"], given["mask"], given["positions"])
