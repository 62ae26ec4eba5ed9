"""Trackers: each gets the lines of ``metrics.jsonl``, and none of them can stop a run."""

import json
import logging
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

import wmjax.train as command
from tests.trainer.test_survival import events
from wmjax.core.errors import UserError
from wmjax.trainer import trackers
from wmjax.trainer.metrics import MetricsWriter
from wmjax.trainer.trackers import require_trackers, tracker_names


def written(run: Path, *names: str, step: int = 0) -> list[dict]:
    """Writes three lines with some trackers; returns what metrics.jsonl holds."""
    writer = MetricsWriter(run, step, trackers=names)
    for number in (1, 2):
        writer.write(step + number, "train", {"loss": 1 / number})
    writer.write(step + 2, "val", {"loss": 0.25})
    writer.close()
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Failing:
    """Fails when it is told to: at the start, at a line, or at the end."""

    when = ""

    def __init__(self, run: Path, step: int, lines: object) -> None:
        self.seen: list[int] = []
        self.fail("init")

    def fail(self, now: str) -> None:
        if Failing.when == now:
            raise ConnectionError("no network")

    def add(self, line: dict) -> None:
        self.seen.append(line["step"])
        self.fail("add" if len(self.seen) == 2 else "")

    def close(self) -> None:
        self.fail("close")


@pytest.mark.parametrize("when", ["init", "add", "close"])
def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(when, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(logging.getLogger("wmjax"), "propagate", True)
    monkeypatch.setitem(trackers.TRACKERS, "failing", (Failing, "json"))
    monkeypatch.setattr(Failing, "when", when)
    assert len(written(tmp_path, "failing", "tensorboard")) == 3
    assert events(tmp_path) == {("train/loss", 1): 1, ("train/loss", 2): 1, ("val/loss", 2): 1}
    warnings = {id(record): record.message for record in caplog.records if record.levelname == "WARNING"}
    assert set(warnings.values()) == {"the tracker failing failed (no network); metrics.jsonl continues without it"}


def test_without_trackers_there_is_metrics_jsonl_alone(tmp_path) -> None:
    assert len(written(tmp_path)) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl"}


def test_names_are_checked_before_anything_runs(monkeypatch, capsys, tmp_path) -> None:
    assert tracker_names("jsonl,tensorboard,wandb") == ["tensorboard", "wandb"] and tracker_names("jsonl") == []
    with pytest.raises(UserError, match=r"unknown train\.trackers 'wandbb'; did you mean wandb"):
        require_trackers(["wandbb"])
    monkeypatch.setitem(trackers.TRACKERS, "wandb", (Failing, "no_such_package"))
    assert command.main(["--scale", "smoke", "--tracker", "jsonl,wandb", "--run", str(tmp_path / "run")]) == 2
    assert "train.trackers has wandb, but no_such_package is not installed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def leveldb_log(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: 7 bytes of header, then LevelDB's log format in blocks of 32 KiB."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:  # a block ends in padding
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        part = data[place + 7 : place + 7 + length]
        place += 7 + length
        parts = part if kind in (1, 2) else parts + part
        if kind in (1, 4):
            yield parts


def test_weights_and_biases_takes_the_lines_offline_and_goes_on_with_the_same_run(tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="pip install 'wmjax[trackers]'")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    written(tmp_path, "wandb")
    written(tmp_path, "wandb", step=2)
    identity = (tmp_path / "wandb-id.txt").read_text()
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert files and all(identity in path.name for path in files)
    found: list[tuple] = []
    for path in files:
        for data in leveldb_log(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            found += [(json.loads(row["step"]), name, json.loads(row[name])) for name in row if name.endswith("/loss")]
    expected = [(1, "train/loss", 1.0), (2, "train/loss", 0.5), (2, "val/loss", 0.25)]
    assert sorted(found) == sorted(expected + [(step + 2, name, value) for step, name, value in expected])


def test_trackio_takes_the_lines(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    pytest.importorskip("trackio", reason="pip install 'wmjax[trackers]'")
    written(tmp_path / "run", "trackio")
    (database,) = (tmp_path / "store").rglob("wmjax*.db")
    with sqlite3.connect(database) as connection:
        rows = [json.loads(row[0]) for row in connection.execute("select metrics from metrics order by id")]
    assert [row for row in rows if "train/loss" in row or "val/loss" in row] == [
        {"train/loss": 1.0}, {"train/loss": 0.5}, {"val/loss": 0.25},
    ]  # fmt: skip
