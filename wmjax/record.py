"""Records demonstrations of a scripted expert in LIBERO as a training store.

python -m wmjax.record --out STORE

By default the executed actions of most episodes are perturbed (``--perturbed``), and failures are provoked
(``--failures``); the stored labels are the expert's own actions. With ``--every-step`` every control step has an image,
and the output is a LeRobot v3.0 dataset with the keys and conventions of ``HuggingFaceVLA/libero``. With
``--random-motion`` the arm moves at random through the scenes of many tasks, for the pre-training and the probing of
encoders.
"""

import sys
from collections.abc import Sequence

from wmjax.core import logs
from wmjax.core.command import run_command
from wmjax.core.location import local
from wmjax.core.options import CommandParser
from wmjax.core.settings import build
from wmjax.pipeline.record import SHORTS, RecordSettings, run_recording


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = CommandParser("record", __doc__)
    parser.add_argument("--out", type=local, required=True, help="folder to write; resumed if it exists")
    parser.add_settings("record", SHORTS, RecordSettings())

    def body() -> int:
        options, settings = parser.read(arguments)
        logs.set_up()
        store = run_recording(options.out, build(RecordSettings, settings["record"], "record."))
        print(f"{options.out}: {len(store.episodes)} episodes, {len(store.state)} control steps")
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
