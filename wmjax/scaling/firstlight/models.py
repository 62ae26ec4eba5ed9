"""Checks of the networks: weights, prompts, precision, attention, and the published implementation."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from wmjax.core.files import read_npz, write_npz
from wmjax.core.specs import Precision
from wmjax.encoders.base import ENCODERS
from wmjax.encoders.encode import LATENT_BOUNDS, difference
from wmjax.models.backbones.pretrained import backbone_hash
from wmjax.models.backbones.qwen2_5_vl import weights
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.backbones.qwen2_5_vl.prompt import PromptBuilder
from wmjax.models.backbones.qwen2_5_vl.reference import reference_arrays
from wmjax.models.nn.attention import Implementation, attention
from wmjax.models.nn.lora import LoRAConfig
from wmjax.models.parameters import count
from wmjax.models.prompts import make_prepare
from wmjax.models.vla import VLA
from wmjax.scaling.arrays import filled, filled_model, random_batch, random_inputs
from wmjax.scaling.clock import clocked
from wmjax.scaling.firstlight.bench import Bench, square
from wmjax.scaling.firstlight.request import Finding, MissingPieceError, judged
from wmjax.scaling.latency import INSTRUCTION

HALF_BOUND = 0.1
"""Largest relative error of hidden states in bfloat16. Rounding (2^-9) that adds up over 36 layers makes a few per
cent; a wrong kernel makes an error of one."""
FULL_BOUND = 1e-3
"""The same for float32 at the highest precision, against PyTorch."""
ATTENTION_BOUNDS = {"float32": 1e-4, "bfloat16": 2e-2}
"""Largest relative error of an attention and of its gradients, by the type of its arguments."""
ATTENTION_SHAPE = {"batch": 2, "length": 200, "heads": 16, "kv_heads": 2, "dim": 128}
"""That of the text decoder of Qwen2.5-VL-3B and a prompt of the scale ``3b``."""
PYTORCH_SECONDS = 1800.0


def relative(found: Any, wanted: Any) -> float:
    """The norm of the difference relative to the norm of the reference, in float64."""
    a, b = (np.asarray(x, np.float64) for x in (found, wanted))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def check_weights(bench: Bench) -> Finding:
    """Reads the backbone's published weights onto the device, or makes noise of its shapes there."""
    backbone: Any = bench.experiment.model.backbone

    def make() -> Qwen2_5_VL:
        if bench.given is not None:
            return weights.load_model(bench.given, backbone)
        return filled_model(lambda: Qwen2_5_VL(backbone, rngs=nnx.Rngs(0)))

    model, seconds = clocked(lambda: jax.block_until_ready(make()))
    leaves = jax.tree.leaves(nnx.state(model))
    size, finite = (
        sum(leaf.nbytes for leaf in leaves) / 1e9,
        all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves),
    )
    source = "noise, no --weights given" if bench.given is None else f"{bench.given}, hash {backbone_hash(bench.given)}"
    text = f"{count(leaves):,} parameters ({source}), {size:.2f} GB in {seconds:.1f} s"
    text += "" if finite else "; some are not finite"
    return judged(finite, text, parameters=count(leaves), gb=size, load_s=seconds, given=bench.given is not None)


def check_tokenizer(bench: Bench) -> Finding:
    """Tokens of a prompt: as many image placeholders as the vision tower has tokens, and the text back again."""
    experiment = bench.experiment
    prepare = _prompt_builder(bench)
    prompt = prepare(INSTRUCTION)
    tokens, used = prompt.tokens[0], int(prompt.mask.sum())
    images = int((tokens == prepare.config.image_token).sum())
    wanted = sum(rows * columns for rows, columns in prepare.image_grids)
    own = 1 + experiment.model.chunk
    again = prepare.decode(tokens[len(tokens) - used : len(tokens) - own])
    good = images == wanted and INSTRUCTION in again
    text = f"{used} of {experiment.prompt.length} tokens, {images} of {wanted} image placeholders"
    text += f", template {prepare.hashes['template']}, tokenizer {prepare.hashes['tokenizer']}"
    if importlib.util.find_spec("transformers") is not None and bench.given is not None:
        same = _transformers_agrees(bench.given, prepare)
        good, text = good and same, text + f"; transformers' text is {'the same' if same else 'another'}"
    else:
        text += "; not compared with transformers, which needs --weights and the package"
    return judged(good, text, tokens=used, length=experiment.prompt.length, **prepare.hashes)


def check_latents(bench: Bench) -> Finding:
    """V-JEPA latents as a policy computes them here, against exact ones, of which training's may be made."""
    config: Any = bench.encoder()
    kind, clips = ENCODERS.resolve(config.kind), square(bench, 4)
    settings: dict[Precision, Any] = {"float32": config}
    if config.kind == "vjepa2":
        settings = {name: dataclasses.replace(config, precision=name) for name in get_args(Precision)}
    encoder = kind(settings["float32"])
    with _exactly():
        exact = np.asarray(jax.jit(encoder.apply)(*jax.device_put((encoder.params, clips), _reference_device())))
    errors: dict[Precision, float] = {}
    for name, chosen in settings.items():
        encoder = kind(chosen)  # one of them in memory
        errors[name] = _worst(np.asarray(encoder.encode(clips)), exact, name)
    good = all(error <= LATENT_BOUNDS[name] for name, error in errors.items())
    listed = ", ".join(f"{name} {error:.1e} (bound {LATENT_BOUNDS[name]:g})" for name, error in errors.items())
    text = f"error over RMS on this device, by precision: {listed}"
    return judged(good, text, **{f"{name}_error": error for name, error in errors.items()})


def check_bfloat16(bench: Bench) -> Finding:
    """The whole VLM on one prompt: bfloat16, and float32 at the device's own precision, against exact float32."""
    exact = _hidden(bench, "float32", exactly=True)
    errors = {
        "bfloat16": relative(_hidden(bench, "bfloat16"), exact),
        "default float32": relative(_hidden(bench, "float32"), exact),
    }
    text = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    figures = {name.replace(" ", "_"): error for name, error in errors.items()}
    good = max(errors.values()) <= HALF_BOUND
    return judged(good, f"relative error of hidden states: {text}; bound {HALF_BOUND:g}", bound=HALF_BOUND, **figures)


def check_attention(bench: Bench) -> Finding:
    """Every implementation that runs here, value and gradients, causal and masked, against JAX's own in float32."""
    shape = ATTENTION_SHAPE
    rng = np.random.default_rng(0)
    sizes = {"query": shape["heads"], "key": shape["kv_heads"], "value": shape["kv_heads"]}
    given = [rng.normal(size=(shape["batch"], shape["length"], n, shape["dim"])) for n in sizes.values()]
    mask = np.arange(shape["length"]) >= np.array([[0], [37]])  # padding on the left, as prompts have it
    with _exactly():
        exact = _with_gradients(_plain_attention, given, mask, "float32")
    cases = {"xla": ("float32", "bfloat16")} | ({"cudnn": ("bfloat16",)} if jax.default_backend() == "gpu" else {})
    errors, good = {}, True
    for name, dtype in ((name, dtype) for name, dtypes in cases.items() for dtype in dtypes):

        def call(q: Array, k: Array, v: Array, mask: Array, name: str = name) -> Array:
            return attention(q, k, v, mask=mask, causal=True, implementation=name)

        with _exactly() if dtype == "float32" else contextlib.nullcontext():
            found = _with_gradients(call, given, mask, dtype)
        errors[f"{name} {dtype}"] = max(relative(a, b) for a, b in zip(found, exact, strict=True))
        good = good and errors[f"{name} {dtype}"] <= ATTENTION_BOUNDS[dtype]
    absent = [name for name in get_args(Implementation) if name not in cases]
    text = "relative error, gradients included: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    text += f"; not here: {', '.join(absent)}" if absent else ""
    return judged(good, text, **{name.replace(" ", "_"): error for name, error in errors.items()})


def check_torch(bench: Bench) -> Finding:
    """Hidden states of one prompt against the published implementation, in a separate process, on the CPU."""
    for package in ("torch", "transformers", "encoders_export"):
        if importlib.util.find_spec(package) is None:
            raise MissingPieceError(f"{package} is not installed; run ./setup.sh export")
    backbone: Any = bench.experiment.model.backbone
    config = dataclasses.replace(backbone, lora=LoRAConfig(), remat="none", dtype="float32")
    folder = bench.given
    if folder is None:
        folder = bench.scratch / "backbone"
        half = dataclasses.replace(config, dtype="bfloat16", param_dtype="bfloat16")
        weights.save(filled_model(lambda: Qwen2_5_VL(half, rngs=nnx.Rngs(0))), folder)
    prompt, own = _prompt_builder(bench)(INSTRUCTION), 1 + bench.experiment.model.chunk
    tokens, mask, positions = prompt.tokens[:, :-own], prompt.mask[:, :-own], prompt.positions[:, :, :-own]
    pixels = random_batch(bench.experiment, 1)["images"][:, : bench.experiment.model.cameras]
    full, half_ = _published(bench.scratch, folder, reference_arrays(config, tokens, mask, positions, pixels))
    model = weights.load_model(folder, dataclasses.replace(config, param_dtype="float32"))
    graph, state = nnx.split(model)

    def hidden(state: Any) -> Array:
        own = nnx.merge(graph, state)
        return own.forward(own.embed(tokens, jnp.asarray(pixels)), positions, mask)

    with _exactly():
        ours = np.asarray(jax.jit(hidden)(state))
    error, half_error = relative(ours[mask], full[mask]), relative(half_[mask], full[mask])
    text = f"relative error of hidden states in float32 {error:.1e}, bound {FULL_BOUND:g}"
    text += f"; PyTorch's own in bfloat16 {half_error:.1e}; weights: {bench.given or 'noise'}"
    return judged(error <= FULL_BOUND, text, error=error, bound=FULL_BOUND, torch_bfloat16=half_error)


def _prompt_builder(bench: Bench) -> PromptBuilder:
    experiment = bench.experiment
    made = make_prepare(experiment.prompt, experiment.model, experiment.data.observation)
    if not isinstance(made, PromptBuilder):
        raise MissingPieceError(
            f"model.backbone.kind is {experiment.model.backbone.kind!r}; the check knows prompts of Qwen2.5-VL"
        )
    return made


def _transformers_agrees(folder: Path, prepare: PromptBuilder) -> bool:
    """Whether ``transformers`` renders the same message as the same text, and cuts it into the same tokens."""
    code = (
        "import json, sys; from transformers import AutoTokenizer; given = json.load(sys.stdin); "
        "own = AutoTokenizer.from_pretrained(sys.argv[1]); ids = own.encode(given['text']); "
        "text = own.apply_chat_template(given['messages'], tokenize=False, add_generation_prompt=True); "
        "print(json.dumps([text, ids]))"
    )
    parts = [{"type": "image"}] * len(prepare.image_grids) + [{"type": "text", "text": INSTRUCTION}]
    given = {"messages": [{"role": "user", "content": parts}], "text": prepare.render(INSTRUCTION)}
    line = [sys.executable, "-c", code, str(folder)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(line, input=json.dumps(given), capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"transformers ended with {done.returncode}: {done.stderr[-300:]}")
    text, ids = json.loads(done.stdout.splitlines()[-1])
    return bool(text == prepare.chat(INSTRUCTION, len(prepare.image_grids)) and ids == prepare.encode(INSTRUCTION))


def _published(scratch: Path, folder: Path, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch's hidden states in float32 and in bfloat16; wmjax does not import torch.

    Raises:
        RuntimeError: the process failed.

    """
    given, out = scratch / "prompt.npz", scratch / "hidden.npz"
    write_npz(given, arrays)
    line = [sys.executable, "-m", "encoders_export.qwen", str(folder), str(given), str(out)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=PYTORCH_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"PyTorch ended with {done.returncode}: {done.stderr[-300:]}")
    found = read_npz(out)
    return found["full"], found["half"]


def _hidden(bench: Bench, dtype: str, *, exactly: bool = False) -> np.ndarray:
    """Hidden states of the VLM on one prompt and images of noise, with parameters of noise."""
    experiment = bench.experiment
    changed: Any = {"dtype": dtype, "remat": "none", "scan_unroll": 1}
    backbone = dataclasses.replace(experiment.model.backbone, **changed)
    config = dataclasses.replace(experiment.model, backbone=backbone)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: VLA(config, rngs=nnx.Rngs(0))))
    prompt = jax.tree.map(lambda field: field[:1], bench.prompts())
    inputs = random_inputs(experiment, 1)._replace(prompt=prompt)
    run = jax.jit(lambda state, inputs: nnx.merge(graph, state).hidden(inputs).tokens)
    with _exactly() if exactly else contextlib.nullcontext():
        return np.asarray(run(filled(shapes), inputs), np.float32)[np.asarray(prompt.mask)]


def _exactly() -> Any:
    """Products of float32 in float32."""
    return jax.default_matmul_precision("highest")


def _reference_device() -> Any:
    """The CPU if jax has it beside the accelerator, else the accelerator itself."""
    with contextlib.suppress(RuntimeError):
        return jax.devices("cpu")[0]
    return jax.devices()[0]


def _worst(found: np.ndarray, exact: np.ndarray, precision: Precision) -> float:
    """The difference of the worst clip, as :data:`LATENT_BOUNDS` bound it."""
    return max(difference(one - other, other, precision) for one, other in zip(found, exact, strict=True))


def _plain_attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :], is_causal=True, implementation="xla")


def _with_gradients(
    call: Callable[..., Array], given: list[np.ndarray], mask: np.ndarray, dtype: str
) -> list[Float[np.ndarray, "..."]]:
    """The output where a query has keys, and the gradients of its sum with weights of noise."""
    weight = np.random.default_rng(1).normal(size=given[0].shape) * mask[:, :, None, None]
    arrays = [jnp.asarray(x, dtype) for x in given]

    def loss(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        out = call(q, k, v, jnp.asarray(mask)).astype(jnp.float32)
        return jnp.sum(out * weight), out * mask[:, :, None, None]

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    return [np.asarray(x, np.float32) for x in (out, *gradients)]
