"""A run's image features: the train command lets a frozen vision tower see every frame once, and keeps what it makes.

They are stored as latents are (:mod:`wmjax.data.latents`), in the same views, so that frame and view tell the features.
"""

from wmjax.core.specs import EncoderSpec, ObservationSpec
from wmjax.data.latents import LatentStore
from wmjax.data.packing import Packing
from wmjax.data.store import TrainingStore
from wmjax.data.union import UnionLatents, UnionStore
from wmjax.encoders.base import EncoderConfig
from wmjax.experiment.config import Experiment
from wmjax.experiment.plan import StartingWeights
from wmjax.models.backbones.frozen_vision import (
    FrozenVision,
    feature_shape,
    hash_parameters,
    published_tower,
    random_tower,
)
from wmjax.pipeline.latents import encode_once, encoded_folder


def vision_features(experiment: Experiment, weights: StartingWeights, store: TrainingStore) -> LatentStore | None:
    """The features that an experiment trains on in place of images, made here once; None if it reads images.

    Args:
        experiment: all settings.
        weights: the published weights of its backbone, if it has any.
        store: the demonstrations.

    Raises:
        UserError: the tower is not frozen, or bytes of a store are not those written.

    """
    packing = experiment.train.cached_vision
    if packing == "none":
        return None
    return _encoded(store, frozen_vision(experiment, weights, store.spec), experiment.encoder, packing)


def frozen_vision(experiment: Experiment, weights: StartingWeights, observation: ObservationSpec) -> FrozenVision:
    """The experiment's vision tower, for the cameras that its policy sees.

    Raises:
        UserError: the tower is not frozen, or does not take images of this size.

    """
    backbone, folder = experiment.model.backbone, weights.folder
    cameras = observation.cameras[: experiment.model.cameras]
    tokens, channels = feature_shape(backbone, observation.image_size)
    if folder is None:
        drawn = random_tower(backbone, experiment.train.seed)
    spec = EncoderSpec(
        kind="vision tower",
        name=backbone.kind,
        weights_hash=hash_parameters(drawn) if folder is None else str(weights.hash),
        parameters=backbone.vision_parameters,
        clip_length=1,
        cameras=cameras,
        tokens_per_frame=len(cameras) * tokens,
        dim=channels,
    )
    return FrozenVision(backbone, spec, lambda: drawn if folder is None else published_tower(backbone, folder))


def _encoded(store: TrainingStore, tower: FrozenVision, config: EncoderConfig, packing: Packing) -> LatentStore:
    """The store of features, or those of several training stores as one."""
    if isinstance(store, UnionStore):
        return UnionLatents([_encoded(one, tower, config, packing) for one in store.stores])
    store.verify_once()
    folder = encoded_folder("vision_features", tower.spec, store, config, packing)
    form = {"dtype": packing, "branches": False}
    features = encode_once(store, folder, lambda: tower, config, "vision features", **form)
    features.check(store)
    features.verify_once()
    return features
