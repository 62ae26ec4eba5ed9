"""The Dockerfile: its steps are those of setup.sh, and the image gets the files that these read. No image is built."""

import re
import shlex
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from wmjax.core import console

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SETUP = (ROOT / "setup.sh").read_text(encoding="utf-8")
CLEAN = "rm -rf /var/lib/apt/lists/*"
"""What setup.sh does not do: the package lists that its apt-get downloads are of no use in an image."""

INSTALLED = (
    *(
        "setup.sh",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "LICENSES",
        "constraints/py311.txt",
        "constraints/py312.txt",
    ),
    *("wmjax", "wmjax/core/console.py", "encoders_export", "train/scales", "eval/protocols", "eval/evidence"),
)
"""What the installation, or a command, reads of the tree."""


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of that name; lines that are continued are joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name} (.*)$", joined, re.M)


def modes() -> list[str]:
    """What setup.sh can be told to install."""
    return [mode for line in re.findall(r"^  ([\w|]+)\) extras=", SETUP, re.M) for mode in line.split("|")]


def test_every_step_is_one_of_setup_or_a_command_of_ours() -> None:
    """An installation step beside setup.sh would be a second list of what wmjax needs."""
    steps = [step.strip() for line in instructions("RUN") for step in line.split("&&")]
    assert steps[0] == './setup.sh "${MODE}"' and (ROOT / "setup.sh").stat().st_mode & 0o111
    for step in steps[1:]:
        words = shlex.split(step)
        assert step == CLEAN or words[:3] == [".venv/bin/python", "-m", "wmjax"], step
        assert step == CLEAN or words[3] in ("--help", *console.commands()), step
    assert "venv=.venv\n" in SETUP  # where that interpreter is


def test_the_modes_are_those_of_setup() -> None:
    assert instructions("ARG") == ["MODE=sim"]
    named = re.findall(r"MODE=(\w+)", DOCKERFILE)
    assert set(named) == {"sim", "cuda"} <= set(modes())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for mode, extras in re.findall(r"^  ([\w|]+)\) extras=([\w,$]+)", SETUP, re.M):
        chosen = {name for one in mode.split("|") for name in extras.replace("$mode", one).split(",")}
        assert chosen <= project["optional-dependencies"].keys()


def test_setup_refuses_another_mode_with_the_ones_that_it_has() -> None:
    found = subprocess.run([ROOT / "setup.sh", "gpu"], capture_output=True, text=True, check=False)
    assert found.returncode == 2 and found.stderr.count("\n") == 1
    assert all(mode in found.stderr for mode in modes())


def test_the_interpreter_is_the_one_of_the_exact_versions() -> None:
    (base,) = instructions("FROM")
    assert re.match(r"python:3\.11-", base) and "constraints/py311.txt" in SETUP


@pytest.mark.parametrize("path", INSTALLED)
def test_what_the_installation_reads_is_copied(path: str) -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    ignored = [line for line in lines if line and not line.startswith("#")]
    assert (ROOT / path).exists() and instructions("COPY") == [". ."]
    for part in [path, *map(str, Path(path).parents)]:
        assert not any(fnmatch(part, line.removeprefix("**/")) for line in ignored), part


def test_nothing_that_git_ignores_is_copied() -> None:
    ignored = set((ROOT / ".dockerignore").read_text(encoding="utf-8").split())
    folders = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()]
    places = [name for name in folders if "/" not in name and name != ".verified.json"]
    for name in places:
        assert any(fnmatch(name, line.removeprefix("**/")) for line in ignored), name


def test_the_entry_point_is_the_command() -> None:
    (entry,) = instructions("ENTRYPOINT")
    assert entry == '["/wmjax/.venv/bin/python", "-m", "wmjax"]' and instructions("WORKDIR") == ["/wmjax"]
    assert "WMJAX_CACHE=/cache" in instructions("ENV")[0] and instructions("VOLUME") == ["/cache"]
