"""Qwen2.5-VL against Hugging Face + PEFT: forward, and LoRA forward + backward, at the widths of 3B.

    python benchmarks/qwen_lora.py [--size 3b|tiny] [--batch 2] [--repeats 7] [--out results.json]

Both get the same weights, adapters and prompts (two cameras of 224 x 224, 200 tokens), in float32, in few layers,
and must give the same hidden states and gradients. All calls and two plain matrix products are timed in turns;
medians. The fraction of the roofline is the analytic FLOPs per second over those of the faster plain product. The
reference uses its fused attention and gets patches and positions ready made; neither side recomputes activations.
"""

import argparse
import dataclasses
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
import transformers
from flax import nnx
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from wmjax.models.backbones.qwen2_5_vl import adapters, flops, names, weights
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig, TextConfig, VisionConfig
from wmjax.models.backbones.qwen2_5_vl.rope import positions_of
from wmjax.models.nn.lora import LoRAConfig

DEPTHS = (4, 36)
"""Decoder layers between which the compile time is compared."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is timed: a model, and per prompt the cameras' size and the tokens."""

    config: Qwen2_5_VLConfig
    side: int
    tokens: int
    cameras: int = 2

    @property
    def grids(self) -> list[tuple[int, int]]:
        """Merged tokens of a prompt's images."""
        return [(self.side // self.config.vision.factor,) * 2] * self.cameras


def setup(size: str) -> Setup:
    """``3b``: its true widths in 4 + 4 layers and a small vocabulary; ``tiny``: for tests."""
    if size == "3b":
        vision = VisionConfig(depth=4, full_attention=(3,))
        text = TextConfig(vocabulary=1024, depth=4)
        return Setup(_config(vision, text, LoRAConfig(rank=16, alpha=32.0)), side=224, tokens=200)
    vision = VisionConfig(depth=2, hidden=256, heads=4, mlp=512, out=256, full_attention=(1,))
    text = TextConfig(vocabulary=256, hidden=256, depth=2, heads=4, kv_heads=2, mlp=768, rope_sections=(8, 12, 12))
    return Setup(_config(vision, text, LoRAConfig(rank=4)), side=112, tokens=48)


def _config(vision: VisionConfig, text: TextConfig, lora: LoRAConfig) -> Qwen2_5_VLConfig:
    last = text.vocabulary - 1
    return Qwen2_5_VLConfig(
        vision, text, image_token=last - 2, vision_start_token=last - 1, vision_end_token=last, lora=lora
    )


class Inputs:
    """A batch of random prompts: text, then every image between its two marks, then text."""

    def __init__(self, setup: Setup, batch: int) -> None:
        rng, config = np.random.default_rng(0), setup.config
        shape = (batch, setup.cameras, setup.side, setup.side, 3)
        self.images = rng.integers(0, 256, shape, np.uint8)
        self.tokens = rng.integers(0, config.image_token, (batch, setup.tokens)).astype(np.int32)
        start = 4
        for rows, columns in setup.grids:
            end = start + 1 + rows * columns
            self.tokens[:, start], self.tokens[:, end] = config.vision_start_token, config.vision_end_token
            self.tokens[:, start + 1 : end] = config.image_token
            start = end + 1
        self.mask = np.ones_like(self.tokens, bool)
        self.positions = positions_of(self.tokens, self.mask, setup.grids * batch, config.image_token)
        self.probe = rng.normal(size=(batch, setup.tokens, config.text.hidden)).astype(np.float32)

    def for_reference(self) -> dict[str, torch.Tensor]:
        """What the reference's forward takes."""
        processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1280})
        images = list(self.images.reshape(-1, *self.images.shape[2:]))
        processed = processor(images=images, return_tensors="pt")
        return {
            "input_ids": torch.from_numpy(self.tokens).long(),
            "attention_mask": torch.from_numpy(self.mask).long(),
            "position_ids": torch.from_numpy(self.positions.transpose(1, 0, 2).copy()).long(),
            "pixel_values": processed["pixel_values"],
            "image_grid_thw": processed["image_grid_thw"],
        }


def make_pair(setup: Setup, folder: Path) -> tuple[peft.PeftModel, weights.Qwen2_5_VL]:
    """The reference and our model with the same random weights and adapters."""
    torch.manual_seed(0)
    values = weights.to_hf_config(setup.config)
    # The ids of a video and of the text's ends are not used, but must lie within the small vocabulary.
    values |= {"video_token_id": setup.config.image_token - 1, "bos_token_id": 0, "eos_token_id": 0}
    reference_config = transformers.Qwen2_5_VLConfig(**values)
    reference_config._attn_implementation = "sdpa"
    reference = transformers.Qwen2_5_VLForConditionalGeneration(reference_config).float().eval()
    reference.save_pretrained(folder / "base")
    model = weights.load_model(folder / "base", setup.config)
    rng = np.random.default_rng(1)
    for path, leaf in names.adapter_leaves(model).items():
        if path[-1] == "lora_b":  # it starts at zero, which would hide A
            leaf.set_value(jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32))
    adapters.save(model, folder / "adapters")
    return peft.PeftModel.from_pretrained(reference, folder / "adapters", is_trainable=True).eval(), model


def our_functions(model: weights.Qwen2_5_VL) -> tuple[Any, Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """``(adapters, base)``, and functions of them and the inputs: images alone, forward, LoRA step."""
    graph, lora, base = nnx.split(model, nnx.LoRAParam, ...)

    def vision(lora: Any, base: Any, images: Any) -> Any:
        return nnx.merge(graph, lora, base).vision(images.reshape(-1, *images.shape[2:]))

    def forward(lora: Any, base: Any, images: Any, tokens: Any, positions: Any, mask: Any) -> Any:
        own = nnx.merge(graph, lora, base)
        return own.forward(own.embed(tokens, images), positions, mask)

    def loss(lora: Any, base: Any, probe: Any, *inputs: Any) -> Any:
        return jnp.mean(forward(lora, base, *inputs) * probe)

    return (lora, base), vision, forward, jax.value_and_grad(loss)


def our_calls(model: weights.Qwen2_5_VL, inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """Compiled calls, each waits for its result."""
    state, *functions = our_functions(model)
    images, *rest = jax.device_put((inputs.images, inputs.tokens, inputs.positions, inputs.mask))
    arguments = [(images,), (images, *rest), (jnp.asarray(inputs.probe), images, *rest)]
    calls: dict[str, Callable[[], Any]] = {}
    for name, function, given in zip(("vision", "forward", "step"), functions, arguments, strict=True):
        compiled = jax.jit(function).lower(*state, *given).compile()
        calls[name] = functools.partial(_wait, compiled, *state, *given)
    return calls


def _wait(call: Callable[..., Any], *arguments: Any) -> Any:
    return jax.block_until_ready(call(*arguments))


def reference_calls(reference: peft.PeftModel, inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """The same calls of the reference; the step returns its gradients by published name."""
    inner, given, probe = reference.base_model.model.model, inputs.for_reference(), torch.from_numpy(inputs.probe)
    trained = {n: p for n, p in reference.named_parameters() if p.requires_grad}

    def vision() -> Any:
        with torch.no_grad():
            return inner.visual(given["pixel_values"], grid_thw=given["image_grid_thw"])

    def hidden() -> torch.Tensor:
        return inner(**given, use_cache=False).last_hidden_state

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return hidden()

    def step() -> dict[str, torch.Tensor]:
        for parameter in trained.values():
            parameter.grad = None
        (hidden() * probe).mean().backward()
        return {n.removeprefix(names.PEFT_PREFIX).replace(".default", ""): p.grad for n, p in trained.items()}

    return {"vision": vision, "forward": forward, "step": step}


def gemm_calls(setup: Setup, batch: int) -> tuple[dict[str, Callable[[], Any]], int]:
    """A plain product of the decoder's largest shape in either library, and its FLOPs."""
    text, rows = setup.config.text, batch * setup.tokens
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=s).astype(np.float32) for s in ((rows, text.hidden), (text.hidden, text.mlp)))
    product = jax.jit(jnp.matmul).lower(x, w).compile()
    ours = functools.partial(_wait, product, jnp.asarray(x), jnp.asarray(w))
    theirs = functools.partial(torch.matmul, torch.from_numpy(x), torch.from_numpy(w))
    return {"gemm jax": ours, "gemm torch": theirs}, 2 * rows * text.hidden * text.mlp


def medians(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, all taken in turns after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if repeat:
                times[name].append(time.perf_counter() - started)
    return {name: float(np.median(values)) for name, values in times.items()}


def differences(ours: dict[str, Any], theirs: dict[str, Any], config: Qwen2_5_VLConfig) -> dict[str, float]:
    """The largest |a - b| / rms(b) of the hidden states and of the worst gradient."""
    found = dict(nnx.to_flat_state(ours["step"]()[1]))
    wanted = {names.published_name(name): g.numpy() for name, g in theirs["step"]().items()}
    entries = names.adapter_entries(config)
    gradients = [_error(names.to_checkpoint(found[e.path].get_value(), e), wanted[e.name]) for e in entries]
    return {"hidden": _error(ours["forward"](), theirs["forward"]()), "gradient": max(gradients)}


def _error(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).max() / np.sqrt((b**2).mean()))


def shapes(setup: Setup, batch: int) -> list[Any]:
    """Shapes of the inputs of a LoRA step."""
    like = jax.ShapeDtypeStruct
    tokens = setup.tokens
    images = (batch, setup.cameras, setup.side, setup.side, 3)
    return [
        like((batch, tokens, setup.config.text.hidden), jnp.float32),
        like(images, jnp.uint8),
        like((batch, tokens), jnp.int32),
        like((batch, 3, tokens), jnp.int32),
        like((batch, tokens), jnp.bool_),
    ]


def lower_step(setup: Setup, batch: int, **text: Any) -> Any:
    """The LoRA step lowered from shapes alone; ``text`` replaces fields of the decoder's config."""
    config = dataclasses.replace(setup.config, text=dataclasses.replace(setup.config.text, **text))
    state, _, _, step = our_functions(names.abstract_model(config))
    return jax.jit(step).lower(*state, *shapes(setup, batch))


def analytic_over_hlo(setup: Setup, batch: int) -> dict[str, float]:
    """The formulas' FLOPs over those of the lowered program, unrolled: XLA counts a loop's body once."""
    config = dataclasses.replace(setup.config, scan_unroll=max(setup.config.text.depth, setup.config.vision.depth))
    state, _, forward, step = our_functions(names.abstract_model(config))
    probe, *inputs = shapes(setup, batch)
    lowered = {
        "forward": jax.jit(forward).lower(*state, *inputs),
        "step": jax.jit(step).lower(*state, probe, *inputs),
    }
    return {name: batch * analytic(setup)[name] / found.cost_analysis()["flops"] for name, found in lowered.items()}


def analytic(setup: Setup) -> dict[str, int]:
    """FLOPs of one prompt."""
    config = setup.config
    return {
        "vision": sum(flops.vision_flops(config, grid) for grid in setup.grids),
        "forward": flops.forward_flops(config, setup.grids, setup.tokens),
        "step": flops.lora_step_flops(config, setup.grids, setup.tokens),
    }


def compile_seconds(setup: Setup, batch: int, repeats: int) -> dict[int, float]:
    """Median seconds from Python to a program for the LoRA step at each depth, with no cache."""
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    times: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(repeats):
        for depth in DEPTHS:
            jax.clear_caches()
            started = time.perf_counter()
            lower_step(setup, batch, depth=depth).compile()
            times[depth].append(time.perf_counter() - started)
    jax.config.update("jax_enable_compilation_cache", cached)
    return {depth: float(np.median(values)) for depth, values in times.items()}


def run(size: str, batch: int, repeats: int) -> dict[str, Any]:
    """The whole benchmark."""
    chosen = setup(size)
    inputs = Inputs(chosen, batch)
    with tempfile.TemporaryDirectory() as folder:
        reference, model = make_pair(chosen, Path(folder))
    ours, theirs = our_calls(model, inputs), reference_calls(reference, inputs)
    equal = differences(ours, theirs, chosen.config)
    gemms, gemm_flops = gemm_calls(chosen, batch)
    calls = {f"{name} wmjax": call for name, call in ours.items()}
    calls |= {f"{name} reference": call for name, call in theirs.items()}
    seconds = medians(calls | gemms, repeats)
    roofline = gemm_flops / min(seconds[name] for name in gemms)
    compiled = compile_seconds(chosen, batch, min(repeats, 3))
    work = {name: batch * count for name, count in analytic(chosen).items()}
    return {
        "size": size,
        "batch": batch,
        "cores": os.cpu_count(),
        "versions": {m.__name__: m.__version__ for m in (jax, torch, transformers, peft)},
        "difference": equal,
        "seconds": seconds,
        "speed over reference": {n: seconds[f"{n} reference"] / seconds[f"{n} wmjax"] for n in ours},
        "roofline GFLOP/s": roofline / 1e9,
        "fraction of roofline": {
            f"{n} {who}": work[n] / seconds[f"{n} {who}"] / roofline for n in ours for who in ("wmjax", "reference")
        },
        "analytic over HLO": analytic_over_hlo(chosen, batch),
        "compile seconds": compiled,
        "compile ratio": compiled[DEPTHS[1]] / compiled[DEPTHS[0]],
    }


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("3b", "tiny"), default="3b")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(os.cpu_count() or 1)
    results = run(options.size, options.batch, options.repeats)
    text = json.dumps(results, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
