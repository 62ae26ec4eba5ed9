"""The specs that data, encoder, training and rollout must agree on.

An :class:`ObservationSpec` belongs to a dataset and to an environment, an :class:`EncoderSpec` to a latent store, an
:class:`ActionSpec` to a checkpoint. Where two artefacts meet, :func:`require_equal` compares the fields that they
share and raises an error if they differ. Imports neither jax nor torch.
"""

import dataclasses
import json
from typing import Annotated, Any, Literal, TypeVar

from wmjax.core.errors import UserError
from wmjax.core.files import hash_json
from wmjax.core.settings import Depth, Range, Settings, Width, convert, type_hints

FORMAT_VERSION = 2
"""Version of the spec format; a file of another version is refused, never guessed at."""
PUBLISHED = "as published"
"""How ``ObservationSpec.simulator`` begins in a converted dataset, made with a simulator that is not installed."""


@dataclasses.dataclass(frozen=True)
class ObservationSpec(Settings, section="ObservationSpec"):
    """The definition of an observation: pixels, proprioception and their timing.

    Images are uint8 ``[cameras, size, size, 3]`` RGB, already rotated by ``rotation`` degrees from the raw camera
    image. With ``resize_filter`` ``bilinear`` they were rendered at ``drawn_size`` and reduced, see
    :func:`wmjax.data.observation.resize_image`. There are ``control_hz`` control steps per second, and a frame every
    ``frame_stride`` of them.

    The state is float32 ``[state_dim]``, named by ``state``, in ``state_units`` ("" where unknown). The
    diagnostics interpret some of its values, which are given by their indices: ``position`` (x, y, z of the end
    effector, m), ``orientation`` (of the end effector, axis times angle, rad) and ``fingers`` (two, whose difference is
    the opening, m). They are empty if the state has no such values.
    """

    cameras: tuple[str, ...]
    state: tuple[str, ...]
    state_units: tuple[str, ...]
    control_hz: Annotated[float, Range(0, 10_000, above=True)]
    image_size: Annotated[int, Range(1, 10_000)] = 112
    frame_stride: Depth = 4
    rotation: Annotated[int, Range(0, 359)] = 0
    resize_filter: Literal["none", "bilinear"] = "none"
    drawn_size: Annotated[int, Range(0, 10_000)] = 0
    position: tuple[int, ...] = ()
    orientation: tuple[int, ...] = ()
    fingers: tuple[int, ...] = ()
    reflection: bool = False
    mesh_detail_mm: Annotated[float, Range(0, 1_000)] = 0.0
    simulator: str = ""
    format_version: Annotated[int, Range(0, 1_000)] = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Refuses a description that contradicts itself.

        Raises:
            UserError: names the field.

        """
        super().__post_init__()
        _require_lengths(self, self.state_dim, "state", ("state_units",))
        for name, sizes in (("position", (0, 3)), ("orientation", (0, 3)), ("fingers", (0, 2))):
            _require_indices(self, name, self.state_dim)
            if len(getattr(self, name)) not in sizes:
                raise UserError(f"ObservationSpec.{name} is {getattr(self, name)}; give {sizes[1]} indices, or none")

    @property
    def state_dim(self) -> int:
        """Values of the state."""
        return len(self.state)


Precision = Literal["float32", "tf32", "bfloat16"]
"""How an encoder computes: exact products of float32; products of operands that are rounded to TF32, where the device
has it; or products in bfloat16, with residuals, norms and softmax in float32."""


@dataclasses.dataclass(frozen=True)
class EncoderSpec(Settings, section="EncoderSpec"):
    """The definition of a latent: float ``[tokens_per_frame, dim]``, of the clips of cameras that end at a frame.

    ``kind`` names the encoder (:mod:`wmjax.encoders.base`) and ``name`` one of its models. ``weights_hash`` and
    ``parameters`` (all settings of encoder and preprocessing that change a latent) identify it. The tokens of several
    ``cameras`` are concatenated. ``precision`` is what they were computed in: latents of two precisions are two stores.
    ``mean`` and ``std`` are the statistics of each channel.
    """

    kind: str = "vjepa2"
    name: str = "mini"
    weights_hash: str = ""
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    clip_length: Depth = 4
    cameras: tuple[str, ...] = dataclasses.field(kw_only=True)
    tokens_per_frame: Width = 16
    dim: Width = 192
    precision: Precision = "float32"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    format_version: Annotated[int, Range(0, 1_000)] = FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class ActionSpec(Settings, section="ActionSpec"):
    """The definition of an action, and its normalisation by a policy.

    A raw action is float32 ``[dim]``: the command to the robot's controller at one control step, named by ``names``, in
    ``units`` ("" where unknown); ``definition`` describes the numbers in words. A training store and an environment
    have these fields; a checkpoint also has those from ``chunk`` on.

    Attributes:
        names: of the dimensions, in the raw order.
        units: of the dimensions.
        definition: for readers, for example "OSC_POSE deltas and gripper command".
        grippers: indices of the gripper commands, increasing; any number of them, at any place.
        gripper_open, gripper_closed: the raw values that open and close each gripper; values between them are half
            open. Normalised they are -1 and +1, independent of the normalisation of the other dimensions.
        low, high: bounds of raw actions; empty if there are none.
        hold: the raw action that keeps the robot still; empty if it depends on the state, as for joint positions.
        chunk: actions that a policy predicts at once.
        normalisation: of the dimensions that are not grippers, and of the state.
        offset, scale: a raw action becomes ``(action - offset) / scale``, with the grippers then moved behind the other
            dimensions (:func:`wmjax.data.statistics.normalise_action`); empty if it stays as it is.
        state_offset, state_scale: the same for the state.
        relative_to: for each dimension the index of the state's value that is subtracted before the action is
            normalised, or -1 for none; empty if nothing is subtracted. All actions of a chunk are then differences to
            the state at which the chunk is decided, as openpi's delta actions are.

    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    definition: str = ""
    grippers: tuple[int, ...] = ()
    gripper_open: tuple[float, ...] = ()
    gripper_closed: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    hold: tuple[float, ...] = ()
    chunk: Depth = 1
    normalisation: Literal["none", "mean_std", "quantile"] = "none"
    offset: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    state_offset: tuple[float, ...] = ()
    state_scale: tuple[float, ...] = ()
    relative_to: tuple[int, ...] = ()
    format_version: Annotated[int, Range(0, 1_000)] = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Refuses a description that contradicts itself.

        Raises:
            UserError: names the field.

        """
        super().__post_init__()
        _require_lengths(self, self.dim, "names", ("units",))
        optional = ("low", "high", "hold", "offset", "scale", "relative_to")
        _require_lengths(self, self.dim, "names", tuple(name for name in optional if getattr(self, name)))
        _require_lengths(self, len(self.grippers), "grippers", ("gripper_open", "gripper_closed"))
        _require_indices(self, "grippers", self.dim)
        if any(a == b for a, b in zip(self.gripper_open, self.gripper_closed, strict=True)):
            raise UserError(
                f"ActionSpec.gripper_open is {self.gripper_open}, as gripper_closed; give values that differ"
            )
        states = len(self.state_offset) or max((0, *self.relative_to)) + 1
        wrong = [i for i in self.relative_to if not -1 <= i < states]
        if wrong or any(self.relative_to[i] >= 0 for i in self.grippers if self.relative_to):
            raise UserError(
                f"ActionSpec.relative_to is {self.relative_to}; give indices from 0 to {states - 1} of the state's "
                "values, or -1, and -1 for grippers"
            )

    @property
    def dim(self) -> int:
        """Values of an action."""
        return len(self.names)

    @property
    def arm(self) -> tuple[int, ...]:
        """Indices of the dimensions that are not grippers."""
        return tuple(i for i in range(self.dim) if i not in self.grippers)


ADDED = ("relative_to", "precision")
"""Fields that files of this format version may lack, and are not written if they have their defaults: they were added
later, and a spec's hash must not change."""
RAW_ACTION = ("names", "units", "definition", "grippers", "gripper_open", "gripper_closed", "low", "high", "hold")
"""Fields of an :class:`ActionSpec` that are a robot's, not a policy's."""
OTHER_ROBOT = "evaluate it in an environment with the actions that it was trained on"
"""What to do about a policy of another robot."""


def _require_lengths(spec: Any, count: int, counted: str, fields: tuple[str, ...]) -> None:
    for name in fields:
        if len(getattr(spec, name)) != count:
            raise UserError(
                f"{type(spec).__name__}.{name} has {len(getattr(spec, name))} values for {count} {counted}; give "
                "one each"
            )


def _require_indices(spec: Any, name: str, count: int) -> None:
    indices = getattr(spec, name)
    if (
        len(set(indices)) != len(indices)
        or any(not 0 <= i < count for i in indices)
        or (name == "grippers" and tuple(sorted(indices)) != tuple(indices))
    ):
        raise UserError(
            f"{type(spec).__name__}.{name} is {indices}; give different indices from 0 to {count - 1}, in order"
        )


Spec = ObservationSpec | EncoderSpec | ActionSpec
S = TypeVar("S", ObservationSpec, EncoderSpec, ActionSpec)


def to_dict(spec: Spec) -> dict[str, Any]:
    """The spec as plain JSON types."""
    defaults = {field.name: field.default for field in dataclasses.fields(spec) if field.name in ADDED}
    values = dataclasses.asdict(spec).items()
    return json.loads(json.dumps({k: v for k, v in values if k not in defaults or v != defaults[k]}))


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
    if differing := (set(values) ^ set(hints)) - (set(ADDED) & set(hints)):
        names = ", ".join(sorted(differing))
        raise UserError(f"{where}: {kind.__name__} has missing or surplus fields: {names}; rebuild the file")
    try:
        return convert(values, kind, kind.__name__)
    except UserError as error:
        raise UserError(f"{where}: {error}; rebuild the file") from error


def spec_hash(spec: Spec) -> str:
    """The first 16 hex digits of the SHA-256 of the spec's canonical JSON."""
    return hash_json(to_dict(spec))


def require_same_actions(policy: ActionSpec, other: ActionSpec, whose: str, fix: str) -> None:
    """Refuses a policy whose raw actions are those of another robot; their normalisation may differ.

    Args:
        policy: of the policy.
        other: of what the policy acts in or learns from.
        whose: what that is, such as ``the environment``.
        fix: what the user should do.

    Raises:
        UserError: names the first differing field and both values.

    """
    for name in RAW_ACTION:
        mine, theirs = getattr(policy, name), getattr(other, name)
        if mine != theirs:
            raise UserError(f"ActionSpec.{name} is {mine!r} for the policy, {theirs!r} for {whose}; {fix}")


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
