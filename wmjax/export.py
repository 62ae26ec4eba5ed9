"""Exports a run's vision-language model to files that other libraries read.

python -m wmjax.export --run RUN --out FOLDER           adapters in PEFT's format; without adapters the whole backbone
python -m wmjax.export --run RUN --out FOLDER --merge   the whole backbone, with the adapters merged into it
python -m wmjax.export --run RUN --out FOLDER --policy bfloat16   the whole policy, for wmjax.load_policy

A whole backbone is a Hugging Face checkpoint (``config.json``, safetensors, tokenizer) for ``transformers``, or for the
next run's ``--train.backbone_weights FOLDER``. The averaged parameters are exported. The memory, the Prophet and the
action head have no counterpart in other libraries and stay in the run's own checkpoint.
"""

import sys
from pathlib import Path

from wmjax.core.command import run_command
from wmjax.core.location import local
from wmjax.core.options import CommandParser
from wmjax.policy.export_backbone import export_backbone
from wmjax.policy.saved import save_policy


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = CommandParser("export", __doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run, or one of its checkpoints")
    parser.add_argument("--out", type=local, required=True, help="folder to write; must not hold files")
    parser.add_argument("--merge", action="store_true", help="merge adapters into the backbone")
    parser.add_argument("--policy", choices=("float32", "bfloat16"), help="the whole policy, parameters of this type")

    def body() -> int:
        options, _ = parser.read(arguments)
        if options.policy:
            save_policy(options.run, options.out, options.policy)
            print(f"{options.out}: a policy for wmjax.load_policy, parameters in {options.policy}")
            return 0
        print(f"{options.out}: {export_backbone(options.run, options.out, merge=options.merge)}")
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
