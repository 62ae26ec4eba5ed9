"""The locations in a run's settings, when it is read elsewhere: replacements, and the copies in the run's folder.

A run keeps copies of the small folders that its policy needs, its encoder's and its tokenizer's. A run's folder can
therefore move to another machine as a whole.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wmjax.core.errors import UserError
from wmjax.core.paths import atomic_folder
from wmjax.core.settings import dotted, merge, quoted
from wmjax.encoders.base import ENCODERS
from wmjax.experiment.config import FOLDERS, Experiment, anchor, from_dict
from wmjax.models.backbones.base import BACKBONES

ASSETS = "assets"
"""The folder of a run or policy with one folder per setting, such as ``assets/encoder.model/NAME``."""
MAX_BYTES = 64 * 2**20
"""Larger encoders and tokenizers are not copied."""
GROUPS = tuple(dict.fromkeys(group for group, _ in FOLDERS))
"""The sections of settings that may name a folder."""
Places = Mapping[str, Mapping[str, str]]
"""Values of the settings in :data:`wmjax.experiment.config.FOLDERS`, by group and name."""


def read_places(settings: Mapping[str, Any]) -> Places:
    """The places among a command's settings, which come by section; of :data:`GROUPS` it takes no others.

    Raises:
        UserError: another setting of these sections, or a place that is not a text.

    """
    places: dict[str, dict[str, str]] = {}
    for name, value in dotted({group: settings[group] for group in GROUPS if group in settings}).items():
        group, _, setting = name.partition(".")
        if (group, setting) not in FOLDERS:
            known = ", ".join(f"--{'.'.join(place)}" for place in FOLDERS)
            raise UserError(f"unknown option --{name}; of these sections the command takes {known}")
        if not isinstance(value, str):
            raise UserError(f"--{name} is {quoted(value)}; give a folder, a URL or the id of a hub")
        places.setdefault(group, {})[setting] = value
    return places


def experiment_at(values: dict[str, Any], home: Path, places: Places) -> Experiment:
    """A saved experiment with the places that hold here: those given, else the copies below ``home``, else its own.

    Args:
        values: the settings as a checkpoint holds them.
        home: the folder of the run or of the policy.
        places: those that somebody named.

    Raises:
        UserError: settings that this version does not have, or a place that the experiment does not have.

    """
    saved = from_dict(values)
    copies: dict[str, dict[str, str]] = {}
    for group, name in FOLDERS:
        value = getattr(getattr(saved, group), name, "")
        if value and (copy := home / ASSETS / f"{group}.{name}" / Path(value).name).is_dir():
            copies.setdefault(group, {})[name] = str(copy.resolve())
    for group, names in places.items():
        for name in names:
            if name not in values.get(group, {}):
                raise UserError(f"--{group}.{name}: the run has no such setting; leave it out")
    return anchor(from_dict(merge(merge(values, copies), {group: dict(names) for group, names in places.items()})))


def copy_assets(run: Path, experiment: Experiment) -> None:
    """Copies what a run's policy needs of the folders that its settings name into the run, if it is small.

    Files of a hub are downloaded on other machines too, and shipped files exist there.
    """
    encoder, backbone = experiment.encoder, experiment.model.backbone
    needed: dict[str, list[Path]] = {}
    if experiment.model.memory.reads_latents:
        needed["encoder.model"] = ENCODERS.resolve(encoder.kind).files(encoder)
    needed["prompt.tokenizer"] = BACKBONES.resolve(backbone.kind).prompt_files(experiment.prompt)
    for setting, files in needed.items():
        if not files or sum(path.stat().st_size for path in files) > MAX_BYTES:
            continue
        target = run / ASSETS / setting / files[0].parent.name
        if not target.is_dir():
            with atomic_folder(target) as part:
                for path in files:
                    shutil.copyfile(path, part / path.name)
