"""The command, the commit and the time that a result comes from."""

import datetime
import shlex
import subprocess
import sys
from pathlib import Path


def provenance() -> dict[str, str]:
    """The command, the commit it ran at (``-dirty`` with uncommitted changes) and the time."""
    return {
        "command": shlex.join(["python", "-m", "wmjax." + Path(sys.argv[0]).stem, *sys.argv[1:]]),
        "commit": _commit(),
        "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str:
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():  # an installed package, perhaps inside a stranger's repository
        return "unknown"
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
