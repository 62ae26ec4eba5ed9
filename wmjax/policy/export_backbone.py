"""Export of a run's vision-language model to files that other libraries read.

A whole backbone is a Hugging Face checkpoint (``config.json``, safetensors, tokenizer); adapters are in PEFT's format.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from wmjax.core.errors import UserError
from wmjax.experiment.config import from_dict
from wmjax.policy.restore import load_model
from wmjax.trainer import checkpoint


def export_backbone(run: Path, out: Path, *, merge: bool = False) -> str:
    """Writes the backbone of a run's newest checkpoint, or of one checkpoint's folder, with averaged parameters.

    Args:
        run: the run's folder, or one of its checkpoints.
        out: an empty or new folder.
        merge: whether adapters are merged into the whole backbone.

    Returns:
        What was written, in words.

    Raises:
        UserError: ``out`` holds files; ``merge`` without adapters; no complete checkpoint.

    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {str(out)!r} is not an empty folder; choose another or delete it")
    found = checkpoint.find(run)
    experiment = from_dict(checkpoint.read_meta(found)["experiment"])
    backbone = load_model(found).backbone
    with _whole_folder(out) as folder:
        return backbone.export(folder, experiment.prompt, experiment.train.published, merge=merge)


@contextlib.contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes ``out`` when all is in it: what is half written has another name."""
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if out.is_dir():  # and empty
        out.rmdir()
    part.rename(out)
