"""The command: on simulated CPU devices, and in one line where it cannot."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from wmjax import estimate
from wmjax.encoders.vjepa2.encoder import VJEPA2, VJEPA2Settings
from wmjax.experiment.config import load
from wmjax.experiment.dimensions import of_store
from wmjax.models.backbones.qwen2_5_vl import names
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig
from wmjax.scaling import compilers
from wmjax.scaling.chips import CHIPS, parse_topology
from wmjax.scaling.devices import environment, target_config
from wmjax.scaling.flops import flops
from wmjax.scaling.program import programs
from wmjax.scaling.request import Request
from wmjax.trainer.loop import GUARD, checkpoint_items
from wmjax.trainer.sharding import make_mesh

TINY = [
    *("--config", "e2_mse", "--scale", "mini_lora", "--train.backbone_weights", "random"),
    *("--model.backbone.text.depth", "2", "--model.backbone.text.mlp", "96", "--model.backbone.scan_unroll", "1"),
    *("--model.backbone.vision.depth", "2", "--model.backbone.vision.full_attention", "[1]"),
    *("--model.backbone.remat", "full"),
]
"""``mini_lora`` with fewer layers, which compiles in seconds."""
SIZES = ("frames", "checkpoint_gb", "checkpoint_s", "disk_gb_per_s", "policy_mb", "latents_gb", "features_gb")


@pytest.mark.slow
def test_a_step_is_compiled_for_simulated_devices(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, "--topology", "cpu:4", "--batch", "8", "--mesh.fsdp", "2", "--frames", "1000"]
    assert estimate.main([*arguments, "--disk", "0.5", "--decision", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1} and found["devices"] == 4
    assert found["fits"] is None and found["time"] is None and found["memory"]["available_gb"] is None
    assert 0 < found["trainable"] < found["parameters"]
    # What the dry run counts from the layout is what the compiler counts; the frozen base is whole on every device.
    assert found["arguments_gb"] == pytest.approx(found["memory"]["arguments_gb"], rel=1e-3)
    # Gradients of every trained parameter are summed over the devices, in float32.
    assert found["collectives"]["all-reduce"]["mb"] >= 4 * found["trainable"] / 2 / 1e6
    # What is computed again is a forward pass of the backbone's layers.
    work = found["flops"]
    assert 1.05 < work["executed_tflop_per_sample"] / work["model_tflop_per_sample"] < 1.5
    # Parameters, their average and two moments, float32.
    assert found["storage"]["checkpoint_gb"] == pytest.approx(4 * 4 * found["trainable"] / 1e9, rel=1e-3)
    assert found["storage"]["latents_gb"] == 1000 * 2 * 16 * 192 * 2 / 1e9
    assert found["storage"]["checkpoint_s"] == pytest.approx(found["storage"]["checkpoint_gb"] / 0.5)
    # The initialisation has no arguments, and draws all that the step takes but the batch.
    begin = found["initialisation"]
    assert begin["fits"] is None and begin["memory"]["arguments_gb"] == 0
    assert begin["memory"]["needed_gb"] > 0.9 * found["arguments_gb"]
    # One clip of each frame, in each of two views.
    assert found["encoding"]["clips"] == 2000 and "hours" not in found["encoding"]
    # A decision is a forward pass; a training sample is at least two, and one of the frozen base is computed again.
    decision = found["decision"]
    assert decision["rows"] == 2 and decision["fits"] is None and decision["roofline_s"] is None
    assert 0.2 < decision["tflop"] / 2 / work["executed_tflop_per_sample"] < 0.5
    assert decision["memory"]["arguments_gb"] > 0.8 * 4 * (found["parameters"] - found["trainable"]) / 1e9


def test_an_encoder_is_counted_without_its_weights() -> None:
    encode = VJEPA2.without_weights(VJEPA2Settings(model="facebook/vjepa2-vitl-fpc64-256"))
    assert encode is not None and VJEPA2.without_weights(VJEPA2Settings(model="nobody/nothing")) is None
    # 303.9 million parameters and 512 tokens of a clip, of which every layer compares each with each.
    expected = 2 * 303.9e6 * 512 + 24 * 4 * 512**2 * 1024
    assert flops(encode, jax.ShapeDtypeStruct((1, 4, 256, 256, 3), jnp.uint8)) == pytest.approx(expected, rel=0.02)


def test_images_and_stored_features_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path))

    def compiled(request: Request, *_: Any) -> dict[str, Any]:
        train = request.settings["train"]
        faster = 1.25 if (train.get("cached_vision"), train.get("same_shift")) == ("bfloat16", True) else 1.0
        time = {"kernels_s": 0.25, "kernels": 10, "by_cycles_s": 0.0, "collectives_s": 0.0, "roofline_s": 0.25}
        return {
            **dict.fromkeys(("recipe", "scale", "topology", "devices", "jax", "batch", "remat", "fits", "mfu")),
            "mesh": {"data": 8},
            "accumulate": 1,
            "parameters": 2,
            "trainable": 1,
            "flops": {"executed_tflop_per_sample": 3.75 / faster, "model_tflop_per_sample": 3.0},
            "memory": {"needed_gb": 12.0, "arguments_gb": 9.0, "temporaries_gb": 3.0, "available_gb": 80.0},
            "collectives": {},
            "time": time | {"samples_per_s": 400.0 * faster, "efficiency": 0.75, "mfu": 0.3, "hours_per_epoch": 1.0},
            "storage": dict.fromkeys(SIZES, 105),
            "encoding": None,
        }

    monkeypatch.setattr(compilers, "compile_in_own_process", compiled)
    monkeypatch.setattr(compilers, "interpreter", lambda topology: ("python", Path()))
    assert estimate.main([*TINY, "--topology", "h100:8", "--batch", "256", "--features"]) == 0
    line = "on features    500.0 samples/s, 1.25 times; 3 TFLOP per sample, 0.80 times; 12.00 GB per device; 105.00 GB"
    assert line in capsys.readouterr().out
    assert estimate.main([*TINY, "--topology", "h100:8", "--features", "--recommend"]) == 2
    assert "give --train.cached_vision bfloat16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", "v6:8"], "unknown chip of --topology 'v6'"),
        (["--topology", "cpu:4", "--batch", "0"], "train.batch_size is 0; it must be at least 1"),
        (["--topology", "cpu:4", "--efficiency", "200"], "--efficiency is '200'"),
        (
            ["--topology", "cpu:4", "--batch", "6"],
            "train.batch_size is 6, the mesh splits it in 4",
        ),
        (["--topology", "cpu:4", "--mesh.fsdp", "3"], "there are 4 devices"),
        (["--topology", "cpu:2", "--config", "e9_mse"], "did you mean"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert estimate.main([*TINY, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and words in printed.err and not printed.out


@pytest.mark.parametrize("topology", ["v5e:4x4", "h100:8"])
def test_a_missing_compiler_is_one_line(
    topology: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compilers, "COMPILERS", tmp_path / ".venv-estimate")
    assert estimate.main(["--topology", topology]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "run ./setup.sh estimate" in line


def test_no_accelerator_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "nvidia" / "cuda_nvcc").mkdir(parents=True)
    given = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_cpu_foo=1", "PATH": "/bin"}
    gpu = environment(parse_topology("h100:8"), tmp_path, given)
    assert gpu["JAX_PLATFORMS"] == "cpu" and gpu["CUDA_VISIBLE_DEVICES"] == "-1"
    assert "device_count" not in gpu["XLA_FLAGS"] and "--xla_cpu_foo=1" in gpu["XLA_FLAGS"]
    assert gpu["PATH"].endswith("nvidia/cuda_nvcc/bin:/bin")
    assert environment(parse_topology("v5e:4x4"), tmp_path, given)["TPU_SKIP_MDS_QUERY"] == "1"


def test_what_a_training_at_3b_leaves_on_disk_is_small() -> None:
    """Adapters below 100 MB, as they are exported, and everything that a resumed run needs below 3 GB."""
    experiment = of_store(load("e2_flow", "3b", None, {"train": {"backbone_weights": "random"}}), None)
    arrays = programs(experiment, make_mesh(experiment.mesh, jax.devices()[:1])).shapes.named()
    items = {**checkpoint_items(arrays.state), GUARD: arrays.guard}
    assert 1e9 < sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(items)) < 3e9
    backbone = experiment.model.backbone
    assert isinstance(backbone, Qwen2_5_VLConfig) and backbone.lora.rank == 16
    stored = sum(math.prod(entry.shape) for entry in names.adapter_entries(backbone))
    trained = [leaf.size for name, leaf in items["ema"].items() if "/lora_" in name]
    assert stored == sum(trained)
    assert stored * jnp.dtype(backbone.dtype).itemsize < 100e6


@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if chip.platform == "gpu"])
def test_a_target_has_balanced_braces_and_its_numbers(name: str) -> None:
    text = target_config(name, CHIPS[name])
    assert text.count("{") == text.count("}") == 4
    assert f"device_memory_size: {int(CHIPS[name].memory)}" in text and f'"NVIDIA {name.upper()}"' in text
