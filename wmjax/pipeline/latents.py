"""A run's latents: the train command encodes them once, and commands that read the run find them again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wmjax.core.command import Progress
from wmjax.core.location import Remote, location
from wmjax.core.paths import cache_root
from wmjax.core.specs import EncoderSpec, from_dict, require_equal, spec_hash
from wmjax.data.latents import LatentStore
from wmjax.data.shift import ViewTable, draw_views
from wmjax.data.store import TrainingStore
from wmjax.data.union import UnionLatents, UnionStore
from wmjax.encoders.base import ENCODERS, EncoderConfig, Exporter, describe
from wmjax.encoders.encode import encode_store
from wmjax.experiment.config import Experiment
from wmjax.experiment.latent_settings import latent_spec, open_latents, require_camera
from wmjax.pipeline.demonstrations import recorded_folder


def latents_or_views(experiment: Experiment, store: TrainingStore, spec: EncoderSpec | None) -> LatentStore | ViewTable:
    """The latents that an experiment trains on, or only the shifts of their views if it reads no latents.

    Args:
        experiment: all settings.
        store: the demonstrations.
        spec: of the latents; None if the experiment's model reads none.

    Raises:
        UserError: see :func:`encode`.

    """
    config = experiment.encoder.with_default_camera(store.spec.cameras)
    if spec is not None:
        return encode(experiment, store, spec)
    require_camera(config, store.spec.cameras)
    store.verify_once()
    # Of each store as of its latents, so that all models train on the same pixels.
    stores = store.stores if isinstance(store, UnionStore) else (store,)
    views = [draw_views(len(one.episodes), config.views, 0, config.max_shift) for one in stores]
    return ViewTable(np.concatenate(views), config.cameras)


def encode(experiment: Experiment, store: TrainingStore, spec: EncoderSpec | None = None) -> LatentStore:
    """The latent store of a training store and an encoder: a given one, or made here once.

    Raises:
        UserError: the given one is of other frames, encoder or camera; bytes of either store are not those written.

    """
    config = experiment.encoder.with_default_camera(store.spec.cameras)
    spec = spec or latent_spec(config, experiment.data)
    if isinstance(store, UnionStore):
        return UnionLatents([encode(experiment, one, spec) for one in store.stores])
    require_camera(config, store.spec.cameras)
    store.verify_once()
    if config.path:
        latents = open_latents(config, spec)
    else:
        latents = encode_once(store, _encoded(config, spec, store), lambda: make_encoder(config), config, "encoding")
    latents.check(store)
    latents.verify_once()
    return latents


def encode_once(
    store: TrainingStore, folder: Path, encoder: Callable[[], Exporter], config: EncoderConfig, what: str, **form: Any
) -> LatentStore:
    """A latent store in the cache, made if it is not there.

    Args:
        store: the training store, verified.
        folder: where it is, see :func:`encoded_folder`.
        encoder: makes what encodes it, if it has to be made.
        config: the views.
        what: for the progress.
        **form: ``dtype`` and ``branches`` of :func:`wmjax.encoders.encode.encode_store`.

    """
    if not (folder / "manifest.json").is_file():
        progress = Progress(what, "episodes")
        encode_store(
            store, folder, encoder(), views=config.views, max_shift=config.max_shift, progress=progress, **form
        )
    return LatentStore(folder)


def encoded_folder(kind: str, spec: EncoderSpec, store: TrainingStore, config: EncoderConfig, form: str) -> Path:
    """The folder in the cache of what an encoder makes of a training store, for each ``kind`` of store and form."""
    name = f"{spec_hash(spec)}-{store.hash[:8]}-{config.views}x{config.max_shift}-{form}"
    return cache_root() / kind / name


def _encoded(config: EncoderConfig, spec: EncoderSpec, store: TrainingStore) -> Path:
    """The folder of latents that are encoded here."""
    return encoded_folder("latents", spec, store, config, config.backend)


def made_before(experiment: Experiment) -> tuple[TrainingStore, LatentStore] | None:
    """Demonstrations and latents of an experiment if they already exist; nothing is made, downloaded or hashed."""
    config = experiment.encoder
    if len(experiment.data.places) > 1:
        return None
    demos = location(*experiment.data.places or (recorded_folder(experiment),))
    if isinstance(demos, Remote) or not (demos / "manifest.json").is_file():
        return None
    store = TrainingStore(demos)
    latents = location(config.path or _encoded(config, latent_spec(config, experiment.data), store))
    if isinstance(latents, Remote) or not (latents / "manifest.json").is_file():
        return None
    return store, LatentStore(latents)


def find_latents(experiment: Experiment, store: TrainingStore, saved: dict[str, Any] | None) -> LatentStore | None:
    """The latents that the run was trained on, encoded again if necessary; None if its variant reads none.

    Raises:
        UserError: the encoder is not the one in the checkpoint.

    """
    if saved is None:
        return None

    config, then = experiment.encoder, from_dict(EncoderSpec, saved, "the checkpoint")
    require_equal(describe(config), then, "the settings encoder.*", "the checkpoint", ignore=("mean", "std"))
    return encode(experiment, store)


def make_encoder(config: EncoderConfig) -> Exporter:
    """The latent encoder in the framework that the settings name.

    Raises:
        UserError: the framework is not installed, or the encoder does not exist in it.

    """
    return ENCODERS.resolve(config.kind).for_export(config)
