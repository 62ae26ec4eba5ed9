"""A run's demonstrations and latents: made once by the train command, found again by those that look at the run.

Nothing heavy is imported at module level: spawned simulator processes import the train command, which imports this.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmjax.commands import Progress
from wmjax.errors import UserError

if TYPE_CHECKING:
    from wmjax.config import EncoderConfig, Experiment
    from wmjax.data.encode import Encoder
    from wmjax.data.latents import LatentStore
    from wmjax.data.location import Location
    from wmjax.data.store import TrainingStore
    from wmjax.specs import EncoderSpec


def demonstrations(experiment: "Experiment") -> "TrainingStore":
    """The training store of the experiment: a given one, or recorded here once per data config."""
    from wmjax.data.store import TrainingStore
    from wmjax.sim.record import record

    data = experiment.data
    if data.path:
        return TrainingStore(data.path)
    folder = _recorded(experiment)
    if (folder / "manifest.json").is_file():
        return TrainingStore(folder)
    return record(
        folder,
        data.suite,
        data.tasks,
        data.episodes_per_task,
        data.observation,
        workers=data.workers,
        config=data.demonstrations,
    )


def find_store(experiment: "Experiment", data: "Location | None") -> "TrainingStore":
    """The demonstrations that a run was trained on: the given ones, or what it recorded. Never records any.

    Raises:
        UserError: they are not there; recording others would take half an hour and be other data.

    """
    from wmjax.data.store import TrainingStore

    if data is not None or experiment.data.path:
        return TrainingStore(data or experiment.data.path)
    folder = _recorded(experiment)
    if not (folder / "manifest.json").is_file():
        raise UserError(f"demonstrations {folder} are not in the cache; name the run's training store with --data")
    return TrainingStore(folder)


def _recorded(experiment: "Experiment") -> Path:
    """Where the demonstrations of an experiment lie that were recorded here."""
    from wmjax.cache import cache_root

    return cache_root() / "demos" / f"{experiment.dataset}-{experiment.data.identity()}"


def encode(experiment: "Experiment", store: "TrainingStore") -> "LatentStore":
    """The latent store of a training store and an encoder: a given one, or made here once.

    Arms without world memory use its table of image shifts too, so that all arms train on the same pixels.

    Raises:
        UserError: the given one is of other frames, encoder or camera; bytes of either store are not those written.

    """
    from wmjax.data.encode import encode_store
    from wmjax.data.latents import LatentStore
    from wmjax.encoder_settings import latent_spec, open_latents, require_camera

    config, spec = experiment.encoder, latent_spec(experiment.encoder, experiment.data)
    require_camera(config, store.spec.cameras)
    store.verify_once()
    if config.path:
        latents = open_latents(config.path, spec, config.views, config.max_shift)
    else:
        folder = _encoded(config, spec, store)
        if not (folder / "manifest.json").is_file():
            encoder = make_encoder(config)
            progress = Progress("encoding", "episodes")
            encode_store(store, folder, encoder, views=config.views, max_shift=config.max_shift, progress=progress)
        latents = LatentStore(folder)
    latents.check(store)
    latents.verify_once()
    return latents


def _encoded(config: "EncoderConfig", spec: "EncoderSpec", store: "TrainingStore") -> Path:
    """Where latents lie that were made here."""
    from wmjax.cache import cache_root
    from wmjax.specs import spec_hash

    name = f"{spec_hash(spec)}-{store.hash[:8]}-{config.views}x{config.max_shift}-{config.backend}"
    return cache_root() / "latents" / name


def made_before(experiment: "Experiment") -> "tuple[TrainingStore, LatentStore] | None":
    """Demonstrations and latents of an experiment if they lie here already; nothing is made, downloaded or hashed."""
    from wmjax.data.latents import LatentStore
    from wmjax.data.location import Remote, location
    from wmjax.data.store import TrainingStore
    from wmjax.encoder_settings import latent_spec

    config = experiment.encoder
    demos = location(experiment.data.path or _recorded(experiment))
    if isinstance(demos, Remote) or not (demos / "manifest.json").is_file():
        return None
    store = TrainingStore(demos)
    latents = location(config.path or _encoded(config, latent_spec(config, experiment.data), store))
    if isinstance(latents, Remote) or not (latents / "manifest.json").is_file():
        return None
    return store, LatentStore(latents)


def find_latents(
    experiment: "Experiment", store: "TrainingStore", saved: dict[str, Any] | None
) -> "LatentStore | None":
    """The latents that the run was trained on, encoded again if need be; None if its arm reads none.

    Raises:
        UserError: the encoder is not the one in the checkpoint.

    """
    if saved is None:
        return None
    from wmjax.models.vjepa2 import encoder_spec
    from wmjax.specs import EncoderSpec, from_dict, require_equal

    config, then = experiment.encoder, from_dict(EncoderSpec, saved, "the checkpoint")
    now = encoder_spec(config.model, config.pooling_grid, config.clip_length, config.camera)
    require_equal(now, then, f"encoder {config.model!r}", "the checkpoint", ignore=("mean", "std"))
    return encode(experiment, store)


def make_encoder(config: "EncoderConfig") -> "Encoder":
    """The latent encoder in the framework that the settings name.

    Raises:
        UserError: the ``torch`` backend without PyTorch.

    """
    arguments = (config.model, config.pooling_grid, config.clip_length, config.camera)
    if config.backend == "jax":
        from wmjax.encode import JaxEncoder

        return JaxEncoder(*arguments)
    try:
        from encoders_export.vjepa import TorchEncoder
    except ImportError as error:
        raise UserError(f"encoder.backend is 'torch' but {error}; run ./setup.sh export, or use 'jax'") from error
    return TorchEncoder(*arguments)
