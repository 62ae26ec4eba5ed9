"""The doctor names faults and their fixes, and its reference frame is the simulator's."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wmjax.core.errors import UserError
from wmjax.core.paths import size_report
from wmjax.pipeline import machine_check as doctor


@pytest.mark.sim
def test_the_reference_frame_is_what_this_machine_renders() -> None:
    finding = doctor.check_rendering()
    assert finding.status == "ok", finding.text


def test_a_darker_picture_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = np.asarray(Image.open(doctor.REFERENCE))
    assert reference.shape == (112, 224, 3) and reference.std() > 20
    monkeypatch.setattr(doctor, "render_first_frame", lambda: (reference * 0.9).astype(np.uint8))
    assert doctor.check_rendering().status == "FAIL"


def test_one_failure_fails_the_command_and_the_others_still_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check_simulator() -> doctor.Finding:
        raise UserError("package mujoco is 3.17, LIBERO needs 3.3.2; run ./setup.sh sim")

    findings = doctor.run_checks((check_simulator, doctor.check_disk, doctor.check_torch, doctor.check_jax))
    assert [finding.status == "FAIL" for finding in findings] == [True, False, False, False]
    assert "FAIL  simulator: package mujoco is 3.17" in capsys.readouterr().out


def test_too_little_disk_is_a_failure_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_GB", 1e9)
    finding = doctor.check_disk()
    assert finding.status == "FAIL" and "set WMJAX_CACHE" in finding.text


def test_the_cache_reports_its_folders(tmp_path: Path) -> None:
    (tmp_path / "demos" / "a").mkdir(parents=True)
    (tmp_path / "demos" / "a" / "x").write_bytes(b"0" * 2_000_000)
    assert "2.0 MB  demos/a" in size_report(tmp_path)
