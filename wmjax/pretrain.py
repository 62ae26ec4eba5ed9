"""Pre-trains a small vision-language model for policies that keep their backbone frozen.

    python -m wmjax.pretrain [--out FOLDER] [any setting of wmjax.train]

The policy is trained by behaviour cloning on demonstrations that are recorded here, of libero_object unless
``--dataset`` says otherwise. Its backbone is then exported as a Hugging Face checkpoint, for ``--scale mini_lora
--train.backbone_weights FOLDER``; its head, state input and action queries are not. Every stage resumes where it was
interrupted, and the policy is not evaluated.
"""

import sys
from collections.abc import Sequence

from wmjax.core import distributed
from wmjax.core.command import run_command, use_huge_pages
from wmjax.core.location import local
from wmjax.core.options import CommandParser
from wmjax.experiment.config import SECTIONS
from wmjax.pipeline.pretrain import pretrain


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = CommandParser("pretrain", __doc__)
    parser.add_argument("--out", type=local, help="folder to write (default: <cache>/backbones/<scale>_<dataset>)")
    parser.add_argument("--config", default="e0_mse", help="a recipe without world memory (default: e0_mse)")
    parser.add_argument("--scale", default="mini", help="a file of train/scales whose backbone is trained")
    parser.add_argument("--dataset", default="object", help="a file of train/data (default: object)")
    parser.add_sections(SECTIONS)

    def body() -> int:
        options, settings = parser.read(arguments)
        pretrain(options.config, options.scale, options.dataset, settings, out=options.out)
        return 0

    return distributed.together(lambda: run_command(body))


if __name__ == "__main__":
    use_huge_pages("wmjax.pretrain")
    sys.exit(main())
