"""The step of ``torch_step`` in wmjax, from the same checkpoint, and how far its hidden states are from PyTorch's.

Without the checkpoint the weights are made on the device; without PyTorch's hidden states nothing is compared.
"""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import qwen_3b
from benchmarks.accelerator_stages.arrays import qwen_config
from benchmarks.accelerator_stages.checkpoints import qwen_folder, reference_file
from benchmarks.accelerator_stages.session import Session
from wmjax.models.backbones.qwen2_5_vl import flops, weights
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.scaling.arrays import compiled, filled_model, peak_gb, throughput
from wmjax.scaling.clock import clocked, timed

HALF = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
FULL = {"dtype": "float32", "param_dtype": "float32"}
ADAPTED = (nnx.LoRAParam, ...)
REMATS = ("full", "dots_no_batch", "none")


def run(session: Session) -> None:
    """The stage."""
    model, seconds = clocked(lambda: load(session, qwen_config(session.sizes, **HALF)))
    session.record(what="load", seconds=seconds, checkpoint=qwen_folder(session).is_dir(), peak_gb=peak_gb())
    for precision in ("bfloat16", "highest", "default"):
        work = functools.partial(compare, session, model, precision)
        session.attempt(work, needs=30, what="hidden states", precision=precision)
    for remat in REMATS:
        for batch in session.sizes.vlm_batches:
            work = functools.partial(measure, session, model, batch, remat)
            session.attempt(work, needs=20, batch=batch, remat=remat)


def load(session: Session, config: Qwen2_5_VLConfig) -> Qwen2_5_VL:
    """The checkpoint's model, or one of noise."""
    folder = qwen_folder(session)
    if folder.is_dir():
        model = weights.load_model(folder, config)
    else:
        model = filled_model(lambda: Qwen2_5_VL(config, rngs=nnx.Rngs(0)))
    jax.block_until_ready(jax.tree.leaves(nnx.state(model)))
    return model


def compare(session: Session, model: Qwen2_5_VL, precision: str) -> dict[str, Any]:
    """Relative errors of the hidden states of two prompts against PyTorch's in float32.

    ``bfloat16`` is the model as trained, and its error should not exceed PyTorch's own; ``highest`` and ``default``
    are the same weights in float32, at those precisions of a product.
    """
    reference = np.load(reference_file(session))
    config = qwen_config(session.sizes, **(HALF if precision == "bfloat16" else FULL))
    graph = nnx.split(nnx.eval_shape(lambda: Qwen2_5_VL(config, rngs=nnx.Rngs(0))))[0]
    state = nnx.state(model)
    if precision != "bfloat16":
        state = jax.tree.map(lambda x: x.astype(jnp.float32), state)
    given = qwen_3b.make_inputs(config, 2, session.sizes.side, session.sizes.tokens)

    def hidden(state: nnx.State, tokens: Any, images: Any, positions: Any, mask: Any) -> jax.Array:
        own = nnx.merge(graph, state)
        return own.forward(own.embed(tokens, images), positions, mask).astype(jnp.float32)

    with jax.default_matmul_precision("highest") if precision == "highest" else contextlib.nullcontext():
        ours = np.asarray(jax.jit(hidden)(state, *given.values()))

    def error(found: np.ndarray, wanted: np.ndarray) -> float:
        return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))

    found = {"error": error(ours, reference["full"])}
    if precision == "bfloat16":
        found["torch_bfloat16_error"] = error(reference["half"], reference["full"])
    return found


def measure(session: Session, model: Qwen2_5_VL, batch: int, remat: str) -> dict[str, Any]:
    """Compiles and times the LoRA step with AdamW."""
    config = qwen_config(session.sizes, remat=remat, **HALF)
    graph = nnx.split(nnx.eval_shape(lambda: Qwen2_5_VL(config, rngs=nnx.Rngs(0))), *ADAPTED)[0]
    adapters, base = nnx.split(model, *ADAPTED)[1:]
    adapters, optimizer = jax.tree.map(jnp.copy, adapters), optax.adamw(1e-4)
    given = qwen_3b.make_inputs(config, batch, session.sizes.side, session.sizes.tokens)
    probe = np.random.default_rng(0).normal(size=(*given["tokens"].shape, config.text.hidden)).astype(np.float32)

    def step(adapters: Any, moments: Any, base: Any, probe: Any, tokens: Any, images: Any, *rest: Any) -> Any:
        def loss(adapters: Any) -> jax.Array:
            own = nnx.merge(graph, adapters, base)
            return jnp.mean(own.forward(own.embed(tokens, images), *rest).astype(jnp.float32) * probe)

        value, gradients = jax.value_and_grad(loss)(adapters)
        updates, moments = optimizer.update(gradients, moments, adapters)
        return optax.apply_updates(adapters, updates), moments, value

    placed = jax.device_put((probe, *given.values()))
    state = [adapters, optimizer.init(adapters)]
    program, needs = compiled(jax.jit(step, donate_argnums=(0, 1)), *state, base, *placed)

    def call() -> jax.Array:
        *state[:], value = program(*state, base, *placed)
        return value

    seconds, dispatch = timed(call, jax.block_until_ready, session.sizes.rounds)
    grids = [(session.sizes.side // config.vision.factor,) * 2] * 2
    work = flops.lora_step_flops(config, grids, session.sizes.tokens)
    return throughput(batch, seconds, work) | {"dispatch_ms": 1e3 * dispatch} | needs | {"peak_gb": peak_gb()}
