"""Export of a run's vision-language model to files that other libraries read.

A whole backbone is a Hugging Face checkpoint (``config.json``, safetensors, tokenizer); adapters are in PEFT's format.
"""

from pathlib import Path

from wmjax.core.errors import UserError
from wmjax.core.location import Location
from wmjax.core.paths import atomic_folder
from wmjax.policy.saved import find_policy


def export_backbone(run: str | Location, out: Path, *, merge: bool = False) -> str:
    """Writes the backbone of a policy, with averaged parameters.

    Args:
        run: what :func:`wmjax.policy.saved.find_policy` takes.
        out: an empty or new folder.
        merge: whether adapters are merged into the whole backbone.

    Returns:
        What was written, in words.

    Raises:
        UserError: ``out`` holds files; ``merge`` without adapters; no complete checkpoint.

    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {str(out)!r} is not an empty folder; choose another or delete it")
    found = find_policy(run)
    experiment, backbone = found.experiment, found.model().backbone
    with atomic_folder(out) as folder:
        return backbone.export(folder, experiment.prompt, experiment.train.published, merge=merge)
