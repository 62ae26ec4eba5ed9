"""The lock file says what was tested: of Python 3.11 the tested versions, and the pins of newer Pythons are its own."""

import tomllib
from pathlib import Path

from tools import lock

LOCKED = tomllib.loads((Path(__file__).parents[1] / "uv.lock").read_text(encoding="utf-8"))
VERSIONS: dict[str, set[str]] = {}
for package in LOCKED["package"]:
    VERSIONS.setdefault(package["name"], set()).add(package.get("version", ""))


def test_the_tested_versions_are_locked() -> None:
    project = tomllib.loads((lock.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["uv"]["constraint-dependencies"] == lock.constraints()
    tested = {name: version for name, version in lock.pins().items() if name in VERSIONS}
    assert len(tested) > 100
    assert {name for name, version in tested.items() if version not in VERSIONS[name]} <= lock.UNLIKE


def test_the_pins_of_newer_pythons_are_locked() -> None:
    lines = lock.NEWER.read_text(encoding="utf-8").splitlines()
    pins = dict(line.partition(";")[0].strip().split("==") for line in lines if not line.startswith("#"))
    assert {"jax", "flax", "optax", "orbax-checkpoint", "mujoco", "numpy"} <= pins.keys()
    assert [name for name, version in pins.items() if version not in VERSIONS[lock.normalised(name)]] == []
    assert not any("python_full_version < '3.12'" in line for line in lines)


def test_what_the_project_needs_is_locked() -> None:
    project = tomllib.loads((lock.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for group in extras.values() for line in group)]
    (own,) = (package for package in LOCKED["package"] if package["name"] == "wmjax")
    metadata = own["metadata"]["requires-dist"]
    assert len(metadata) >= len(wanted) - 1 and set(own["metadata"]["provides-extras"]) == set(extras)
    named = {
        lock.normalised(line.split(">")[0].split("=")[0].split("[")[0].split("<")[0].split(";")[0].strip())
        for line in wanted
    }
    assert named == {entry["name"] for entry in metadata}
