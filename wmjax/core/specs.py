"""The specs that data, encoder, training and rollout must agree on.

An :class:`ObservationSpec` belongs to a dataset and to an environment, an :class:`EncoderSpec` to a latent store, an
:class:`ActionSpec` to a checkpoint. Where two artefacts meet, :func:`require_equal` compares the fields that they
share and raises an error if they differ. Imports neither jax nor torch.
"""

import dataclasses
import hashlib
import json
import types
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from wmjax.core.errors import UserError

FORMAT_VERSION = 1
"""Version of the spec format; a file of another version is refused, never guessed at."""
PUBLISHED = "as published"
"""How ``ObservationSpec.simulator`` begins in a converted dataset, made with a simulator that is not installed."""
LATER = {"drawn_size": 0}
"""Fields younger than the format, and what their absence means; written only if they say something else."""


@dataclasses.dataclass(frozen=True)
class ObservationSpec:
    """The definition of an observation: pixels, proprioception and their timing.

    Images are uint8 ``[cameras, size, size, 3]`` RGB, already rotated by ``rotation`` degrees from the raw
    simulator image. State is float32 ``[8]``: end-effector xyz (m), axis-angle (rad), two finger positions (m).
    With ``resize_filter`` ``bilinear`` they were drawn at ``drawn_size`` and made smaller, see
    :func:`wmjax.data.observation.resize_image`.
    """

    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    image_size: int = 112
    rotation: int = 180
    resize_filter: Literal["none", "bilinear"] = "none"
    state: str = "eef_pos,eef_axis_angle,gripper_qpos"
    state_dim: int = 8
    control_hz: int = 20
    frame_stride: int = 4
    reflection: bool = False
    mesh_detail_mm: float = 3.0
    simulator: str = ""
    drawn_size: int = 0
    format_version: int = FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """The definition of a latent: float ``[tokens_per_frame, dim]``, of the clips of cameras that end at a frame.

    ``kind`` names the encoder (:mod:`wmjax.encoders.base`) and ``name`` one of its models. ``weights_hash`` and
    ``parameters``, whatever of its settings and its preprocessing changes a latent, identify it. The tokens of several
    ``cameras`` stand one after the other. ``mean`` and ``std`` are the statistics of each channel.
    """

    kind: str = "vjepa2"
    name: str = "mini"
    weights_hash: str = ""
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    clip_length: int = 4
    cameras: tuple[str, ...] = ("agentview",)
    tokens_per_frame: int = 16
    dim: int = 192
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    format_version: int = FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """The definition of an action: OSC_POSE deltas in [-1, 1] (times 0.05 m and 0.5 rad) and the gripper command.

    ``offset`` and ``scale`` map a raw action to the normalised one: ``(action - offset) / scale``. The gripper
    has offset 0 and scale 1. ``state_offset`` and ``state_scale`` do the same for the state.
    """

    definition: str = "osc_pose_delta+gripper"
    dim: int = 7
    gripper: str = "-1 open, +1 close"
    chunk: int = 8
    normalisation: Literal["none", "mean_std", "quantile"] = "quantile"
    offset: tuple[float, ...] = (0.0,) * 7
    scale: tuple[float, ...] = (1.0,) * 7
    state_offset: tuple[float, ...] = (0.0,) * 8
    state_scale: tuple[float, ...] = (1.0,) * 8
    format_version: int = FORMAT_VERSION


Spec = ObservationSpec | EncoderSpec | ActionSpec
S = TypeVar("S", ObservationSpec, EncoderSpec, ActionSpec)


def to_dict(spec: Spec) -> dict[str, Any]:
    """The spec as plain JSON types."""
    values = json.loads(json.dumps(dataclasses.asdict(spec)))
    return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}


def from_dict(kind: type[S], values: dict[str, Any], where: str) -> S:
    """Reads a spec written by :func:`to_dict`.

    Args:
        kind: the spec's class.
        values: what was read.
        where: the file it came from, for the error.

    Raises:
        UserError: another format version, or a missing, surplus or mistyped field.

    """
    if values.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{where}: {kind.__name__}.format_version is {values.get('format_version')!r}, this wmjax reads "
            f"{FORMAT_VERSION}; rebuild the file with the command that made it"
        )
    hints = get_type_hints(kind)
    values = {name: value for name, value in LATER.items() if name in hints} | values
    if set(values) != set(hints):
        differing = ", ".join(sorted(set(values) ^ set(hints)))
        raise UserError(f"{where}: {kind.__name__} has missing or surplus fields: {differing}; rebuild the file")
    for name, hint in hints.items():
        if not _fits(values[name], hint):
            raise UserError(f"{where}: {kind.__name__}.{name} is {values[name]!r}, expected {hint}; rebuild the file")
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**plain)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of an annotated type (the few kinds that specs use)."""
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin is dict:
        return isinstance(value, dict)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(v, get_args(hint)[0]) for v in value)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, h) for h in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def spec_hash(spec: Spec) -> str:
    """The first 16 hex digits of the SHA-256 of the spec's canonical JSON."""
    text = json.dumps(to_dict(spec), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def require_equal(a: S, b: S, a_name: str, b_name: str, *, ignore: tuple[str, ...] = ()) -> None:
    """Refuses two artefacts whose specs differ.

    Raises:
        UserError: names the first differing field and both values.

    """
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if field.name not in ignore and left != right:
            raise UserError(
                f"{type(a).__name__}.{field.name} differs: {left!r} in {a_name}, {right!r} in {b_name}; "
                f"rebuild one from the other, or choose artefacts that belong together"
            )
