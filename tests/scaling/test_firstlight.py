"""First light on new hardware: every check runs, a broken one has its own line, and the others continue."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest

from tests import QUICK_FUSIONS
from tests.data.synthetic import make_store
from tests.scaling.test_estimate import TINY
from wmjax import firstlight
from wmjax.core.errors import UserError
from wmjax.experiment.config import load
from wmjax.scaling.firstlight import supervise
from wmjax.scaling.firstlight.bench import Bench, at_hand, shared
from wmjax.scaling.firstlight.checks import CHECKS, run_check
from wmjax.scaling.firstlight.request import NAMES, Finding, MissingPieceError, Request, chosen, judged


def run(arguments: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict], str]:
    """The exit status, the findings by check, and what was printed."""
    status = firstlight.main([*TINY, *arguments, "--json", str(out)])
    printed = capsys.readouterr()
    found = json.loads(out.read_text()) if out.exists() else {"checks": []}
    return status, {row["check"]: row for row in found["checks"]}, printed.out + printed.err


@pytest.mark.long  # trainer/test_loop.py trains, parity/ measures precision
def test_training_and_precision_at_a_small_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = f"--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0 {QUICK_FUSIONS}"
    monkeypatch.setenv("XLA_FLAGS", flags)
    store = make_store(tmp_path / "store", lengths=(29,), tasks=1)
    names = ["tokenizer", "attention", "donation", "checkpoint", "step", "overfit"]
    settings = ["--config", "e0_mse", "--data.path", str(store.folder), "--train.batch_size", "4"]
    settings += ["--train.steps", "20", "--optimizer.learning_rate", "0.003"]
    status, found, printed = run([*settings, "--only", *names], tmp_path / "found.json", capsys)
    assert status == 0 and {name: row["status"] for name, row in found.items()} == dict.fromkeys(names, "pass"), printed
    assert printed.count("\npass ") == 6 and "6 passed, 0 failed, 0 skipped" in printed
    figures = {name: row["figures"] for name, row in found.items()}
    assert figures["step"]["devices"] == 2 and figures["step"]["samples_per_s"] > 0 and figures["step"]["mfu"] is None
    assert figures["donation"]["arrays_left"] == 0
    assert 0 < figures["attention"]["xla_float32"] < 1e-5 < figures["attention"]["xla_bfloat16"]
    assert (
        figures["overfit"]["steps"] == 20 and figures["overfit"]["last_loss"] < 0.7 * figures["overfit"]["first_loss"]
    )


@pytest.mark.slow
def test_a_broken_encoder_costs_its_checks_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text("{")
    arguments = ["--encoder.model", str(encoder), "--only", "latents", "tokenizer", "export"]
    status, found, printed = run(arguments, tmp_path / "found.json", capsys)
    assert status == 1, printed
    assert {name: row["status"] for name, row in found.items()} == {
        "latents": "fail", "tokenizer": "pass", "export": "fail",
    }  # fmt: skip
    assert "config.json" in found["latents"]["text"] and found["tokenizer"]["figures"]["tokens"] > 0


def test_a_check_that_raises_is_a_failure_and_a_missing_piece_a_skip() -> None:
    def broken(bench: Bench) -> Finding:
        raise ZeroDivisionError("of a driver\non two lines")

    def missing(bench: Bench) -> Finding:
        raise MissingPieceError("no simulator")

    checks = {"broken": broken, "missing": missing, "well": lambda bench: judged(True, "1 GB", gb=1.0)}
    bench = object.__new__(Bench)
    rows = [run_check(name, bench, checks) for name in checks]
    assert [row.finding.status for row in rows] == ["fail", "skip", "pass"]
    assert rows[0].finding.text == "ZeroDivisionError: of a driver on two lines"
    assert rows[1].line().startswith("skip missing    no simulator")


def test_a_shared_piece_fails_once() -> None:
    bench = object.__new__(Bench)
    bench.made = {}

    @shared
    def piece(bench: Bench) -> int:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        piece(bench)
    with pytest.raises(MissingPieceError, match="no piece, see above: no space"):
        piece(bench)


def test_a_check_that_kills_or_hangs_its_process_is_a_failure_and_the_rest_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "WORKER", "tests.scaling.broken_worker")
    lines: list[str] = []
    request = Request("e0_mse", "mini", checks=("weights", "tokenizer", "latents", "torch"))
    found = supervise.run(request, tmp_path, 1.5, lines.append)
    assert [(row["check"], row["status"]) for row in found["checks"]] == [
        ("weights", "pass"), ("tokenizer", "fail"), ("latents", "fail"), ("torch", "pass"),
    ]  # fmt: skip
    assert signal.SIGABRT.name in lines[2] and "the driver gave up" in lines[2]
    assert "no end after 2 s" in lines[3] and found["about"]["kinds"] == ["imaginary"]


@pytest.mark.slow
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--only", "weight"], "unknown check 'weight'; did you mean weights"),
        (["--train.batch_size", "x", "--only", "tokenizer"], "train.batch_size"),
    ):
        status, _, printed = run(arguments, tmp_path / "none.json", capsys)
        assert status == 2 and words in printed and printed.count("\n") == 1
    with pytest.raises(UserError, match="unknown check"):
        chosen(skip=("weight",))


def test_at_3b_nothing_is_downloaded_and_only_data_and_places_are_others(tmp_path: Path) -> None:
    experiment, store = at_hand(Request("e2_flow", "3b"), tmp_path)
    plain = load("e2_flow", "3b", None, {"train": {"backbone_weights": "random"}})
    assert store is None and not experiment.data.places and experiment.data.observation.image_size == 224
    assert experiment.prompt.tokenizer == "mini" and experiment.encoder.model == str(tmp_path / "encoder")
    assert dataclasses.replace(experiment.prompt, tokenizer="") == dataclasses.replace(plain.prompt, tokenizer="")
    assert experiment.train == plain.train and experiment.optimizer == plain.optimizer
    assert experiment.model.prophet == plain.model.prophet and experiment.model.head == plain.model.head
    ids = {
        name: getattr(plain.model.backbone, name) for name in ("image_token", "vision_start_token", "vision_end_token")
    }
    assert dataclasses.replace(experiment.model.backbone, **ids) == plain.model.backbone
    bench = Bench(Request("e2_flow", "3b"), tmp_path)
    assert int((bench.prompts().tokens == experiment.model.backbone.image_token).sum()) == 2 * 64


def test_places_that_are_given_are_kept(tmp_path: Path) -> None:
    encoder = {"model": "someone/vjepa2-vitl"}
    experiment, _ = at_hand(Request("e2_flow", "3b", settings={"encoder": encoder, "data": {"workers": 3}}), tmp_path)
    assert experiment.encoder.model == "someone/vjepa2-vitl" and experiment.data.workers == 3


def test_every_name_has_a_check_with_a_description() -> None:
    assert tuple(CHECKS) == NAMES and all(check.__doc__ for check in CHECKS.values())
    assert chosen(skip=("torch",)) == tuple(name for name in NAMES if name != "torch")
