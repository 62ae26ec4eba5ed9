"""The benchmarks of Qwen2.5-VL at a size that runs in seconds. Times are measured, never judged."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from benchmarks import qwen_3b, qwen_lora

pytestmark = pytest.mark.torch


@pytest.mark.long  # parity/test_qwen2_5_vl.py compares the two sides
def test_both_sides_compute_the_same_and_the_formulas_count_it(tmp_path):
    qwen_lora.main(["--size", "tiny", "--repeats", "1", "--out", str(tmp_path / "results.json")])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["difference"]["hidden"] < 1e-4 and results["difference"]["gradient"] < 1e-4
    assert results["analytic over HLO"].keys() == {"forward", "step"}
    assert all(0.95 < ratio < 1.05 for ratio in results["analytic over HLO"].values())
    calls = {f"{name} {who}" for name in ("vision", "forward", "step") for who in ("wmjax", "reference")}
    assert (
        results["seconds"].keys() == calls | {"gemm jax", "gemm torch"}
        and results["fraction of roofline"].keys() == calls
    )


def test_the_program_does_not_grow_with_the_depth():
    """What the compile time depends on, without a clock: operations in the lowered LoRA step at 4 and 36 layers."""
    tiny = qwen_lora.setup("tiny")
    lengths = [len(qwen_lora.lower_step(tiny, 1, depth=depth).as_text().splitlines()) for depth in qwen_lora.DEPTHS]
    assert lengths[0] == lengths[1] > 500


def test_a_random_checkpoint_is_written_loaded_and_run(tmp_path):
    arguments = ["--size", "tiny", "--folder", str(tmp_path), "--out", str(tmp_path / "results.json")]
    assert qwen_3b.main(arguments) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["finite"] and 0.1 < results["logits std"] < 10


def test_3b_in_bfloat16_fits_on_a_cpu(tmp_path):
    """Compiled from shapes alone: all weights once, no float32 copy of the layers (which would be 12 GiB)."""
    assert qwen_3b.main(["--plan", "--out", str(tmp_path / "plan.json")]) == 0
    planned = json.loads((tmp_path / "plan.json").read_text())
    assert planned["parameters"] == 3_754_622_976
    assert planned["parameters GiB"] == pytest.approx(2 * 3_754_622_976 / 2**30, rel=1e-3)
    assert planned["temporaries GiB"] < 2
