"""The settings of a training, and its inputs."""

import dataclasses
from typing import Annotated, Any, Literal

import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.files import hash_json
from wmjax.core.settings import Count, Depth, Range, Rate, Seed, Settings
from wmjax.core.specs import ActionSpec, EncoderSpec, ObservationSpec, from_dict, require_equal, to_dict
from wmjax.data.latents import LatentStore
from wmjax.data.loader import LoaderConfig
from wmjax.data.observation import Prompt
from wmjax.data.shift import ViewTable
from wmjax.data.statistics import Normalisation, same_statistics
from wmjax.data.store import TrainingStore
from wmjax.models.parameters import RANDOM, Trainable
from wmjax.models.world_model import Objective
from wmjax.trainer.colours import ColourConfig

CachedVision = Literal["none", "float32", "bfloat16", "int8"]
UNITS = ("normalisation", "offset", "scale", "state_offset", "state_scale", "relative_to")
"""Fields of an ActionSpec that follow from statistics."""


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings, section="train"):
    """The length of a training, and the intervals of logging, validation and saving.

    The ``objective`` ``world`` trains the Prophet alone, on the world loss: no image is read, and neither VLM nor head
    is in the program. Policies of any variant with a Prophet start from such a run by ``init_from``.
    ``state_noise`` is added to the state that the network reads, in units of its normalisation scale. ``colours``
    changes those of training images. With a ``crop`` below 1 a random part with that share of height and width is
    enlarged to the image (openpi uses 0.95). With ``same_shift`` the images of all cameras are shifted as the view of
    ``encoder.cameras`` is, else those of the others at random.
    ``cached_vision`` is the form in which the features of a frozen vision tower are stored once for every frame and
    view; batches then have these in place of images (:mod:`wmjax.pipeline.vision_features`).
    ``delta_actions`` names the dimensions of the actions, such as joint targets, that are learned as differences to the
    state at which a chunk is decided; ``all`` are those that the state has by the same name
    (:func:`wmjax.data.statistics.delta_indices`). The policy's actions are targets as in the data.
    ``backbone_weights`` is a folder or hub id of weights to start the backbone from; empty or ``random`` starts from
    random ones, which follow from ``seed``. With ``trainable`` ``adapters`` they stay as they are, so it must be said.
    The chunks that are learned begin ``delay`` control steps after the observation, for evaluations with that
    ``execution_delay``. ``init_from`` is a run, one of its checkpoints or any other name of a policy (``mini``), from
    whose averaged parameters the training starts, with its normalisation of actions, states and latents. For another
    robot's data the parts of the network that read its state and make its actions are new, in the units of the data.

    The newest ``max_to_keep`` checkpoints, every ``keep_period``-th step's (0: none) and those that were evaluated are
    kept. An update is skipped if loss or gradient are not finite, or, with a ``spike_factor`` above 0, if the loss is
    above that many times its moving average; after ``max_skipped`` in a row training ends. The gradients of
    ``accumulate`` batches make one update; ``steps`` counts batches. From the second step of a start on
    ``profile_steps`` are traced by jax.profiler into the run's folder ``profile``. ``trackers`` get the metrics beside
    ``metrics.jsonl``, see :mod:`wmjax.trainer.trackers`. ``seeds`` trains that many, from ``seed`` on, side by side
    in one program on one device (:mod:`wmjax.trainer.seeds`).
    """

    steps: Count = 3000
    batch_size: Annotated[int, Range(1, 1_000_000)] = 64
    seed: Seed = 0
    seeds: Annotated[int, Range(1, 1_000)] = 1
    objective: Objective = "policy"
    trainable: Trainable = "all"
    backbone_weights: str = ""
    validation_fraction: Annotated[float, Range(0, 1, above=True, below=True)] = 0.05
    state_noise: Annotated[float, Range(0, 100)] = 0.02
    ema_decay: Rate = 0.998
    log_every: Count = 50
    eval_every: Count = 500
    eval_batches: Count = 4
    normalisation: Normalisation = "mean_std"
    delta_actions: tuple[str, ...] = ()
    checkpoint_every: Count = 250
    threads: Depth = 2
    delay: Annotated[int, Range(0, 10_000)] = 0
    max_to_keep: Count = 2
    keep_period: Annotated[int, Range(0, 1_000_000_000)] = 0
    spike_factor: Annotated[float, Range(0, 1_000_000)] = 0.0
    max_skipped: Count = 50
    accumulate: Annotated[int, Range(1, 1_000_000)] = 1
    profile_steps: Annotated[int, Range(0, 1_000)] = 0
    init_from: str = ""
    crop: Annotated[float, Range(0.1, 1)] = 1.0
    colours: ColourConfig = dataclasses.field(default_factory=ColourConfig)
    same_shift: bool = False
    cached_vision: CachedVision = "none"
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spike_factor and self.spike_factor <= 1:
            raise UserError(f"train.spike_factor is {self.spike_factor}; give a number above 1, or 0 for none")
        # Forgotten weights would cost hours and look like a bad recipe.
        if self.trainable == "adapters" and not self.backbone_weights:
            raise UserError(
                "train.backbone_weights is empty, but train.trainable is 'adapters', which freezes the backbone; name "
                "the folder or hub id of its weights, or 'random' for a frozen random backbone, the control"
            )

    @property
    def published(self) -> str | None:
        """The folder or hub id of the backbone's weights; None if it starts from random ones."""
        return None if self.backbone_weights in ("", RANDOM) else self.backbone_weights


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of a training: the opened stores, the split, the specs and one prompt per task.

    A model that reads no latents has the table of their views instead, so that all train on the same pixels.
    ``encoder_spec`` describes the latents, None if the model reads none; its statistics are of the training episodes,
    where those of ``latents.spec`` are of all. Batches have the ``features`` of a vision tower, if there are any, in
    place of images. With ``same_shift`` the images of all cameras are shifted as the latents' views are.
    """

    store: TrainingStore
    latents: LatentStore | ViewTable | None
    train_episodes: np.ndarray
    val_episodes: np.ndarray
    encoder_spec: EncoderSpec | None
    action_spec: ActionSpec
    prompts: Prompt
    prompt_hashes: dict[str, str]
    loader: LoaderConfig
    features: LatentStore | None = None
    same_shift: bool = False

    @property
    def cameras(self) -> tuple[int, ...]:
        """Indices of the cameras that are shifted as the latents' views are."""
        if self.same_shift:
            return tuple(range(len(self.store.spec.cameras)))
        names = self.store.spec.cameras[:1] if self.latents is None else self.latents.cameras
        return tuple(self.store.spec.cameras.index(name) for name in names)

    @property
    def split_hash(self) -> str:
        """The hash of the validation episodes."""
        return hash_json(self.val_episodes.tolist())

    def specs(self) -> dict[str, Any]:
        """The three specs as JSON, for the checkpoint."""
        encoder = None if self.encoder_spec is None else to_dict(self.encoder_spec)
        return {"observation": to_dict(self.store.spec), "encoder": encoder, "action": to_dict(self.action_spec)}

    def meta(self) -> dict[str, Any]:
        """The identity of the inputs in a checkpoint, for :meth:`require_same`."""
        hashes = {"store": self.store.hash, "split": self.split_hash, "prompt": self.prompt_hashes}
        return {"specs": self.specs(), **hashes}

    def as_in(self, meta: dict[str, Any]) -> "Inputs":
        """The inputs of a checkpoint with this ``meta``: these, with the checkpoint's statistics of the latents.

        Raises:
            UserError: see :meth:`require_same`.

        """
        inputs = self._in_units_of(meta)
        inputs.require_same(meta)
        return inputs.with_statistics(meta["specs"]["encoder"], "the checkpoint")

    def _in_units_of(self, meta: dict[str, Any]) -> "Inputs":
        """These inputs in the units of a checkpoint that adopted them from another one (``train.init_from``)."""
        if not meta.get("experiment", {}).get("train", {}).get("init_from"):
            return self
        saved = from_dict(ActionSpec, meta["specs"]["action"], "the checkpoint")
        if (saved.dim, len(saved.state_offset)) != (self.action_spec.dim, len(self.action_spec.state_offset)):
            return self  # of another robot, which is refused
        spec = dataclasses.replace(self.action_spec, **{name: getattr(saved, name) for name in UNITS})
        fitted = dataclasses.replace(self, action_spec=spec)
        return fitted.with_statistics(meta["specs"]["encoder"], "the checkpoint")

    def with_statistics(self, saved: dict[str, Any] | None, name: str) -> "Inputs":
        """These inputs with the statistics of a saved spec, if it describes the same latents.

        Args:
            saved: an EncoderSpec as JSON; None for none.
            name: of its place, in an error.

        """
        if self.encoder_spec is None or saved is None:
            return self
        theirs = from_dict(EncoderSpec, saved, name)
        spec = dataclasses.replace(self.encoder_spec, mean=theirs.mean, std=theirs.std)
        return dataclasses.replace(self, encoder_spec=spec) if spec == theirs else self

    def require_same(self, meta: dict[str, Any]) -> None:
        """Refuses inputs other than those of a checkpoint with this ``meta``.

        Raises:
            UserError: names the first differing field of specs, demonstrations, split and prompts, and both values.

        """
        names, specs = ("the training data", "the checkpoint"), meta["specs"]
        require_equal(self.store.spec, from_dict(ObservationSpec, specs["observation"], names[1]), *names)
        require_equal(self.action_spec, from_dict(ActionSpec, specs["action"], names[1]), *names)
        if self.encoder_spec is not None:
            encoder = from_dict(EncoderSpec, specs["encoder"], names[1])
            require_equal(self.encoder_spec, encoder, *names, ignore=("mean", "std"))
            self._require_statistics(encoder)
        found = {"store": self.store.hash, "split": self.split_hash, **self.prompt_hashes}
        saved = {"store": meta["store"], "split": meta["split"], **meta["prompt"]}
        for name in saved.keys() & found.keys():
            if saved[name] != found[name]:
                raise UserError(
                    f"{name} differs: {found[name]!r} in {names[0]}, {saved[name]!r} in {names[1]}; "
                    "restore what the run was started with, or start another with --run"
                )

    def _require_statistics(self, saved: EncoderSpec) -> None:
        """Refuses latents of other content: their statistics are not the checkpoint's.

        Those of the policy ``mini`` that ships are of all episodes, not of the training episodes.
        """
        assert self.encoder_spec is not None and isinstance(self.latents, LatentStore)
        known = (self.encoder_spec, self.latents.spec)
        if not any(same_statistics(spec, saved) for spec in known):
            raise UserError(
                f"{self.latents.folder}: mean and deviation of these latents are not the checkpoint's: they have other "
                "values; restore what the run was started with, or start another with --run"
            )
