"""A run's vision-language model as files that other libraries read.

python -m wmjax.export --run RUN --out FOLDER           adapters in PEFT's format; without adapters the whole backbone
python -m wmjax.export --run RUN --out FOLDER --merge   the whole backbone, adapters merged into it

A whole backbone is a Hugging Face checkpoint (``config.json``, safetensors, tokenizer) for ``transformers``, or for the
next run's ``--train.backbone_weights FOLDER``. Averaged parameters. The memory, the Prophet and the action head have no
counterpart elsewhere and stay in the run's own checkpoint.
"""

import argparse
import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from wmjax.commands import run_command
from wmjax.data.location import local
from wmjax.errors import UserError


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
        return _run(options.run, options.out, options.merge)

    return run_command(body)


def _run(run: Path, out: Path, merge: bool) -> int:
    from wmjax import checkpoint
    from wmjax.config import from_dict
    from wmjax.models.prompts import tokenizer_folder
    from wmjax.models.qwen2_5_vl import adapters, weights
    from wmjax.models.qwen2_5_vl.model import Qwen2_5_VL
    from wmjax.models.qwen2_5_vl.prompt import COMPANIONS
    from wmjax.restore import load_model

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {str(out)!r} is not an empty folder; choose another or delete it")
    found = checkpoint.find(run)
    experiment = from_dict(checkpoint.read_meta(found)["experiment"])
    backbone = load_model(found).backbone
    assert isinstance(backbone, Qwen2_5_VL)  # what every config builds
    adapted = backbone.config.lora.rank > 0
    if merge and not adapted:
        raise UserError("--merge: the run has no adapters (model.backbone.lora.rank is 0); leave --merge out")
    with _whole_folder(out) as folder:
        if adapted and not merge:
            adapters.save(backbone, folder, base=experiment.train.published)
        else:
            weights.save(adapters.merge(backbone) if merge else backbone, folder)
            source = tokenizer_folder(experiment.prompt.tokenizer)
            for name in COMPANIONS:
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)
    what = "adapters in PEFT's format" if adapted and not merge else "the backbone as a Hugging Face checkpoint"
    print(f"{out}: {what}")
    return 0


@contextlib.contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes ``out`` when all is in it: what is half written has another name."""
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    if out.is_dir():  # and empty
        out.rmdir()
    part.rename(out)


if __name__ == "__main__":
    sys.exit(main())
