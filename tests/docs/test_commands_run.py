"""The commands in the bash blocks of README and the quick start run, one after the other, at the scale smoke."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import ROOT
from tests.docs.test_documents import CHECKED

DOCUMENTS = ("README.md", "docs/quickstart.md")
RUN, STEP = "e2_flow-smoke-smoke-s0", "00000030"
"""The run that the documents' training leaves at the scale smoke, and its last step."""
SMALLER = {
    "train": ["--scale", "smoke", "--data.episodes_per_task", "4"],
    "evaluate": ["--episodes", "1", "--videos", "0"],
}
"""What is added to a command so that it takes little time. A diagnosis needs more demonstrations than the scale has."""


def commands(cache: Path) -> list[list[str]]:
    """Arguments of ``python``, in the order of the documents, each once; set-up and tests are left out."""
    found = []
    for block in CHECKED:
        if block.document not in DOCUMENTS or block.language != "bash":
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if Path(words[0]).name == "python" and words[2].startswith("wmjax."):
                name = words[2].removeprefix("wmjax.")
                smaller = [] if "--dry-run" in words else SMALLER.get(name, [])
                found.append([*(_of_smoke(word, cache) for word in words[1:]), *smaller])
    return [words for number, words in enumerate(found) if words not in found[:number]]


def _of_smoke(word: str, cache: Path) -> str:
    """A word with the run at the scale smoke in it, and results with what :data:`SMALLER` changes in their name.

    The benchmark, each of whose runs is recorded in ``eval/results``, becomes the protocol for development.
    """
    smaller = re.sub(r"(/evaluations/)\d+(/.*)", rf"\g<1>{STEP}\g<2>-n1", word)
    return smaller.replace("RUN", str(cache / "runs" / RUN)).replace("libero_spatial", "spatial_dev")


def test_the_documents_train_evaluate_and_look_at_a_run(tmp_path: Path) -> None:
    names = [words[1] for words in commands(tmp_path)]
    assert {f"wmjax.{name}" for name in ("doctor", "train", "evaluate", "report", "diagnose")} == {*names}


@pytest.mark.long  # trains and evaluates: minutes
@pytest.mark.sim
def test_the_commands_run_at_smoke_size(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "WMJAX_CACHE": str(cache),
        "XLA_FLAGS": "--xla_backend_optimization_level=1",
    }
    for words in commands(cache):
        line = [sys.executable, *words]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, (words, done.stdout + done.stderr)
    results = cache / "runs" / RUN / "evaluations" / STEP
    assert (results / "spatial_dev-tasks0,1,2,4,6-n1" / "report.html").is_file()
    assert (results / "smoke" / "summary.json").is_file()
