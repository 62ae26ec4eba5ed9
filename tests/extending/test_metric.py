"""An episode metric from outside the package: the evaluate command, the records and the report."""

from pathlib import Path

import numpy as np
import pytest

from tests.extending.test_environment import PROTOCOL
from wmjax.evaluate import main as evaluate
from wmjax.rollout.results import actions_path, read_records

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


def test_one_that_is_not_there_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(["--policy", "noop", "--out", str(tmp_path / "out"), "--metrics", "smoothnes"]) == 2
    assert "unknown evaluation.metrics 'smoothnes'; did you mean smoothness" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
