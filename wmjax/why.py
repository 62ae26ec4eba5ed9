"""Explains why a policy with a low loss fails in closed loop: the likely causes first, with commands.

python -m wmjax.why --run RUN

Failed episodes of the run's newest evaluation are run again, and the simulator's state says how each failed: missed
grasp, never closed, empty carry, drop, misplacement, wrong object, stuck, never started or knocked over. With the run's
demonstrations at hand, some are replayed, and the policy is scored on them by phase of the task, with other inputs and
without noise.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from wmjax.core import logs
from wmjax.core.command import run_command, whole_number
from wmjax.core.location import local, location
from wmjax.core.options import CommandParser, number_list
from wmjax.pipeline.why import explain


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = CommandParser("why", __doc__)
    parser.add_argument("--run", required=True, help="folder or URL of a run or one of its checkpoints, or mini")
    parser.add_argument("--evaluation", type=local, help="results whose failures are explained (default: the newest)")
    parser.add_argument("--tasks", type=number_list, default=(), help="task ids, such as 0,1 (default: all)")
    parser.add_argument(
        "--episodes", type=whole_number("episodes", 1), default=10, help="failed episodes per task (default: 10)"
    )
    parser.add_argument("--data", type=location, help="the run's training store, if it is not in the cache")
    parser.add_argument("--workers", type=whole_number("workers", 1), default=2, help="simulator processes")

    def body() -> int:
        options, _ = parser.read(arguments)
        logs.set_up()
        explain(
            str(local(options.run)) if Path(options.run).exists() else options.run,
            evaluation=options.evaluation,
            tasks=options.tasks,
            per_task=options.episodes,
            data=options.data,
            workers=options.workers,
        )
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
