"""The search for a mesh, a remat and a batch: the tried candidates, the choice, and the output if none fits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.scaling.test_estimate import TINY
from wmjax import estimate
from wmjax.core.errors import UserError
from wmjax.scaling import compilers
from wmjax.scaling.chips import parse_topology
from wmjax.scaling.recommend import Candidate, meshes, recommend
from wmjax.scaling.report import render_recommendation
from wmjax.scaling.request import Request

REQUEST = Request("e2_mse", "mini_lora", "h100:8", settings={"train": {"backbone_weights": "random", "batch_size": 64}})
BASE = 60.0
"""GB of parameters, whole on every device or split over the axis ``fsdp``."""
PER_SAMPLE = {"full": 1.0, "names": 3.0, "none": 6.0}
SPEED = {"full": 100.0, "names": 125.0, "none": 130.0}


def machine(
    available: float, gain: float = 0.0, calls: list[Candidate] | None = None, recomputed: float = 1.0
) -> Callable[[Request], dict[str, Any]]:
    """Estimates by a simple rule; splitting costs a tenth of the speed, a doubled batch wins ``gain``, and ``names``
    computes ``recomputed`` times what ``none`` does.
    """

    def measure(request: Request) -> dict[str, Any]:
        mesh, batch = request.settings["mesh"], request.settings["train"]["batch_size"]
        remat = request.settings["model"]["backbone"]["remat"]
        assert mesh["shard_frozen"] == (mesh["fsdp"] > 1) and request.settings["train"]["backbone_weights"] == "random"
        if calls is not None:
            calls.append(Candidate(mesh["fsdp"], remat, batch))
        needed = BASE / mesh["fsdp"] + PER_SAMPLE[remat] * batch / 8
        rate = SPEED[remat] * (0.9 if mesh["fsdp"] > 1 else 1.0) * (1 + gain * (batch / 64 - 1))
        memory = {"needed_gb": needed, "available_gb": available}
        flops = {"executed_tflop_per_sample": recomputed if remat == "names" else 1.0, "model_tflop_per_sample": 1.0}
        time = {"samples_per_s": rate, "mfu": 0.3}
        return {"fits": needed <= available, "memory": memory, "time": time, "flops": flops}

    return measure


def tried(available: float, recomputed: float = 1.0) -> tuple[list[Candidate], dict[str, Any]]:
    """The candidates that were estimated, and the answer."""
    calls: list[Candidate] = []
    return calls, recommend(REQUEST, machine(available, calls=calls, recomputed=recomputed), lambda line: None)


def test_what_cannot_be_the_fastest_is_not_compiled() -> None:
    calls, found = tried(85.0)
    assert calls == [Candidate(1, "names", 64), Candidate(1, "names", 128)]  # 84 and 108 GB
    best = found["recommended"]
    assert (best["fsdp"], best["remat"], best["batch"], best["samples_per_s"]) == (1, "names", 64, 125.0)
    calls, found = tried(80.0)  # names has to be split, for 31.5 GB, and is faster than full recomputation, for 68 GB
    assert calls[:3] == [Candidate(1, "names", 64), Candidate(8, "names", 64), Candidate(1, "full", 64)]
    assert (found["recommended"]["fsdp"], found["recommended"]["remat"]) == (8, "names")
    calls, found = tried(20.0)  # full recomputation has to be split too
    assert calls[2:4] == [Candidate(1, "full", 64), Candidate(8, "full", 64)]
    assert (found["recommended"]["fsdp"], found["recommended"]["remat"]) == (8, "full")


def test_everything_is_kept_where_that_saves_work() -> None:
    calls, found = tried(110.0, recomputed=1.1)
    assert calls[:2] == [Candidate(1, "names", 64), Candidate(1, "none", 64)]  # 84 and 108 GB
    assert found["recommended"]["remat"] == "none"


def test_the_answer_names_options_and_each_candidate_has_a_line() -> None:
    lines: list[str] = []
    found = recommend(REQUEST, machine(85.0), lines.append)
    assert found["fits"] and "23.00 GB missing" in lines[1] and len(lines) == len(found["tried"]) == 2
    assert "--mesh.fsdp 1 --model.backbone.remat names --train.batch_size 64" in render_recommendation(found)


def test_larger_batches_are_tried_as_long_as_they_pay() -> None:
    calls: list[Candidate] = []
    found = recommend(REQUEST, machine(1000.0, gain=0.02, calls=calls), lambda line: None)
    assert [c.batch for c in calls] == [64, 128] and found["recommended"]["batch"] == 64  # 2 per cent are not worth it
    found = recommend(REQUEST, machine(1000.0, gain=0.2), lambda line: None)
    assert found["recommended"]["batch"] == 512


def test_smaller_batches_are_tried_where_nothing_fits() -> None:
    found = recommend(REQUEST, machine(12.0), lambda line: None)
    best = found["recommended"]
    assert (best["fsdp"], best["remat"], best["batch"]) == (8, "full", 32)
    nothing = recommend(REQUEST, machine(5.0), lambda line: None)
    assert nothing["fits"] is False and nothing["recommended"] is None
    assert nothing["tried"][-1]["batch"] == 8  # one sample per device
    assert "the least is 8.50 GB at batch 8, 3.50 GB more than there are" in render_recommendation(nothing)


def test_a_compiler_that_gives_up_is_as_one_that_counts_too_much() -> None:
    flops = {"executed_tflop_per_sample": 1.0, "model_tflop_per_sample": 1.0}
    refused = {"fits": False, "memory": None, "time": None, "refused": "Ran out of memory", "flops": flops}
    found = recommend(REQUEST, lambda request: refused, lambda line: None)
    assert [row["batch"] for row in found["tried"]] == [64, 64, 64, 64, 32, 16, 8] and found["tried"][-1]["fsdp"] == 8
    assert render_recommendation(found).endswith("Ran out of memory")


def test_parameters_are_split_over_a_host_or_a_slice() -> None:
    assert meshes(parse_topology("h100:4x8")) == [1, 8] and meshes(parse_topology("v5e:4x4")) == [1, 16]
    assert meshes(parse_topology("h200:1")) == [1]


def test_simulated_devices_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert estimate.main([*TINY, "--topology", "cpu:4", "--recommend"]) == 2
    assert "predicts nothing, name an accelerator" in capsys.readouterr().err
    with pytest.raises(UserError, match="name an accelerator"):
        recommend(Request("e2_mse", "mini", "cpu:2"), machine(1.0), lambda line: None)


def test_an_estimate_is_kept_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path))
    made: list[Request] = []

    def make(request: Request, *_: Any) -> dict[str, Any]:
        made.append(request)
        return {"fits": None, "batch": len(made)}

    monkeypatch.setattr(compilers, "compile_in_own_process", make)
    first = Request("e2_mse", "mini", "cpu:2")
    assert compilers.run(first) == compilers.run(first) and len(made) == 1
    other = Request("e2_mse", "mini", "cpu:2", settings={"train": {"batch_size": 8}})
    assert compilers.run(other)["batch"] == 2 and compilers.run(first)["batch"] == 1
    monkeypatch.setenv("XLA_FLAGS", "--xla_something=1")
    assert compilers.run(first)["batch"] == 3
    monkeypatch.setattr(compilers, "code_hash", lambda: "changed")
    assert compilers.run(first)["batch"] == 4
    for kept in (tmp_path / "estimates").iterdir():
        kept.write_text("{")
    assert compilers.run(first)["batch"] == 5  # a damaged file is made again


def test_the_key_depends_on_a_named_config(tmp_path: Path) -> None:
    request = Request("e2_mse", "mini", "cpu:2", settings={"encoder": {"model": str(tmp_path)}})
    (tmp_path / "config.json").write_text("{}")
    before = compilers.key(request, Path())
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert compilers.key(request, Path()) != before
