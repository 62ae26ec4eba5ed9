"""Runs a command with faults put back: ``python -m benchmarks.ladder_defects FAULT,FAULT wmjax.train ARGUMENTS``.

``benchmarks/ladder.py`` starts it for the trainings and the evaluations of a rung. The process that ends takes the
faults with it. Simulators run in processes of their own, without the faults, none of which concerns them.
"""

import contextlib
import importlib
import sys
from collections.abc import Sequence

from benchmarks.ladder_defects import PATCHES
from wmjax.core.command import run_command, use_huge_pages
from wmjax.core.errors import UserError, unknown_name

COMMANDS = ("wmjax.train", "wmjax.evaluate")


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 2 where a fault or the command is unknown."""
    words = sys.argv[1:] if words is None else list(words)

    def body() -> int:
        if len(words) < 2:
            raise UserError(f"{len(words)} words given; write FAULT,FAULT and one of {', '.join(COMMANDS)}")
        names, command, *arguments = words
        if command not in COMMANDS:
            raise unknown_name("command", command, COMMANDS)
        with contextlib.ExitStack() as patches:
            for name in names.split(","):
                if name not in PATCHES:
                    raise unknown_name("fault", name, PATCHES)
                patches.enter_context(PATCHES[name]())
            return int(importlib.import_module(command).main(arguments))

    return run_command(body)


if __name__ == "__main__":
    use_huge_pages("benchmarks.ladder_defects")
    sys.exit(main())
