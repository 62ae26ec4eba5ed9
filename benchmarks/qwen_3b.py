"""Loads a random Qwen2.5-VL-3B in bfloat16 and runs one forward pass on a CPU, and says what memory that took.

    python benchmarks/qwen_3b.py [--size 3b|tiny] [--folder FOLDER] [--plan] [--out results.json]

Writes a checkpoint of the published layout (7.5 GB, kept and used again if a folder is given), loads it by tensors,
and computes the logits of the last token of a prompt with two cameras. ``--plan`` only compiles, and prints what the
program will need. Fails if loading takes more than 12 GiB or the whole more than 24 GiB.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from wmjax.models.backbones.qwen2_5_vl import names, weights
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig, TextConfig, VisionConfig, preset
from wmjax.models.backbones.qwen2_5_vl.rope import positions_of
from wmjax.models.parameters import count

PARAMETERS_3B = 3_754_622_976
GIB = 2**30
LIMITS = {"load": 12 * GIB, "forward": 24 * GIB}
SHARD_BYTES = GIB
COMPILER_OPTIONS = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
"""On a CPU, XLA computes bfloat16 products in float32, and moves the conversion of all layers out of the loop."""
TOKENS, SIDE = 200, 224

T = TypeVar("T")


def config_of(size: str) -> Qwen2_5_VLConfig:
    """``3b`` as published, or ``tiny`` for tests."""
    if size == "3b":
        return preset("3b", dtype="bfloat16", param_dtype="bfloat16")
    vision = VisionConfig(depth=2, hidden=64, heads=4, mlp=96, out=128, full_attention=(1,))
    text = TextConfig(vocabulary=256, hidden=128, depth=8, heads=4, kv_heads=2, mlp=512, rope_sections=(4, 6, 6))
    return Qwen2_5_VLConfig(
        vision, text, image_token=250, vision_start_token=251, vision_end_token=252, dtype="bfloat16",
        param_dtype="bfloat16",
    )  # fmt: skip


def write_random(config: Qwen2_5_VLConfig, folder: Path) -> None:
    """A checkpoint of the published layout with random weights, one shard in memory at a time; the index comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    weight_map: dict[str, str] = {}
    shard: dict[str, np.ndarray] = {}

    def flush() -> None:
        name = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()

    for entry in names.entries(config):
        values = rng.standard_normal(entry.shape, np.float32) * np.float32(entry.shape[-1] ** -0.5)
        values = values if len(entry.shape) > 1 else np.ones(entry.shape, np.float32)
        shard[entry.name] = values.astype(ml_dtypes.bfloat16)
        if sum(array.nbytes for array in shard.values()) > SHARD_BYTES:
            flush()
    flush()
    (folder / "config.json").write_text(json.dumps(weights.to_hf_config(config)), encoding="utf-8")
    (folder / weights.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def make_inputs(
    config: Qwen2_5_VLConfig, batch: int = 1, pixels: int = SIDE, length: int = TOKENS
) -> dict[str, np.ndarray]:
    """Prompts that differ in their images only: two of these between their marks, then text."""
    side = pixels // config.vision.factor
    image = [config.vision_start_token, *[config.image_token] * side**2, config.vision_end_token]
    rng = np.random.default_rng(0)
    text = rng.integers(0, min(config.image_token, config.text.vocabulary), length - 2 * len(image))
    tokens = np.array([[*image, *image, *text]] * batch, np.int32)
    mask = np.ones_like(tokens, bool)
    positions = positions_of(tokens, mask, [(side, side)] * (2 * batch), config.image_token)
    images = rng.integers(0, 256, (batch, 2, pixels, pixels, 3), np.uint8)
    return {"tokens": tokens, "images": images, "positions": positions, "mask": mask}


def compile_forward(model: weights.Qwen2_5_VL, inputs: dict[str, Any]) -> tuple[Any, nnx.State]:
    """The program for the last token's logits, from shapes or arrays alike, and the model's parameters."""
    graph, state = nnx.split(model)

    def forward(state: nnx.State, tokens: Any, images: Any, positions: Any, mask: Any) -> Any:
        own = nnx.merge(graph, state)
        hidden = own.forward(own.embed(tokens, images), positions, mask)
        return own.logits(hidden[:, -1])

    lowered = jax.jit(forward).lower(state, *inputs.values())
    return lowered.compile(compiler_options=COMPILER_OPTIONS if jax.default_backend() == "cpu" else None), state


def peak_during(work: Callable[[], T]) -> tuple[T, int]:
    """The result of some work, and the largest private memory of this process while it ran.

    Pages of mapped files are not counted: the system takes them back when memory is short.
    """
    done, peak = threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], _private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return work(), max(peak[0], _private_bytes())
    finally:
        done.set()
        watcher.join()


def _private_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return 1024 * int(fields["RssAnon"].split()[0])


def plan(config: Qwen2_5_VLConfig) -> dict[str, Any]:
    """What the compiled program needs, without any weights."""
    model = names.abstract_model(config)
    program, state = compile_forward(model, make_inputs(config))
    memory = program.memory_analysis()
    return {
        "parameters": count(state),
        "parameters GiB": memory.argument_size_in_bytes / GIB,
        "temporaries GiB": memory.temp_size_in_bytes / GIB,
    }


def run(config: Qwen2_5_VLConfig, folder: Path) -> dict[str, Any]:
    """Loads and runs; memory in GiB, times in seconds."""
    started = time.perf_counter()
    model, loading = peak_during(lambda: weights.load_model(folder, config))
    loaded = time.perf_counter()

    def forward() -> Any:
        program, state = compile_forward(model, inputs)
        return jax.block_until_ready(program(state, *inputs.values()))

    inputs = make_inputs(config)
    logits, running = peak_during(forward)
    finished = time.perf_counter()
    return {
        "parameters": count(nnx.state(model)),
        "load GiB": loading / GIB,
        "forward GiB": running / GIB,
        "load seconds": loaded - started,
        "forward seconds, compilation included": finished - loaded,
        "finite": bool(jnp.isfinite(logits).all()),
        "logits std": float(logits.std()),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if a limit was exceeded or the result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("3b", "tiny"), default="3b")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    config = config_of(options.size)
    if options.plan:
        results = plan(config)
        wrong = results["parameters GiB"] + results["temporaries GiB"] > LIMITS["forward"] / GIB
    else:
        with tempfile.TemporaryDirectory() as scratch:
            folder = options.folder or Path(scratch)
            if not (folder / weights.INDEX).is_file():
                write_random(config, folder)
            results = run(config, folder)
        over = any(results[f"{name} GiB"] > limit / GIB for name, limit in LIMITS.items())
        wrong = over or not results["finite"]
    wrong = wrong or (options.size == "3b" and results["parameters"] != PARAMETERS_3B)
    text = json.dumps(results | {"within limits": not wrong}, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
