"""The launchers of ``train/launch``: their syntax, their first lines, and that they name options that exist."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docs.commands import ROOT, check_command
from wmjax.experiment.config import load

FOLDER = ROOT / "train" / "launch"
SCRIPTS = sorted(path for path in FOLDER.iterdir() if path.suffix in (".sh", ".sbatch"))


def text_of(path: Path) -> str:
    """A script, or what the YAML file runs, with lines that go on joined."""
    text = yaml.safe_load(path.read_text())["run"] if path.suffix == ".yaml" else path.read_text()
    return re.sub(r"\\\n\s*|'\\\n'", "", text)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_valid_bash_and_begins_with_what_a_user_edits(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, check=False).returncode == 0
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and lines[4] == ""
    pattern = r"#SBATCH --[\w-]+=\S+" if path.suffix == ".sbatch" else r"[A-Z]+=\$\{[A-Z]+:-.+\}.*"
    assert all(re.fullmatch(pattern, line) for line in lines[1:4]), lines[1:4]


def test_the_skypilot_task_is_valid_and_its_commands_are_valid_bash() -> None:
    path = FOLDER / "sky.yaml"
    task = yaml.safe_load(path.read_text())
    assert list(task)[:3] == ["num_nodes", "resources", "envs"] and path.read_text().splitlines()[3] == ""
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n"], input=task[part], text=True, check=False).returncode == 0
    assert set(re.findall(r"\$(STORE|RUN)\b", task["run"])) == set(task["envs"])


@pytest.mark.parametrize("path", [*SCRIPTS, FOLDER / "sky.yaml"], ids=lambda path: path.name)
def test_the_training_that_a_launcher_starts_is_one(path: Path) -> None:
    found = re.search(r"python -m wmjax\.train ([^\n\"']*)", text_of(path).replace('"', ""))
    assert found, path
    words = shlex.split(found[1].replace("$STORE", "STORE").replace("$RUN", "RUN").replace("$SETTINGS", "").rstrip("}"))
    check_command(["python", "-m", "wmjax.train", *words])
    named = dict(itertools.pairwise(words))
    load(named["--config"], named["--scale"], None, {"train": {"backbone_weights": "random"}})


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.sbatch")), ids=lambda path: path.name)
def test_slurm_reads_all_of_its_lines(path: Path) -> None:
    """Slurm ignores what follows the first command."""
    lines = path.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


def requeued(path: Path, status: int, tmp_path: Path) -> str:
    """What a Slurm script asks for when its training ends with a status; stand-ins of Slurm's commands write it."""
    for name, code in {"srun": f"exit {status}", "scontrol": f'echo "$@" > {tmp_path}/asked'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "STORE": "s", "RUN": "r"}
    done = subprocess.run(["bash", str(path)], env=environment, check=False)
    assert done.returncode == status
    asked = tmp_path / "asked"
    return asked.read_text().strip() if asked.exists() else ""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.sbatch")), ids=lambda path: path.name)
@pytest.mark.parametrize(("status", "asked"), [(0, ""), (2, ""), (143, "requeue 7")])
def test_only_a_preempted_slurm_job_is_queued_again(path: Path, status: int, asked: str, tmp_path: Path) -> None:
    assert requeued(path, status, tmp_path) == asked


CHILD = """
import os, signal, sys, time
index = os.environ["JAX_PROCESS_ID"]
open(f"{sys.argv[-1]}-{index}", "w").write(f"{os.environ['JAX_NUM_PROCESSES']} {os.environ['JAX_COORDINATOR_ADDRESS']}")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
if os.environ.get("HOLD"):
    time.sleep(60)
sys.exit(int(os.environ.get("FAIL", "0")) if index == "1" else 0)
"""


def local_processes(tmp_path: Path, **more: str) -> subprocess.Popen:
    (tmp_path / "child.py").write_text(CHILD)
    command = f"{sys.executable} {tmp_path / 'child.py'}"
    environment = os.environ | {"PROCESSES": "3", "RUN": str(tmp_path / "seen"), "COMMAND": command, **more}
    return subprocess.Popen(["bash", str(FOLDER / "local_processes.sh")], env=environment)


def test_local_processes_know_their_number_and_their_failure_is_told(tmp_path: Path) -> None:
    assert local_processes(tmp_path).wait(60) == 0
    assert [(tmp_path / f"seen-{i}").read_text() for i in range(3)] == ["3 localhost:12355"] * 3
    assert local_processes(tmp_path, FAIL="2").wait(60) == 2


def test_local_processes_pass_a_signal_on_and_wait(tmp_path: Path) -> None:
    launcher = local_processes(tmp_path, HOLD="1")
    while len(list(tmp_path.glob("seen-*"))) < 3:
        assert launcher.poll() is None
    launcher.terminate()
    assert launcher.wait(60) == 143
