"""The archive of the trimmed simulator: what one task needs, and nothing of the other suites."""

import tarfile

import pytest

pytest.importorskip("mujoco")

from benchmarks.accelerator_stages import pack_simulator

pytestmark = [pytest.mark.sim, pytest.mark.long]


def test_one_task_is_packed(tmp_path):
    archive = tmp_path / "simulator.tar.gz"
    count = pack_simulator.pack(archive)
    with tarfile.open(archive) as content:
        names = set(content.getnames())
    assert len(names) == count and archive.stat().st_size < 40e6
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == set(pack_simulator.PACKAGES)
    suites = {name.split("/bddl_files/")[1].split("/")[0] for name in names if "/bddl_files/" in name}
    assert suites == {"libero_spatial"} and any(name.endswith(".npz") for name in names)
    assert {"robosuite/__init__.py", "libero/libero/__init__.py"} <= names
    assert any("bowl" in name and name.endswith((".msh", ".obj", ".stl")) for name in names)  # seen by the task only
    assert not any(name.endswith((".pyc", ".nbc", ".nbi")) for name in names)
