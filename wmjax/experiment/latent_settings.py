"""The latents that a run trains on: what the settings describe, and a store that an export command wrote.

Everything here is checked before anything is recorded. Imports neither jax nor torch.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.location import Location
from wmjax.core.specs import EncoderSpec
from wmjax.data.latents import LatentStore
from wmjax.data.shift import draw_views
from wmjax.encoders.vjepa2.files import encoder_spec

if TYPE_CHECKING:
    from wmjax.experiment.config import DataConfig, EncoderConfig

SETTINGS = {
    "clip_length": ("clip_length", "--clip"),
    "pooling_grid": ("pooling_grid", "--grid"),
    "camera": ("camera", "--camera"),
}
"""The fields of a spec that are settings of their own, and the export's options; the others follow from the model."""


def latent_spec(config: "EncoderConfig", data: "DataConfig") -> EncoderSpec:
    """The spec of the latents that the settings resolve to, checked as far as is possible before anything is recorded.

    Raises:
        UserError: no such encoder, numbers that do not fit it, a camera without frames, a given store of other latents.

    """
    spec = encoder_spec(config.model, config.pooling_grid, config.clip_length, config.camera)
    if not data.path:
        require_camera(config, data.observation.cameras)
    if config.path:
        open_latents(config.path, spec, config.views, config.max_shift)
    return spec


def require_camera(config: "EncoderConfig", cameras: tuple[str, ...]) -> None:
    """Refuses latents of a camera that the frames do not have.

    Raises:
        UserError: names it, and the cameras that there are.

    """
    if config.camera not in cameras:
        raise UserError(f"encoder.camera is {config.camera!r}; the frames are of {', '.join(cameras)}, choose one")


def open_latents(folder: str | Location, spec: EncoderSpec, views: int, max_shift: int) -> LatentStore:
    """Opens a latent store for training, if it is what the settings ask for.

    Its spec takes the settings' name of the encoder: a folder and a hub id may hold the same weights, whose hash
    decides.

    Args:
        folder: the store.
        spec: what ``encoder.model``, ``clip_length``, ``pooling_grid`` and ``camera`` resolve to.
        views: ``encoder.views``.
        max_shift: ``encoder.max_shift``; images without latents are shifted by as much.

    Raises:
        UserError: no store there, or one of other latents: names the setting, both values and the fix.

    """
    latents = LatentStore(folder)
    for field in dataclasses.fields(EncoderSpec):
        mine, theirs = getattr(spec, field.name), getattr(latents.spec, field.name)
        if field.name in ("name", "mean", "std") or mine == theirs:
            continue
        if field.name in SETTINGS:
            raise _other_setting(folder, *SETTINGS[field.name], mine, theirs)
        raise UserError(
            f"EncoderSpec.{field.name} differs: {mine!r} of encoder.model {spec.name!r}, {theirs!r} in latent store "
            f"{folder}, encoded with {latents.spec.name!r}; set --encoder.model to that encoder, or export again"
        )
    _require_views(latents, views, max_shift)
    latents.spec = dataclasses.replace(latents.spec, name=spec.name)
    return latents


def _require_views(latents: LatentStore, views: int, max_shift: int) -> None:
    """Refuses a store whose shifts are not those that the settings draw."""
    episodes, count = latents.views.shape[:2]
    if count != views:
        raise _other_setting(latents.folder, "views", "--views", views, count)
    if np.array_equal(latents.views, draw_views(episodes, views, 0, max_shift)):
        return
    largest = int(np.abs(latents.views).max())
    # The largest shift that was drawn is the limit, or a little less in a store of few episodes.
    for limit in range(largest, 2 * largest + 8):
        if np.array_equal(latents.views, draw_views(episodes, views, 0, limit)):
            raise _other_setting(latents.folder, "max_shift", "--max-shift", max_shift, limit)
    raise UserError(
        f"encoder.max_shift is {max_shift}; latent store {latents.folder} has shifts of up to {largest} px that no "
        f"setting draws, export it again with --max-shift {max_shift}"
    )


def _other_setting(folder: str | Location, setting: str, option: str, mine: object, theirs: object) -> UserError:
    return UserError(
        f"encoder.{setting} is {mine!r}, latent store {folder} has {theirs!r}; set --encoder.{setting} {theirs}, "
        f"or export another store with {option} {mine}"
    )
