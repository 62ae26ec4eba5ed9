"""The accelerator's benchmark: its order of events, a rehearsal of two stages, and what its prototypes compute.

Times are measured, never judged.
"""

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import accelerator
from benchmarks.accelerator_stages.arrays import qwen_config
from benchmarks.accelerator_stages.session import TINY, Session
from benchmarks.accelerator_stages.variants import patched
from wmjax.models.backbones.qwen2_5_vl.vision import VisionTower
from wmjax.models.nn.lora import Linear, LoRAConfig
from wmjax.models.nn.stack import LINEAR_OUTPUT, run_layers, stack_layers
from wmjax.scaling.arrays import filled


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.long  # scaling/test_firstlight.py runs the same code
@pytest.mark.torch
def test_two_stages_are_rehearsed(tmp_path, capsys):
    """V-JEPA in both frameworks: PyTorch's exporter and the Flax encoder agree, and lower precision differs."""
    pytest.importorskip("torch")
    out = tmp_path / "results.jsonl"
    assert accelerator.main(["--tiny", "--only", "export,probe", "--budget", "3600", "--out", str(out)]) == 0
    found = rows(out)
    assert found[0]["stages"] == ["probe", "export"] and all(row["tiny"] for row in found)
    assert [row["status"] for row in found if "status" in row] == [0, 0] and found[-1]["complete"]
    assert not any("error" in row for row in found)
    software, products = (row for row in found if row.get("what") in ("software", "products"))
    assert software["versions"]["jax"] == jax.__version__ and products["bfloat16_tflop_per_s"] > 0
    errors = {f"{row['framework']} {row['precision']}": row["worst_over_rms"] for row in found if "framework" in row}
    assert errors["torch float32"] == 0.0 < errors["flax float32"] < 1e-4
    assert errors["torch bfloat16"] > 1e-3 and errors["flax bfloat16"] > 1e-3
    assert "===== export: status 0" in out.with_suffix(".log").read_text()
    assert capsys.readouterr().out.count("\n") == len(found)  # every line is printed, once


def test_a_missing_package_costs_one_stage_and_a_short_budget_the_next(tmp_path, monkeypatch):
    (tmp_path / "jax.py").write_text("raise ImportError('jax is not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(accelerator.STAGES, "export", accelerator.Stage(75, 400))
    out = tmp_path / "results.jsonl"
    assert accelerator.main(["--tiny", "--only", "probe,export", "--budget", "300", "--out", str(out)]) == 1
    _, probe, export, end = rows(out)
    assert probe["status"] == 1 and "jax is not installed" in probe["tail"]
    assert "it needs 400" in export["skipped"] and not end["complete"]


def test_a_stage_is_stopped_at_its_limit(tmp_path):
    results = accelerator.Results(tmp_path / "results.jsonl", time.time(), True)
    outcome = accelerator.run_stage("probe", 0.3, results, tmp_path)  # Python alone takes as long to start
    assert outcome.status == 124 and outcome.seconds < 20


def test_a_signal_leaves_no_stage_on_the_device(tmp_path):
    """As that of ``timeout``: the results are complete lines, and the stage's process is gone."""
    mark, out = tmp_path / "stage", tmp_path / "results.jsonl"
    (tmp_path / "jax.py").write_text(
        f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    )
    command = [sys.executable, accelerator.__file__, "--tiny", "--only", "probe", "--out", str(out)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, stdout=subprocess.DEVNULL)
    while not (mark.exists() and mark.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    assert [row["stage"] for row in rows(out)] == ["start", "end"] and not rows(out)[-1]["complete"]


def test_unknown_stages_are_refused(capsys):
    with pytest.raises(SystemExit):
        accelerator.main(["--only", "probe,prove"])
    assert "unknown stage 'prove'; choose from probe, train_step" in capsys.readouterr().err


def test_an_error_or_a_lack_of_time_costs_one_line(tmp_path):
    results = accelerator.Results(tmp_path / "results.jsonl", time.time(), True)
    session = Session("train_step", results, tmp_path, time.time() + 60)

    def exhausted() -> dict:
        raise MemoryError("out of memory")

    assert session.attempt(lambda: {"s_per_step": 2.0}, needs=10, batch=1) == {"s_per_step": 2.0}
    assert session.attempt(exhausted, needs=10, batch=2) is None
    assert session.attempt(exhausted, needs=90, batch=3) is None
    measured, failed, skipped = rows(results.path)
    assert measured["batch"] == 1 and measured["s_per_step"] == 2.0
    assert failed["batch"] == 2 and failed["error"] == "MemoryError: out of memory"
    assert skipped["batch"] == 3 and "it needs 90" in skipped["skipped"]


def test_noise_has_the_variance_of_initial_values():
    shapes = {
        "kernel": jax.ShapeDtypeStruct((300, 200), jnp.bfloat16),
        "scale": jax.ShapeDtypeStruct((7,), jnp.float32),
    }
    made = filled(shapes)
    kernel = np.asarray(made["kernel"], np.float32)
    assert kernel.std() == pytest.approx(300**-0.5, rel=0.02) and abs(kernel.mean()) < 1e-3
    assert made["kernel"].dtype == jnp.bfloat16 and np.all(np.asarray(made["scale"]) == 1)


def test_one_product_computes_what_the_linear_layers_compute():
    """Value and gradients of two stacked layers, float32; the kernel is frozen."""
    lora = LoRAConfig(rank=3, alpha=6.0, targets=("q_proj",))
    make = functools.partial(Linear, 8, 8, (None, None), bias=True, name="q_proj", lora=lora, adapted=("q_proj",))
    graph, shapes = nnx.split(nnx.eval_shape(lambda: stack_layers(lambda rngs: make(rngs=rngs), 2, nnx.Rngs(0))))
    adapters, base = nnx.split_state(filled(shapes), nnx.LoRAParam, ...)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 8)), jnp.float32)

    def loss(adapters, x, remat):
        layers = nnx.merge(graph, adapters, base)
        return jnp.sum(jnp.sin(run_layers(layers, lambda layer, x, _e, _k: layer(x), x, remat=remat)[0]))

    expected = jax.value_and_grad(loss, (0, 1))(adapters, x, "none")

    with patched(("one_product",)):
        found = jax.value_and_grad(loss, (0, 1))(adapters, x, "names")
        saving = jax.make_jaxpr(functools.partial(loss, remat="none"))(adapters, x)
    assert f"name={LINEAR_OUTPUT}" in str(saving)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, expected)


def test_stored_features_have_the_shape_of_computed_ones():
    config = qwen_config(TINY)
    images = jax.ShapeDtypeStruct((3, TINY.side, TINY.side, 3), jnp.uint8)
    graph, state = nnx.split(nnx.eval_shape(lambda: VisionTower(config, rngs=nnx.Rngs(0))))

    def tower(state, images):
        return nnx.merge(graph, state)(images)

    computed = jax.eval_shape(tower, state, images)
    with patched(("cached_vision",)):
        stored = jax.eval_shape(functools.partial(tower), state, images)
        assert "dot_general" not in str(jax.make_jaxpr(functools.partial(tower))(state, images))
    assert (stored.shape, stored.dtype) == (computed.shape, computed.dtype)
