"""Estimates what a training needs on accelerators that are not available, by compiling its step for them.

python -m wmjax.estimate --config e2_flow --scale 3b --topology v5e:4x4 --batch 128

Prints memory per device and whether it fits, FLOPs, collectives, the time by a roofline model, the memory of the
initialisation, sizes on disk, and what checkpoints and latents take to write.
``--recommend`` tries meshes, rematerialisation and batches, and says which is fastest or how far all are from fitting.
``--features`` estimates the same training on stored features of the vision tower too, ``--decision 1`` what a decision
of the policy needs.
Every setting can be given as ``--section.name VALUE``. The compilers of TPUs and GPUs come by ``./setup.sh estimate``.
"""

import json
import sys
from collections.abc import Sequence

from wmjax.core.command import run_command
from wmjax.core.options import CommandParser, Short
from wmjax.experiment.config import SECTIONS
from wmjax.scaling.answer import answer
from wmjax.scaling.request import add_arguments, from_options


def parser() -> CommandParser:
    """The command line."""
    parser = CommandParser("estimate", __doc__)
    add_arguments(parser)
    parser.add_argument("--recommend", action="store_true", help="try several meshes, remats and batches")
    parser.add_argument("--features", action="store_true", help="also on stored features of the vision tower")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_settings("train", {"batch": Short("batch_size", "samples of a batch, over all devices")})
    parser.add_sections(SECTIONS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; exit status 1 if training, initialisation or decision do not fit, 2 after bad input."""

    def body() -> int:
        options, settings = parser().read(arguments)
        request = from_options(options, settings)
        found, text = answer(request, recommended=options.recommend, features=options.features)
        print(json.dumps(found, indent=1) if options.json else text)
        others = (found.get(name, {}).get("fits") for name in ("initialisation", "decision"))
        return int(False in (found["fits"], *others))

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
