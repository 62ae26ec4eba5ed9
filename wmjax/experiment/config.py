"""An :class:`Experiment`: the settings that the modules define, composed from TOML files.

A file of each axis below ``train/`` is chosen: a variant (what the world memory is made from and trained on), a head,
a scale (sizes and optimizer) and a dataset. A recipe such as ``e2_flow`` names the variant and the head. Every setting
belongs to one axis (:func:`owner`), and a file that sets what another axis owns is refused. Two experiments that
differ in one axis therefore differ in nothing else.

Precedence, from weak to strong: defaults of the dataclasses, scale, data, head, variant, command line. The evaluation
protocol has its own rule: the command line, else the dataset's, else the scale's, else ``spatial_dev``.
"""

import dataclasses
import json
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.location import URL
from wmjax.core.paths import expand, listed, resource_folder
from wmjax.core.reading import read_toml
from wmjax.core.settings import Count, Layer, Range, build, convert, dotted, merge, with_origin
from wmjax.core.specs import to_dict as spec_to_dict
from wmjax.encoders.base import ENCODERS, EncoderConfig, default_encoder
from wmjax.experiment.data_config import DataConfig
from wmjax.experiment.dimensions import with_dimensions
from wmjax.models.backbones.base import BackboneConfig
from wmjax.models.heads.base import HeadConfig
from wmjax.models.parameters import RANDOM
from wmjax.models.prompts import PromptConfig
from wmjax.models.vla import VLAConfig
from wmjax.rollout.settings import EvaluateSettings
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC
from wmjax.trainer.config import TrainConfig
from wmjax.trainer.optimizer import OptimizerConfig
from wmjax.trainer.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(EvaluateSettings, section="evaluation"):
    """The closed-loop evaluation after training: a protocol of ``eval/protocols`` and how its episodes are run.

    ``every`` evaluates during training too, at checkpoints whose step it divides (0: only at the end).
    """

    protocol: str = "spatial_dev"
    episodes_per_task: Count | None = None
    every: Annotated[int, Range(0, 1_000_000_000)] = 0


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a run depends on."""

    recipe: str
    scale: str
    dataset: str
    model: VLAConfig = field(default_factory=VLAConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = field(default_factory=default_encoder)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def name(self) -> str:
        """The run's name: recipe, scale, data and seed; then another objective, weights and adapters' rank."""
        weights, rank = self.train.backbone_weights, self.model.backbone.adapter_rank
        backbone = Path(weights).name, f"r{rank}" if rank else ""
        objective = "" if self.train.objective == "policy" else self.train.objective
        parts = self.recipe, self.scale, self.dataset, f"s{self.train.seed}", objective, *backbone
        return "-".join(part for part in parts if part)

    @property
    def pending_steps(self) -> int:
        """How many pending actions the policy depends on, those of ``train.delay`` control steps; 0 for none."""
        return self.train.delay if self.model.pending or self.model.roll_state else 0


SECTIONS = tuple(
    each.name for each in dataclasses.fields(Experiment) if each.name not in ("recipe", "scale", "dataset")
)
"""The sections of an experiment's settings, as a command line names them."""

AXES: dict[str, tuple[str, ...]] = {
    "variants": (
        "model.memory",
        "model.world",
        "model.use_state",
        "model.use_images",
        "model.roll_state",
        "model.cameras",
        "model.prophet.history",
        "model.prophet.future",
        "model.prophet.tokens",
        "model.prophet.condition",
        "train.normalisation",
    ),
    "heads": ("model.head",),
    "data": ("data",),
    "scales": (),
}
"""The folders of ``train/`` and the settings that each owns; scales own all others.

A variant owns the memory (what is predicted from what, and its shape) and what the policy observes and learns. The
Prophet's width and depth are sizes. A variant that needs a head of other settings names them in ``[heads.<head>]``.
"""

RESUMABLE = (
    "train.log_every",
    "train.threads",
    "train.max_to_keep",
    "train.keep_period",
    "train.max_skipped",
    "train.profile_steps",
    "train.trackers",
    "data.workers",
    *(f"evaluation.{each.name}" for each in dataclasses.fields(EvaluateSettings) if each.name != "batch"),
)
"""Settings that may change when a run resumes, because no number depends on them."""


FOLDERS = (
    ("train", "backbone_weights"),
    ("data", "path"),
    ("encoder", "path"),
    ("encoder", "model"),
    ("prompt", "tokenizer"),
)
"""Settings that may name a folder, by their group. Another place may be named when a run resumes or is evaluated, such
as a copy on another machine: a checkpoint knows the hashes of demonstrations, encoder, tokenizer and published weights,
and the latents' spec with their statistics, and refuses others."""

KINDS: dict[str, Any] = {
    "model": {"head": {"kind": HeadConfig.kind}, "backbone": {"kind": BackboneConfig.kind}},
    "encoder": {"kind": EncoderConfig.kind},
}
"""The kind of files without a ``kind``: their settings do not apply where the command line chooses another one."""

CHOICES: dict[str, tuple[str, ...]] = {"scales": ("dataset", "protocol"), "data": ("protocol",)}
"""The other axes whose file a file may choose where the command line does not."""


def owner(setting: str) -> str:
    """The axis, a folder of ``train/``, that owns a setting (dotted name)."""
    for axis, names in AXES.items():
        if any(setting == name or setting.startswith(f"{name}.") for name in names):
            return axis
    return "scales"


def axis_names(axis: str) -> list[str]:
    """The files of ``train/<axis>``, without their ending."""
    return [path.stem for path in listed(resource_folder("train") / axis, "*.toml")]


def recipe_names() -> list[str]:
    """Every recipe: each variant with each head."""
    return [f"{variant}_{head}" for variant in axis_names("variants") for head in axis_names("heads")]


def split_recipe(recipe: str) -> tuple[str, str]:
    """The variant and the head that a recipe such as ``e2_flow`` names.

    Raises:
        UserError: there is no such variant or head.

    """
    if recipe in axis_names("variants"):
        whole = " or ".join(f"{recipe}_{head}" for head in axis_names("heads"))
        raise UserError(f"recipe {recipe!r} names no head; write {whole}")
    if recipe not in recipe_names():
        raise unknown_name("recipe", recipe, recipe_names())
    variant, _, head = recipe.rpartition("_")
    return variant, head


def load(
    recipe: str, scale: str = "mini", dataset: str | None = None, overrides: dict[str, Any] | None = None
) -> Experiment:
    """Resolves an experiment.

    Args:
        recipe: a variant and a head, such as ``e2_flow``: ``train/variants/e2.toml`` and ``train/heads/flow.toml``.
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
    # A policy is judged on the suite that it was trained on, not on the scale's usual one.
    protocol = {"protocol": "spatial_dev"} | _pop(scale_values, "protocol") | _pop(data_values, "protocol")
    recorded = {"data": {"observation": spec_to_dict(OBSERVATION_SPEC)}}
    values: dict[str, Any] = merge(KINDS, {"evaluation": protocol, **recorded})
    layers = [
        Layer(scale_values, f"correct train/scales/{scale}.toml"),
        Layer(data_values, f"correct train/data/{dataset}.toml"),
        Layer(_read_recipe(recipe), f"correct the file of {recipe} in train/variants or train/heads"),
        Layer(overrides or {}, ""),
    ]
    for layer in layers:
        values = merge(values, dict(layer.values))
    values = _expand_preset(values)
    for key in ("recipe", "scale", "dataset"):
        if key in values:
            raise UserError(f"{key} is not a setting; choose it with --{'config' if key == 'recipe' else key}")
    try:
        built = build(Experiment, {**values, "recipe": recipe, "scale": scale, "dataset": dataset})
        return anchor(_with_branches(_with_dimensions(built)))
    except UserError as error:
        raise with_origin(error, layers) from error


def _with_dimensions(experiment: Experiment) -> Experiment:
    """The experiment with sizes and camera of what it records; those of a given store are known once it is opened."""
    if experiment.data.places:
        return experiment
    model = with_dimensions(experiment.model, experiment.data.observation, ACTION_SPEC, "what is recorded in LIBERO")
    encoder = experiment.encoder.with_default_camera(experiment.data.observation.cameras)
    return dataclasses.replace(experiment, model=model, encoder=encoder)


def _with_branches(experiment: Experiment) -> Experiment:
    """The experiment whose recorder renders the branches that its memory's target needs, unless it says how many."""
    data, model = experiment.data, experiment.model
    if data.places or data.demonstrations.branch_frames or model.memory.target != "branch":
        return experiment
    frames = max(0, model.prophet.future - experiment.train.delay // data.observation.frame_stride)
    demonstrations = dataclasses.replace(data.demonstrations, branch_frames=frames)
    return dataclasses.replace(experiment, data=dataclasses.replace(data, demonstrations=demonstrations))


def _read_recipe(recipe: str) -> dict[str, Any]:
    """The settings of a recipe's head, with its variant's laid on top."""
    variant, head = split_recipe(recipe)
    values = read_axis("variants", variant)
    changes = values.pop("heads", {}).get(head, {})
    return merge(merge(read_axis("heads", head), values), {"model": {"head": changes}})


def _pop(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Takes one key out of a dictionary, as a separate dictionary; empty if the key is missing."""
    return {key: values.pop(key)} if key in values else {}


def anchor(experiment: Experiment) -> Experiment:
    """The experiment with absolute folders, so that it resumes and is evaluated from any working directory."""
    replaced: dict[str, Any] = {}
    names = ENCODERS.resolve(experiment.encoder.kind).MODELS
    for group, name in (*FOLDERS, ("train", "init_from")):
        settings = replaced.get(group, getattr(experiment, group))
        value = getattr(settings, name, "")
        if (found := _absolute(value, names)) != value:
            replaced[group] = dataclasses.replace(settings, **{name: found})
    data = replaced.get("data", experiment.data)
    replaced["data"] = dataclasses.replace(data, paths=tuple(_absolute(path) for path in data.paths))
    return dataclasses.replace(experiment, **replaced)


def _absolute(value: str, names: tuple[str, ...] = ()) -> str:
    """A setting as an absolute path if it names a folder here, else as it is, as ``names`` are."""
    if value in ("", "mini", RANDOM, *names) or URL.match(value):
        return value
    return str(place.resolve()) if (place := expand(value)).is_dir() else value


def read_axis(axis: str, name: str) -> dict[str, Any]:
    """One file of ``train/<axis>``, laid over the one it extends (one level).

    Raises:
        UserError: no such file, invalid TOML, or a setting that another axis owns.

    """
    folder = resource_folder("train") / axis
    path = folder / f"{name}.toml"
    if not path.is_file():
        raise unknown_name(axis.rstrip("s"), name, axis_names(axis))
    values = _read_toml(path)
    _check_owners(axis, values, path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    base = _read_toml(folder / f"{parent}.toml")
    if "extends" in base:
        raise UserError(f"{path.name}: extends {parent!r}, which extends another file; only one level is allowed")
    _check_owners(axis, base, folder / f"{parent}.toml")
    return merge(base, values)


def _expand_preset(values: dict[str, Any]) -> dict[str, Any]:
    """``model.backbone.preset``, if the backbone has presets, as the fields that it sets."""
    model = values.get("model", {})
    backbone = model.get("backbone", {}) if isinstance(model, dict) else None
    if not isinstance(backbone, dict):
        raise UserError("model and model.backbone are groups of settings; give one of them, as in --model.chunk 8")
    return {**values, "model": {**model, "backbone": BackboneConfig.select(backbone).expand(backbone)}}


def _read_toml(path: Path) -> dict[str, Any]:
    return read_toml(path, dict[str, Any], "correct the file")


def _check_owners(axis: str, values: dict[str, Any], path: Path) -> None:
    """Refuses what another axis owns, and a head in a variant's ``[heads]`` that does not exist."""
    own = {key: value for key, value in values.items() if key not in ("extends", *CHOICES.get(axis, ()))}
    heads = own.pop("heads", {}) if axis == "variants" else {}
    for head in heads:
        if head not in axis_names("heads"):
            raise unknown_name(f"head in {path.name}, [heads]", head, axis_names("heads"))
    for setting in dotted(own):
        if owner(setting) != axis:
            raise UserError(f"{path.name}: {setting} belongs in train/{owner(setting)}, not in train/{axis}; move it")


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """The resolved experiment as plain JSON types: the form in which a run saves it."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def from_dict(values: dict[str, Any]) -> Experiment:
    """The inverse of :func:`to_dict`.

    Raises:
        UserError: settings that this version does not have, or a class that cannot be imported.

    """
    try:
        return convert(values, Experiment, "")
    except UserError as error:
        raise UserError(
            f"saved settings: {error}; if another version of wmjax saved them, train again with this one"
        ) from error
