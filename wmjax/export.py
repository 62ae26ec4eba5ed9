"""Exports a run's vision-language model to files that other libraries read.

python -m wmjax.export --run RUN --out FOLDER           adapters in PEFT's format; without adapters the whole backbone
python -m wmjax.export --run RUN --out FOLDER --merge   the whole backbone, with the adapters merged into it

A whole backbone is a Hugging Face checkpoint (``config.json``, safetensors, tokenizer) for ``transformers``, or for the
next run's ``--train.backbone_weights FOLDER``. The averaged parameters are exported. The memory, the Prophet and the
action head have no counterpart in other libraries and stay in the run's own checkpoint.
"""

import argparse
import sys
from pathlib import Path

from wmjax.core.command import run_command
from wmjax.core.location import local
from wmjax.policy.export_backbone import export_backbone


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m wmjax.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a run, or one of its checkpoints")
    parser.add_argument("--out", type=local, required=True, help="folder to write; must not hold files")
    parser.add_argument("--merge", action="store_true", help="merge adapters into the backbone")

    def body() -> int:
        options = parser.parse_args(arguments)
        print(f"{options.out}: {export_backbone(options.run, options.out, merge=options.merge)}")
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
