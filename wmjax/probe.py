"""Probes backbones that are not fine-tuned yet with ridge regression, beside pooled pixels.

python -m wmjax.probe --data STORE [STORE ...] --backbone FOLDER --backbone random

A backbone is what ``wmjax.train --scale SCALE --train.backbone_weights NAME`` starts from; that of ``random`` follows
from ``--train.seed``. Every setting of the train command can be given. Each backbone has two rows: the image tokens
that the vision tower gives to the text decoder, and the hidden states at the same tokens after its last layer and
norm. The columns are R^2 on the held-out quarter of the episodes and the effective rank. ``encoders_export.probe``
does the same for the latents' encoders.
"""

import sys
from collections.abc import Sequence

from wmjax.core import logs
from wmjax.core.command import run_command
from wmjax.core.files import write_json
from wmjax.core.location import local, location
from wmjax.core.options import CommandParser
from wmjax.core.paths import require_place
from wmjax.data.store import TrainingStore
from wmjax.diagnostics.probe import format_table
from wmjax.experiment.config import SECTIONS
from wmjax.pipeline.probe import probe_backbones


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = CommandParser("probe", __doc__)
    parser.add_argument("--data", type=location, nargs="+", required=True, help="training stores")
    parser.add_argument("--backbone", action="append", required=True, help="a folder, a hub id or random; repeatable")
    parser.add_argument("--scale", default="mini_lora", help="a file of train/scales (default: mini_lora)")
    parser.add_argument("--camera", help="the camera whose tokens are read (default: the stores' first)")
    parser.add_argument("--json", type=local, help="also write the numbers there")
    parser.add_sections(SECTIONS)

    def body() -> int:
        options, settings = parser.read(arguments)
        logs.set_up()
        if options.json:
            require_place(options.json, "--json", "JSON file")
        stores = [TrainingStore(folder) for folder in options.data]
        chosen = {"scale": options.scale, "camera": options.camera, "settings": settings}
        table = probe_backbones(stores, options.backbone, **chosen)
        print(format_table(table))
        if options.json:
            write_json(options.json, table)
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
