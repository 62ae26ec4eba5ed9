"""Converts a LeRobot dataset, or LIBERO's HDF5 demonstrations, to a training store.

python -m wmjax.convert DATA --out STORE
"""

import sys
from collections.abc import Sequence

from wmjax.core.command import print_progress, run_command
from wmjax.core.location import local
from wmjax.core.options import CommandParser
from wmjax.core.settings import build
from wmjax.data.formats.base import ConvertSettings
from wmjax.pipeline.convert import SHORTS, convert_dataset, describe_store


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = CommandParser("convert", __doc__)
    parser.add_argument(
        "data",
        help="LeRobot dataset: a folder, or a hub id such as HuggingFaceVLA/libero; or a folder of LIBERO HDF5 files",
    )
    parser.add_argument("--out", type=local, required=True, help="the training store to write")
    parser.add_settings("convert", SHORTS, ConvertSettings())

    def body() -> int:
        options, settings = parser.read(arguments)
        chosen = build(ConvertSettings, settings["convert"], "convert.")
        print(describe_store(convert_dataset(options.data, options.out, chosen, print_progress)))
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
