"""Pre-training of a small backbone: a policy without world memory is trained, then its backbone is exported."""

from pathlib import Path
from typing import Any

from wmjax.core.distributed import is_first
from wmjax.core.errors import UserError
from wmjax.core.paths import cache_root, require_place
from wmjax.experiment.config import load
from wmjax.pipeline import train
from wmjax.policy.export_backbone import export_backbone


def pretrain(recipe: str, scale: str, dataset: str, settings: dict[str, Any], *, out: Path | None = None) -> None:
    """Trains a policy without evaluating it, and writes its backbone as a Hugging Face checkpoint.

    Args:
        recipe: a recipe without world memory, such as ``e0_mse``.
        scale: a file of ``train/scales``.
        dataset: a file of ``train/data``.
        settings: nested settings, laid over the files.
        out: the folder to write; ``<cache>/backbones/<scale>_<dataset>`` when None.

    Raises:
        UserError: ``out`` holds files, or see :func:`wmjax.pipeline.train.run`.

    """
    out = out or cache_root() / "backbones" / f"{scale}_{dataset}"
    require_place(out, "--out", "folder")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} exists already; delete it to train it again, or choose another with --out")
    run = cache_root() / "runs" / load(recipe, scale, dataset, settings).name
    train.run(recipe, scale, dataset, settings, folder=run, evaluates=False)
    if is_first():
        print(f"{out}: {export_backbone(run, out)}")
