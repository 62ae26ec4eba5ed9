"""Probes backbones that are not fine-tuned yet with ridge regression, beside pooled pixels.

python -m wmjax.probe --data STORE [STORE ...] --backbone FOLDER --backbone random

A backbone is what ``wmjax.train --scale SCALE --train.backbone_weights NAME`` starts from; that of ``random`` follows
from ``--train.seed``. Every setting of the train command can be given. Each backbone has two rows: the image tokens
that the vision tower gives to the text decoder, and the hidden states at the same tokens after its last layer and
norm. The columns are R^2 on the held-out quarter of the episodes and the effective rank. ``encoders_export.probe``
does the same for the latents' encoders.
"""

import argparse
import sys

from wmjax.core import logs
from wmjax.core.command import run_command
from wmjax.core.files import write_json
from wmjax.core.location import local, location
from wmjax.core.settings import parse_overrides
from wmjax.data.store import TrainingStore
from wmjax.diagnostics.probe import format_table
from wmjax.pipeline.probe import probe_backbones


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m wmjax.probe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data", type=location, nargs="+", required=True, help="training stores")
    parser.add_argument("--backbone", action="append", required=True, help="a folder, a hub id or random; repeatable")
    parser.add_argument("--scale", default="mini_lora", help="a file of train/scales (default: mini_lora)")
    parser.add_argument("--camera", default="agentview")
    parser.add_argument("--json", type=local, help="also write the numbers there")

    def body() -> int:
        options, settings = parser.parse_known_args(arguments)
        logs.set_up()
        stores = [TrainingStore(folder) for folder in options.data]
        table = probe_backbones(
            stores,
            options.backbone,
            scale=options.scale,
            camera=options.camera,
            settings=parse_overrides(settings),
        )
        print(format_table(table))
        if options.json:
            write_json(options.json, table)
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
