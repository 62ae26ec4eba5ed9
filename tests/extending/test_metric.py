"""An episode metric from outside the package: the evaluate command, the records and the report."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.extending.test_environment import PROTOCOL
from wmjax.core.errors import UserError
from wmjax.evaluate import main as evaluate
from wmjax.rollout.metrics import EpisodeMetric, Smoothness, measure_all
from wmjax.rollout.protocol import load_protocol
from wmjax.rollout.results import EpisodeRecord, actions_path, read_records

KIND = "tests.extending.path_length:PathLength"


def test_it_is_measured_by_the_command(tmp_path: Path) -> None:
    (tmp_path / "corners.toml").write_text(PROTOCOL)
    out = tmp_path / "out"
    given = ["--policy", "random", "--protocol", str(tmp_path / "corners.toml"), "--out", str(out), "--videos", "0"]
    assert evaluate([*given, "--metrics", KIND, "smoothness"]) == 0
    records = read_records(out)
    assert len(records) == 4
    for record in records:
        actions = np.load(actions_path(out, record.key))
        assert record.info["path/length"] == pytest.approx(np.linalg.norm(actions, axis=1).sum()) and record.steps > 1
        assert ("path/per_success" in record.info) == record.success
        change = np.linalg.norm(np.diff(actions, axis=0), axis=1).mean()
        assert record.info["action/change"] == pytest.approx(change)
    assert "path/length" in (out / "report.html").read_text()


def test_an_unknown_metric_is_refused_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(["--policy", "noop", "--out", str(tmp_path / "out"), "--metrics", "smoothnes"]) == 2
    assert "unknown evaluation.metrics 'smoothnes'; did you mean smoothness" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Given(EpisodeMetric):
    """Returns, or raises, what the test says."""

    value: Any = None

    def measure(self, record: EpisodeRecord, actions: np.ndarray) -> Mapping[str, float]:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Unfinished(EpisodeMetric):
    """Lacks its method."""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("builtins:int", "is not a subclass of wmjax.rollout.metrics.EpisodeMetric; make it one"),
        ("tests.extending.test_metric:Unfinished", "lacks measure of wmjax.rollout.metrics.EpisodeMetric; give it"),
        ("tests.extending.test_metric:KIND", "a str; give the name of a class"),
        ("brk_broken:Metric", "cannot be imported (SyntaxError: "),
        ("brk_raises:Metric", "cannot be imported (RuntimeError: no display)"),
    ],
)
def test_a_class_that_is_not_a_metric_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    (tmp_path / "brk_broken.py").write_text("class Metric(:\n")
    (tmp_path / "brk_raises.py").write_text("raise RuntimeError('no display')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert evaluate(["--policy", "noop", "--out", str(tmp_path / "out"), "--metrics", name]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_metric_that_is_named_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["smoothness", "wmjax.rollout.metrics:Smoothness"]
    assert evaluate(["--policy", "noop", "--out", str(tmp_path / "out"), "--metrics", *words]) == 2
    assert "smoothness occurs twice; name it once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (ValueError("no\nsteps"), r"Given failed on .* \(ValueError: no steps\); correct the metric"),
        (None, r"Given failed on .* \(TypeError: "),
        ({"a": "3"}, "Given gave 'a': '3' on .*; give numbers by name"),
        ({"a": None}, "Given gave 'a': None on .*; give numbers by name"),
        ({3: 1.0}, "Given gave 3: 1.0 on .*; give numbers by name"),
        (
            {"action/change": 1.0},
            "Given measures 'action/change', a name that another metric or the episode's info has",
        ),
        ({"gate": 1.0}, "Given measures 'gate', a name that another metric"),
    ],
)
def test_what_a_metric_does_wrong_is_named(tmp_path: Path, value: Any, message: str) -> None:
    record, robot = played(tmp_path)
    metrics = [Smoothness(robot), Given(robot)]
    metrics[1].value = value
    with pytest.raises(UserError, match=rf"^evaluation\.metrics: tests\.extending\.test_metric:{message}"):
        measure_all(metrics, record, np.zeros((3, robot.dim), np.float32))


def test_numbers_of_numpy_are_numbers_and_nan_is_left_out(tmp_path: Path) -> None:
    record, robot = played(tmp_path)
    metric = Given(robot)
    metric.value = {"a": np.float32(0.5), "b": np.int64(2), "c": True, "d": float("nan"), "e": np.inf}
    found = measure_all([metric], record, np.zeros((3, robot.dim), np.float32))
    assert found == {"a": 0.5, "b": 2.0, "c": 1.0} and {type(value) for value in found.values()} == {float}


def played(tmp_path: Path) -> tuple[EpisodeRecord, Any]:
    """A record whose info has a ``gate``, and the robot of its environment."""
    (tmp_path / "corners.toml").write_text(PROTOCOL)
    given = ["--policy", "noop", "--protocol", str(tmp_path / "corners.toml"), "--out", str(tmp_path / "out")]
    assert evaluate([*given, "--videos", "0"]) == 0
    robot = load_protocol(str(tmp_path / "corners.toml")).environment.action_spec
    return dataclasses.replace(read_records(tmp_path / "out")[0], info={"gate": 0.5}), robot
