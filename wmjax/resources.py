"""Finds the data folders that ship with wmjax, in a repository and in an installed package alike."""

from pathlib import Path
from typing import Literal

from wmjax.cache import cache_root
from wmjax.errors import UserError

MARKERS = {"train": "recipes", "eval": "protocols"}
"""A folder that only our `train` and `eval` contain, so that a stranger's folder is never taken for ours."""


def records_folder() -> Path:
    """Where runs of the benchmark are recorded: ``eval/results`` of a repository, else the cache's ``results``."""
    repository = Path(__file__).resolve().parents[1]
    if (repository / ".git").exists() and (repository / "eval" / "results").is_dir():
        return repository / "eval" / "results"
    return cache_root() / "results"


def resource_folder(name: Literal["train", "eval"]) -> Path:
    """The folder of recipes, scales and launch files (``train``) or of protocols and results (``eval``).

    Raises:
        UserError: neither the repository nor the installed package has it.

    """
    package = Path(__file__).resolve().parent
    for folder in (package.parent / name, package / f"_{name}"):
        if (folder / MARKERS[name]).is_dir():
            return folder
    raise UserError(f"the folder {name!r} of wmjax is missing; reinstall wmjax or run from its repository")
