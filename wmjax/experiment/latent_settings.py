"""The latents that a run trains on: what the settings describe, and a store that an export command wrote.

Everything here is checked before anything is recorded. Imports neither jax nor torch.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.location import Location
from wmjax.core.specs import EncoderSpec
from wmjax.data.latents import LatentStore
from wmjax.data.shift import draw_views
from wmjax.encoders.base import EncoderConfig, describe

if TYPE_CHECKING:
    from wmjax.experiment.data_config import DataConfig

OPTIONS = {
    "views": "--views",
    "max_shift": "--max-shift",
    "clip_length": "--clip",
    "pooling_grid": "--grid",
    "cameras": "--camera",
    "precision": "--precision",
}
"""The export command's short options of settings; the others are spelled ``--encoder.name`` there too."""


def latent_spec(config: EncoderConfig, data: "DataConfig") -> EncoderSpec:
    """The spec of the latents that the settings resolve to, checked as far as is possible before anything is recorded.

    Raises:
        UserError: no such encoder, numbers that do not fit it, a camera without frames, a given store of other latents.

    """
    config = config.with_default_camera(data.observation.cameras)
    spec = describe(config)
    if not data.places:
        require_camera(config, data.observation.cameras)
    if config.path and len(data.places) > 1:
        raise UserError(
            f"encoder.path is {config.path}, one latent store for {len(data.places)} training stores; leave it out, "
            "each store's latents are encoded and kept in the cache"
        )
    if config.path:
        open_latents(config, spec)
    return spec


def require_camera(config: EncoderConfig, cameras: tuple[str, ...]) -> None:
    """Refuses latents of a camera that the frames do not have.

    Raises:
        UserError: names it, and the cameras that there are.

    """
    for camera in config.cameras:
        if camera not in cameras:
            raise UserError(f"encoder.cameras has {camera!r}; the frames are of {', '.join(cameras)}, choose from them")


def open_latents(config: EncoderConfig, spec: EncoderSpec) -> LatentStore:
    """Opens the latent store at ``encoder.path`` for training, if it matches the settings.

    Its spec takes the settings' name of the encoder: a folder and a hub id may hold the same weights, whose hash
    decides.

    Args:
        config: the settings; ``max_shift`` counts too, because images without latents are shifted by as much.
        spec: what they resolve to.

    Raises:
        UserError: no store there, or one of other latents: names the setting, both values and the fix.

    """
    latents = LatentStore(config.path)
    settings = {field.name for field in dataclasses.fields(config)}
    for name, mine, theirs in differences(spec, latents.spec):
        if name in settings:
            raise _other_setting(config.path, name, mine, theirs)
        raise UserError(
            f"EncoderSpec.{name} differs: {mine!r} of encoder {spec.kind} {spec.name!r}, {theirs!r} in latent store "
            f"{config.path}, encoded with {latents.spec.kind} {latents.spec.name!r}; choose that one, or export again"
        )
    _require_views(latents, config.views, config.max_shift)
    latents.spec = dataclasses.replace(latents.spec, name=spec.name)
    return latents


def differences(spec: EncoderSpec, other: EncoderSpec) -> Iterator[tuple[str, Any, Any]]:
    """The differences between the latents of two specs, with both values; names and statistics do not count."""
    mine, theirs = ({**dataclasses.asdict(each), **each.parameters} for each in (spec, other))
    # What a setting chooses comes first: the other fields follow from it.
    order = ("kind", "clip_length", "cameras", *sorted(spec.parameters.keys() | other.parameters.keys()), *mine)
    for name in dict.fromkeys(order):
        if name not in ("name", "mean", "std", "parameters") and mine.get(name) != theirs.get(name):
            yield name, mine.get(name), theirs.get(name)


def _require_views(latents: LatentStore, views: int, max_shift: int) -> None:
    """Refuses a store whose shifts are not those that the settings draw."""
    episodes, count = latents.views.shape[:2]
    if count != views:
        raise _other_setting(latents.folder, "views", views, count)
    if np.array_equal(latents.views, draw_views(episodes, views, 0, max_shift)):
        return
    largest = int(np.abs(latents.views).max())
    # The largest shift that was drawn is the limit, or a little less in a store of few episodes.
    for limit in range(largest, 2 * largest + 8):
        if np.array_equal(latents.views, draw_views(episodes, views, 0, limit)):
            raise _other_setting(latents.folder, "max_shift", max_shift, limit)
    raise UserError(
        f"encoder.max_shift is {max_shift}; latent store {latents.folder} has shifts of up to {largest} px that no "
        f"setting draws, export it again with --max-shift {max_shift}"
    )


def _other_setting(folder: str | Location, setting: str, mine: Any, theirs: Any) -> UserError:
    option = OPTIONS.get(setting, f"--encoder.{setting}")
    mine, theirs = (value if isinstance(value, str) else json.dumps(value) for value in (mine, theirs))
    return UserError(
        f"encoder.{setting} is {mine}, latent store {folder} has {theirs}; set --encoder.{setting} {theirs}, "
        f"or export another store with {option} {mine}"
    )
