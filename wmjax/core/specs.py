"""The three specs that end silent disagreement between data, encoder, training and rollout.

An :class:`ObservationSpec` is owned by a dataset and by an environment, an :class:`EncoderSpec` by a latent
store, an :class:`ActionSpec` by a checkpoint. Where two artefacts meet, :func:`require_equal` compares the
fields they share and refuses to go on when they differ. Imports neither jax nor torch.
"""

import dataclasses
import hashlib
import json
from typing import Annotated, Any, Literal, TypeVar

from wmjax.core.errors import UserError
from wmjax.core.settings import Depth, Range, Settings, Width, convert, type_hints

FORMAT_VERSION = 1
"""Version of the spec format; a file of another version is refused, never guessed at."""
PUBLISHED = "as published"
"""How ``ObservationSpec.simulator`` begins in a converted dataset, made with a simulator that is not installed."""
LATER = {"drawn_size": 0}
"""Fields younger than the format, and what their absence means; written only if they say something else."""


@dataclasses.dataclass(frozen=True)
class ObservationSpec(Settings, section="ObservationSpec"):
    """What an observation is: pixels, proprioception and their timing.

    Images are uint8 ``[cameras, size, size, 3]`` RGB, already rotated by ``rotation`` degrees from the raw
    simulator image. State is float32 ``[8]``: end-effector xyz (m), axis-angle (rad), two finger positions (m).
    With ``resize_filter`` ``bilinear`` they were drawn at ``drawn_size`` and made smaller, see
    :func:`wmjax.data.observation.resize_image`.
    """

    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    image_size: Annotated[int, Range(1, 10_000)] = 112
    rotation: int = 180
    resize_filter: Literal["none", "bilinear"] = "none"
    state: str = "eef_pos,eef_axis_angle,gripper_qpos"
    state_dim: Width = 8
    control_hz: Depth = 20
    frame_stride: Depth = 4
    reflection: bool = False
    mesh_detail_mm: Annotated[float, Range(0, 1_000)] = 3.0
    simulator: str = ""
    drawn_size: Annotated[int, Range(0, 10_000)] = 0
    format_version: int = FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class EncoderSpec(Settings, section="EncoderSpec"):
    """What a latent is: float ``[tokens_per_frame, dim]``, of the clips of some cameras that end at a frame.

    ``kind`` names the encoder (:mod:`wmjax.encoders.base`) and ``name`` one of its models. ``weights_hash`` and
    ``parameters``, whatever of its settings and its preprocessing changes a latent, identify it. The tokens of several
    ``cameras`` stand one after the other. ``mean`` and ``std`` are the statistics of each channel.
    """

    kind: str = "vjepa2"
    name: str = "mini"
    weights_hash: str = ""
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    clip_length: Depth = 4
    cameras: tuple[str, ...] = ("agentview",)
    tokens_per_frame: Width = 16
    dim: Width = 192
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    format_version: int = FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class ActionSpec(Settings, section="ActionSpec"):
    """What an action is: OSC_POSE deltas in [-1, 1] (times 0.05 m and 0.5 rad) and the gripper command.

    ``offset`` and ``scale`` map a raw action to the normalised one: ``(action - offset) / scale``. The gripper
    has offset 0 and scale 1. ``state_offset`` and ``state_scale`` do the same for the state.
    """

    definition: str = "osc_pose_delta+gripper"
    dim: Width = 7
    gripper: str = "-1 open, +1 close"
    chunk: Depth = 8
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
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{where}: {kind.__name__}.format_version is {version!r}, this wmjax reads "
            f"{FORMAT_VERSION}; rebuild the file with the command that made it"
        )
    hints = type_hints(kind)
    values = {name: value for name, value in LATER.items() if name in hints} | values
    if set(values) != set(hints):
        differing = ", ".join(sorted(set(values) ^ set(hints)))
        raise UserError(f"{where}: {kind.__name__} has missing or surplus fields: {differing}; rebuild the file")
    try:
        return convert(values, kind, kind.__name__)
    except UserError as error:
        raise UserError(f"{where}: {error}; rebuild the file") from error


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
