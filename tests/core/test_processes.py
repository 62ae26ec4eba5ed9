"""Spawned workers import what they run, and not the command that started them."""

import subprocess
import sys
from pathlib import Path

import pytest

MAIN = """
import multiprocessing
import heavy
import target
from contextlib import nullcontext
from wmjax.core.processes import without_main_module

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with {context}():
        process = context.Process(target=target.report, args=(theirs,))
        process.start()
    print(ours.recv())
    process.join()
"""
TARGET = """
import sys

def report(connection):
    connection.send("heavy" in sys.modules)
"""


@pytest.mark.parametrize(("context", "imported"), [("without_main_module", "False"), ("nullcontext", "True")])
def test_a_spawned_process_does_not_import_the_parents_main_module(context: str, imported: str, tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text("")
    (tmp_path / "target.py").write_text(TARGET)
    (tmp_path / "start.py").write_text(MAIN.format(context=context))
    line = [sys.executable, str(tmp_path / "start.py")]
    shown = subprocess.run(line, capture_output=True, text=True, check=True, cwd=Path.cwd()).stdout
    assert shown.strip() == imported
