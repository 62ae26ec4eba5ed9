"""Evaluates a policy in closed loop in the simulator and reports its success rate.

python -m wmjax.evaluate --run RUN --protocol spatial_dev
python -m wmjax.evaluate --policy ws://HOST:PORT     a policy of others, served by their own server (docs/serving.md)

Every field of the protocol can be given as ``--protocol.NAME VALUE``, such as ``--protocol.execution_delay 8``; the
shorter options below set the same fields. What differs from the protocol's file is recorded in ``header.json``.
On another machine, ``--encoder.model FOLDER`` and the like say where what the run was trained with lies now.
"""

import sys
from collections.abc import Sequence

from wmjax.core import logs
from wmjax.core.command import run_command
from wmjax.core.location import local, location
from wmjax.core.options import CommandParser
from wmjax.pipeline.evaluate_command import run_evaluation
from wmjax.pipeline.evaluate_scripted import SCRIPTED
from wmjax.pipeline.evaluate_served import add_served_options, policy_name
from wmjax.policy.places import GROUPS, read_places
from wmjax.rollout.protocol import CHANGES, protocol_names
from wmjax.rollout.settings import SHORTS, EvaluateSettings, from_command_line


def parser() -> CommandParser:
    """The command line."""
    parser = CommandParser("evaluate", __doc__)
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--run", type=location, help="folder or URL of a run or policy, mini, or hub:OWNER/NAME")
    who.add_argument("--policy", type=policy_name, help=f"{', '.join(SCRIPTED)}, or the URL of a server")
    parser.add_argument("--protocol", default="spatial_dev", help=f"{', '.join(protocol_names())}, or a .toml file")
    parser.add_argument("--out", type=local, help="results folder; default RUN/evaluations/STEP/PROTOCOL")
    parser.add_argument("--data", type=location, help="training store to replay, to check with, or of the run")
    add_served_options(parser)
    parser.add_settings("protocol", CHANGES)
    parser.add_settings("evaluation", SHORTS, EvaluateSettings())
    for group in ("foreign", *GROUPS):
        parser.add_settings(group, {})
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""

    def body() -> int:
        options, settings = parser().read(arguments)
        chosen = from_command_line(settings["evaluation"])
        return run_evaluation(
            chosen, settings["protocol"], settings["foreign"], places=read_places(settings), **vars(options)
        )

    logs.set_up()
    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
