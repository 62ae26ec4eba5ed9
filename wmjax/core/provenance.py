"""The command, the commit and the time that a result comes from."""

import datetime
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def provenance() -> dict[str, str]:
    """The command, the commit it ran at (``-dirty`` with uncommitted changes) and the time."""
    return {
        "command": shlex.join(["python", *_command()]),
        "commit": _commit(),
        "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _command() -> list[str]:
    """What Python was given: a command of wmjax as a module, a benchmark as it was started."""
    if Path(sys.argv[0]).resolve().is_relative_to(ROOT / "benchmarks"):
        return sys.orig_argv[1:]
    return ["-m", "wmjax." + Path(sys.argv[0]).stem, *sys.argv[1:]]


def _commit() -> str:
    if not (ROOT / ".git").exists():  # an installed package, perhaps inside a stranger's repository
        return "unknown"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
