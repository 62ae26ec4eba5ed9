"""The process that compiles: ``python -m wmjax.scaling.worker REQUEST ANSWER``, started by :mod:`.compilers`."""

import json
import sys
from pathlib import Path

from wmjax.core.command import run_command
from wmjax.scaling.estimate import estimate
from wmjax.scaling.request import Request


def main() -> int:
    """Writes the answer as JSON to the file that the second argument names."""

    def body() -> int:
        found = estimate(Request(**json.loads(sys.argv[1])))
        Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
