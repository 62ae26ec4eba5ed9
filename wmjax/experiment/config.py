"""An :class:`Experiment`: the dataclasses that each part defines beside its own code, composed from four axes.

Precedence: defaults < scale < data < recipe < protocol name < command line. Each axis owns its keys (:func:`owner`):
a recipe that sets a width, or a scale that sets a loss, is refused, so that two experiments that differ in
one axis differ in nothing else.
"""

import dataclasses
import hashlib
import json
import tomllib
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.paths import resource_folder
from wmjax.core.settings import build, merge
from wmjax.core.specs import ObservationSpec
from wmjax.core.specs import to_dict as spec_to_dict
from wmjax.data.shift import MAX_SHIFT, VIEWS
from wmjax.experiment.dimensions import with_dimensions
from wmjax.models.backbones.qwen2_5_vl.config import preset
from wmjax.models.prompts import PromptConfig
from wmjax.models.vla import VLAConfig
from wmjax.recording.demonstration import DemonstrationConfig
from wmjax.sim.episode import START_NOISE
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC
from wmjax.trainer.config import TrainConfig
from wmjax.trainer.optimizer import OptimizerConfig
from wmjax.trainer.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is trained on: demonstrations recorded here, or the training store at ``path``."""

    path: str = ""
    suite: str = "libero_spatial"
    tasks: tuple[int, ...] = (0,)
    episodes_per_task: int = 24
    workers: int = 2
    demonstrations: DemonstrationConfig = field(default_factory=DemonstrationConfig)
    observation: ObservationSpec = OBSERVATION_SPEC

    def identity(self) -> str:
        """A hash of everything that changes the recorded data; names the folder it is cached in."""
        values = dataclasses.asdict(self) | {"path": "", "workers": 0, "start_noise": START_NOISE}
        values["observation"] = spec_to_dict(self.observation)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Which V-JEPA 2 makes the latents, where, and how many views of each episode, shifted by up to ``max_shift`` px.

    The other camera, which has no latents, is shifted as far. ``path`` is a latent store that an export command
    wrote; empty, the latents are encoded once into the cache, by ``backend``. The images of ``camera`` are shifted as
    its latents are.
    """

    model: str = "mini"
    backend: Literal["jax", "torch"] = "jax"
    views: int = VIEWS
    max_shift: int = MAX_SHIFT
    clip_length: int = 4
    pooling_grid: int = 4
    path: str = ""
    camera: str = "agentview"

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be honoured, before anything is recorded.

        Raises:
            UserError: names the setting, its value and the least that it may be.

        """
        for name, least in (("views", 1), ("max_shift", 0), ("clip_length", 1), ("pooling_grid", 0)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"encoder.{name} is {value}; set it to at least {least}")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The closed-loop evaluation after training: a protocol of ``eval/protocols`` and what may vary at run time.

    ``every`` evaluates during training too, at checkpoints whose step it divides (0: only at the end).
    """

    protocol: str = "spatial_dev"
    episodes_per_task: int | None = None
    every: int = 0
    workers: int = 2
    videos: int = 2


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run depends on."""

    recipe: str
    scale: str
    dataset: str
    model: VLAConfig = field(default_factory=VLAConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def name(self) -> str:
        """The run's name: recipe, scale, data and seed; then the backbone's weights and the adapters' rank, if any."""
        weights, rank = self.train.backbone_weights, self.model.backbone.lora.rank
        backbone = Path(weights).name, f"r{rank}" if rank else ""
        parts = self.recipe, self.scale, self.dataset, f"s{self.train.seed}", *backbone
        return "-".join(part for part in parts if part)


RECIPE_SETTINGS = (
    "model.memory",
    "model.world",
    "model.head",
    "model.use_state",
    "model.cameras",
    "model.prophet.history",
    "model.prophet.future",
    "model.prophet.tokens",
    "model.prophet.condition",
    "train.normalisation",
)
"""What a recipe may set: the memory (what is predicted from what, of which shape), the head, and what the policy sees
and learns. The Prophet's width and depth are sizes. Data files own ``data.*``; scales own the rest; protocols live in
``eval/protocols``."""

RESUMABLE = ("train.log_every", "train.threads", "evaluation.workers", "evaluation.videos", "data.workers")
"""Settings that may change when a run resumes, because no number depends on them."""

PLACES = ("data.path", "encoder.path")
"""Settings that may name another place when a run resumes, a copy of the store on a disk or in a bucket: the
checkpoint knows the demonstrations' hash and the latents' spec with their statistics, and refuses other ones."""

DEFAULTS: dict[str, tuple[str, ...]] = {"scales": ("dataset", "protocol"), "data": ("protocol",), "recipes": ()}
"""Which files of the other axes a file may name for when the command line does not."""


def owner(setting: str) -> str:
    """The axis that owns a setting (dotted name)."""
    if any(setting == name or setting.startswith(f"{name}.") for name in RECIPE_SETTINGS):
        return "recipes"
    return "data" if setting.startswith("data.") else "scales"


def load(
    recipe: str, scale: str = "mini", dataset: str | None = None, overrides: dict[str, Any] | None = None
) -> Experiment:
    """Resolves an experiment.

    Args:
        recipe: a file of ``train/recipes`` without its ending, such as ``e2_flow``.
        scale: a file of ``train/scales``; it names the default dataset and protocol.
        dataset: a file of ``train/data``, if not the scale's; it may name its protocol, if not the scale's.
        overrides: nested settings from the command line.

    Raises:
        UserError: an unknown file or setting (with near matches), a wrong type, a setting of another axis.

    """
    scale_values = read_axis("scales", scale)
    dataset = dataset or scale_values.pop("dataset", "spatial")
    scale_values.pop("dataset", None)
    data_values = read_axis("data", dataset)
    # A policy is judged on the suite that it was trained on, whatever the scale usually trains on.
    protocol = {"protocol": "spatial_dev"} | _pop(scale_values, "protocol") | _pop(data_values, "protocol")
    recorded = {"data": {"observation": spec_to_dict(OBSERVATION_SPEC)}}
    values = merge({"evaluation": protocol, **recorded}, scale_values)
    values = merge(values, data_values)
    values = merge(values, read_axis("recipes", recipe))
    values = _expand_preset(merge(values, overrides or {}))
    for key in ("recipe", "scale", "dataset"):
        if key in values:
            raise UserError(f"{key} is not a setting; choose it with --{'config' if key == 'recipe' else key}")
    return _anchor(
        _with_dimensions(build(Experiment, {**values, "recipe": recipe, "scale": scale, "dataset": dataset}))
    )


def _with_dimensions(experiment: Experiment) -> Experiment:
    """The experiment with the sizes of what it records; those of a given store are known once that is opened."""
    if experiment.data.path:
        return experiment
    model = with_dimensions(experiment.model, experiment.data.observation, ACTION_SPEC, "what is recorded in LIBERO")
    return dataclasses.replace(experiment, model=model)


def _pop(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Takes one key out of a dictionary, as a dictionary of its own; empty if it was not there."""
    return {key: values.pop(key)} if key in values else {}


def _anchor(experiment: Experiment) -> Experiment:
    """The experiment with the folder of its weights absolute: its checkpoints are evaluated from anywhere."""
    weights = experiment.train.published
    if weights is None or not Path(weights).is_dir():
        return experiment
    train = dataclasses.replace(experiment.train, backbone_weights=str(Path(weights).resolve()))
    return dataclasses.replace(experiment, train=train)


def read_axis(axis: str, name: str) -> dict[str, Any]:
    """One file of ``train/<axis>``, laid over the one it extends (one level).

    Raises:
        UserError: no such file, invalid TOML, or a setting that another axis owns.

    """
    folder = resource_folder("train") / axis
    path = folder / f"{name}.toml"
    if not path.is_file():
        raise unknown_name(axis.rstrip("s"), name, [p.stem for p in folder.glob("*.toml")])
    values = _read_toml(path)
    _check_owner(axis, values, path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    base = _read_toml(folder / f"{parent}.toml")
    if "extends" in base:
        raise UserError(f"{path.name}: extends {parent!r}, which extends another file; only one level is allowed")
    _check_owner(axis, base, folder / f"{parent}.toml")
    return merge(base, values)


def _expand_preset(values: dict[str, Any]) -> dict[str, Any]:
    """``model.backbone.preset`` as the fields it stands for, with what was said beside it laid on top."""
    model = dict(values.get("model", {}))
    backbone = dict(model.get("backbone", {}))
    fields = dataclasses.asdict(preset(backbone.pop("preset", "mini")))
    return {**values, "model": {**model, "backbone": merge(fields, backbone)}}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path.name}: not valid TOML: {error}") from error


def _check_owner(axis: str, values: dict[str, Any], path: Path) -> None:
    for setting in dotted(values):
        if setting not in ("extends", *DEFAULTS[axis]) and owner(setting) != axis:
            raise UserError(
                f"{path.name}: {setting} belongs into train/{owner(setting)}, not into train/{axis}; move it"
            )


def dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one level of dotted names."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out.update(dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return out


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """The resolved experiment as plain JSON types: what a run saves."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def changed_settings(experiment: Experiment) -> dict[str, Any]:
    """Settings that differ from the files of recipe, scale and data, by dotted name; named weights always do.

    Raises:
        UserError: there are no such files, or they hold an unknown setting.

    """
    # Some scales are refused without weights.
    weights = {"train": {"backbone_weights": experiment.train.backbone_weights}}
    files = dotted(to_dict(load(experiment.recipe, experiment.scale, experiment.dataset, weights)))
    changed = {name: value for name, value in dotted(to_dict(experiment)).items() if value != files[name]}
    if experiment.train.backbone_weights:
        changed["train.backbone_weights"] = experiment.train.backbone_weights
    return changed


def from_dict(values: dict[str, Any]) -> Experiment:
    """The inverse of :func:`to_dict`."""
    return build(Experiment, values)
