"""Exports a run's policy, or its vision-language model to files that other libraries read.

python -m wmjax.export --run RUN --out FOLDER           adapters in PEFT's format; without adapters the whole backbone
python -m wmjax.export --run RUN --out FOLDER --merge   the whole backbone, with the adapters merged into it
python -m wmjax.export --run RUN --out FOLDER --policy bfloat16   the whole policy, for wmjax.load_policy
python -m wmjax.export --run RUN --out FOLDER --format hub [--push OWNER/NAME]   the same with a model card
python -m wmjax.export --run RUN --out FOLDER --format lerobot    the same with what LeRobot's --policy.path reads

A whole backbone is a Hugging Face checkpoint (``config.json``, safetensors, tokenizer) for ``transformers``, or for the
next run's ``--train.backbone_weights FOLDER``. The averaged parameters are exported. The memory, the Prophet and the
action head have no counterpart in other libraries and stay in the run's own checkpoint.

``--format`` writes float32 unless ``--policy`` says otherwise. ``--push`` needs ``hf auth login`` or ``HF_TOKEN``.
"""

import sys

from wmjax.core.command import run_command
from wmjax.core.errors import UserError
from wmjax.core.location import local, location
from wmjax.core.options import CommandParser
from wmjax.pipeline.export_policy import export_for
from wmjax.policy.export_backbone import export_backbone
from wmjax.policy.saved import save_policy


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = CommandParser("export", __doc__)
    parser.add_argument("--run", type=location, required=True, help="folder or URL of a run, a checkpoint or a policy")
    parser.add_argument("--out", type=local, required=True, help="folder to write; must not hold files")
    parser.add_argument("--merge", action="store_true", help="merge adapters into the backbone")
    parser.add_argument("--policy", choices=("float32", "bfloat16"), help="the whole policy, parameters of this type")
    parser.add_argument("--format", choices=("hub", "lerobot"), help="the whole policy for the hub, or LeRobot")
    parser.add_argument("--push", metavar="OWNER/NAME", help="with --format: the repository to upload to")
    parser.add_argument("--private", action="store_true", help="with --push: a new repository is private")

    def body() -> int:
        options, _ = parser.read(arguments)
        if options.merge and (options.policy or options.format):
            raise UserError("--merge is of the backbone; leave it out with --policy and --format")
        if (options.push and not options.format) or (options.private and not options.push):
            raise UserError("--push needs --format hub or lerobot, and --private needs --push; give them together")
        if options.format:
            place = {"push": options.push, "private": options.private}
            description = export_for(options.format, options.run, options.out, options.policy or "float32", **place)
        elif options.policy:
            save_policy(options.run, options.out, options.policy)
            description = f"a policy for wmjax.load_policy, parameters in {options.policy}"
        else:
            description = export_backbone(options.run, options.out, merge=options.merge)
        print(f"{options.out}: {description}")
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
