"""Runs the checks in a separate process: a check that kills it or hangs has failed, and the others continue."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wmjax.core.errors import UserError
from wmjax.scaling.firstlight.request import Finding, Request, Row
from wmjax.scaling.firstlight.worker import ROWS

WORKER = "wmjax.scaling.firstlight.worker"
LOG = "log.txt"
POLL = 0.2
TAIL = 300
"""Characters of a killed process' output that its check's line keeps."""


def run(request: Request, scratch: Path, limit: float, report: Callable[[str], None]) -> dict[str, Any]:
    """All checks, as JSON-able values: ``about`` the devices, and ``checks`` as :meth:`Row.as_dict` writes them.

    Args:
        request: what to check.
        scratch: an empty folder for what the checks make.
        limit: seconds that one check may take.
        report: called with each line as soon as it is known.

    Raises:
        UserError: bad settings, or no device.

    """
    about: dict[str, Any] = {}
    rows: list[Row] = []
    left = request.checks
    while left:
        output = _Output(scratch / ROWS, about, rows, report)
        status, late = _process(dataclasses.replace(request, checks=left), scratch, limit, output)
        left = tuple(name for name in left if name not in {row.check for row in rows})
        if not left:
            break
        if output.running is None and not rows:
            raise _failure(scratch, status)
        reason = f"no end after {limit:.0f} s" if late else _ended(status)
        found = Finding("fail", f"{reason}; the process said: {_tail(scratch)}")
        for name in left if output.running is None else (output.running,):  # all, if no new process comes up any more
            rows.append(Row(name, found, time.monotonic() - output.since))
            report(rows[-1].line())
        left = tuple(name for name in left if name not in {row.check for row in rows})
    return {"about": about, "checks": [row.as_dict() for row in rows]}


class _Output:
    """What a process has written so far."""

    def __init__(self, path: Path, about: dict[str, Any], rows: list[Row], report: Callable[[str], None]) -> None:
        self._path, self._about, self._rows, self._report = path, about, rows, report
        self._position = path.stat().st_size if path.exists() else 0
        self.running: str | None = None
        self.since = time.monotonic()

    def poll(self) -> None:
        """Reads the complete lines that were added."""
        if not self._path.exists():
            return
        with self._path.open(encoding="utf-8") as file:
            file.seek(self._position)
            while (line := file.readline()).endswith("\n"):
                self._take(json.loads(line))
                self._position = file.tell()

    def _take(self, values: dict[str, Any]) -> None:
        if "begins" in values:
            self.running, self.since = values["begins"], time.monotonic()
        elif "check" in values:
            self._rows.append(Row.from_dict(values))
            self.running = None
            self._report(self._rows[-1].line())
        else:
            if not self._about:
                self._report(f"{values['devices']} x {', '.join(values['kinds'])}, jax {values['versions']['jax']}")
            self._about.update(values)


def _process(request: Request, scratch: Path, limit: float, output: _Output) -> tuple[int, bool]:
    """Runs the process; returns its exit status, and whether a check took too long."""
    line = [sys.executable, "-m", WORKER, json.dumps(dataclasses.asdict(request))]
    with (scratch / LOG).open("a", encoding="utf-8") as log:
        process = subprocess.Popen([*line, str(scratch)], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        late = False
        try:
            while process.poll() is None:
                time.sleep(POLL)
                output.poll()
                if time.monotonic() - output.since > limit:
                    late = True
                    break
        finally:
            if process.poll() is None:  # it hangs, or a signal ends this process; simulators are of the same session
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    output.poll()
    return process.returncode, late


def _ended(status: int) -> str:
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    return f"its process ended with {status}"


def _failure(scratch: Path, status: int) -> Exception:
    """Why not a single check began."""
    text = (scratch / LOG).read_text(encoding="utf-8", errors="replace")
    last = next((line for line in reversed(text.splitlines()) if line.startswith("error: ")), None)
    if status == 2 and last is not None:
        return UserError(last.removeprefix("error: "))
    return RuntimeError(f"{_ended(status)} before the first check\n{text[-4000:]}")


def _tail(scratch: Path) -> str:
    text = (scratch / LOG).read_text(encoding="utf-8", errors="replace")
    return " ".join(text.split())[-TAIL:] or "nothing"
