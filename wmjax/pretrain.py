"""Pre-trains a small vision-language model, for a policy that keeps its backbone frozen (``--scale mini_lora``).

    python -m wmjax.pretrain [--out FOLDER] [any setting of wmjax.train]

Behaviour cloning on demonstrations that are recorded here, of libero_object unless ``--dataset`` says otherwise; then
the policy's backbone is exported as a Hugging Face checkpoint, for ``--train.backbone_weights FOLDER``. Head, state
input and action queries are not kept. Every stage resumes where it was interrupted; the policy is not evaluated.
"""

import argparse
import sys
from pathlib import Path

from wmjax.commands import run_command, use_huge_pages
from wmjax.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    from wmjax.data.location import local

    parser = argparse.ArgumentParser(
        prog="python -m wmjax.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=local, help="folder to write (default: <cache>/backbones/<scale>_<dataset>)")
    parser.add_argument("--config", default="e0_mse", help="a recipe without world memory (default: e0_mse)")
    parser.add_argument("--scale", default="mini", help="a file of train/scales whose backbone is trained")
    parser.add_argument("--dataset", default="object", help="a file of train/data (default: object)")

    def body() -> int:
        options, rest = parser.parse_known_args(arguments)
        return _run(options, rest)

    return run_command(body)


def _run(options: argparse.Namespace, settings: list[str]) -> int:
    from wmjax import export, train
    from wmjax.cache import cache_root
    from wmjax.config import load
    from wmjax.distributed import is_first
    from wmjax.typed import parse_overrides

    out: Path = options.out or cache_root() / "backbones" / f"{options.scale}_{options.dataset}"
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is there already; delete it to train it again, or choose another with --out")
    chosen = ["--config", options.config, "--scale", options.scale, "--dataset", options.dataset]
    name = load(options.config, options.scale, options.dataset, parse_overrides(settings)).name
    run = cache_root() / "runs" / name
    status = train.main([*chosen, *settings, "--run", str(run), "--no-evaluation"])
    return status if status or not is_first() else export.main(["--run", str(run), "--out", str(out)])


if __name__ == "__main__":
    use_huge_pages("wmjax.pretrain")
    sys.exit(main())
