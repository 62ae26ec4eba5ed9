"""Checks that this machine can run wmjax and that the simulator renders what it should.

python -m wmjax.doctor

Each line of the output is marked ok, note or FAIL. A failure names its fix and makes the exit status 1.
"""

import sys

from wmjax.core.command import run_command
from wmjax.core.options import CommandParser
from wmjax.core.paths import size_report
from wmjax.pipeline.machine_check import run_checks


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 1 if a check failed."""
    parser = CommandParser("doctor", __doc__)

    def body() -> int:
        parser.read(arguments)
        failed = any(finding.status == "FAIL" for finding in run_checks())
        print(size_report())
        return int(failed)

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
