"""The console script ``wmjax``: one entry for every command of the package.

``wmjax train ARGUMENTS`` is ``python -m wmjax.train ARGUMENTS``. The commands are the modules directly in ``wmjax/``,
and their descriptions are the first lines of the modules' docstrings, so a new command needs no registration.
"""

import ast
import runpy
import sys
from pathlib import Path

from wmjax.core.errors import UserError, unknown_name

PACKAGE = Path(__file__).resolve().parents[1]


def commands() -> dict[str, str]:
    """Every command and what it does. Reads the files of the package and imports none of them."""
    paths = sorted(path for path in PACKAGE.glob("*.py") if not path.stem.startswith("_"))
    return {path.stem: _summary(path) for path in paths}


def usage() -> str:
    """The text of ``wmjax --help``."""
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in known.items()]
    return "\n".join(
        ["usage: wmjax COMMAND [ARGUMENTS]", "", *lines, "", "wmjax COMMAND --help describes a command's arguments."]
    )


def main() -> int:
    """Runs the command that the first argument names, in this process.

    Returns:
        The exit status where no command runs: 0 after ``--help``, 2 for a missing or unknown command. A command ends
        the process with its own status.

    """
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name in ("", "-h", "--help"):
        print(usage(), file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    try:
        _require(name)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sys.argv = [name, *arguments]
    # As `python -m` does: simulator workers find the command's module by the name of __main__.
    runpy.run_module(f"wmjax.{name}", run_name="__main__", alter_sys=True)
    return 0


def _require(name: str) -> None:
    if name not in commands():
        raise unknown_name("command", name, commands())


def _summary(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
