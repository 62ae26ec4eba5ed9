"""Which observations a served policy gets and what its actions mean, with the values of published evaluations.

A policy that gets another image size, rotation or state than it was trained on, or whose gripper is read with the
wrong sign, raises no error: it fails. The presets are what the peers' own LIBERO evaluations send:

- ``openpi``: ``examples/libero/main.py`` of openpi.
- ``starvla``: ``examples/simBenchmarks/LIBERO/eval_files`` of starVLA.
- ``vla-eval``: ``vla_eval.benchmarks.libero`` of the package vla-eval 0.8.0.
- ``openvla``: ``experiments/robot/libero`` of OpenVLA-OFT.

All of them let objects settle for 10 control steps, which :class:`wmjax.sim.env.LiberoEnv` does too, and give an
episode 220 (spatial), 280 (object), 300 (goal) or 520 (long) control steps, as the protocols of those suites do.
"""

import dataclasses
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.settings import Range, Settings, build
from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.data.statistics import clip_action
from wmjax.rollout.actors import Chunk

Side = Annotated[int, Range(1, 4096)]


@dataclasses.dataclass(frozen=True)
class Conventions(Settings, section="foreign"):
    """How one policy sees the environment, and how its actions are read.

    Attributes:
        preset: where the other settings begin, one of :data:`PRESETS`; empty for that of the dialect.
        cameras: those that are sent, in this order.
        drawn_size: pixels a side at which they are drawn.
        image_size: pixels a side of the images that are sent.
        resize: Pillow's filter from one to the other; for square images ``bilinear`` is also openpi's padded resize.
        orientation: ``upright`` as the environment shows them, in LIBERO MuJoCo's image rotated by 180 degrees;
            ``turned`` by 180 degrees, in LIBERO MuJoCo's image; ``mirrored`` left to right, in LIBERO MuJoCo's image
            with its rows reversed.
        reflection, mesh_detail_mm: how they are drawn, see :class:`wmjax.core.specs.ObservationSpec`; the published
            images have reflections and all triangles.
        state: ``full`` is the environment's; ``mean_finger`` has the mean of the two fingers in their place;
            ``quaternion`` has the orientation as a quaternion (x, y, z, w); ``none`` sends none.
        rotation: of the state. ``robosuite`` has axis times angle up to 2 pi as the published data; ``shortest`` up to
            pi, of the antipodal quaternion where that is the nearer one.
        gripper_open, gripper_closed: the values with which the policy opens and closes; None: the environment's.
        gripper_binary: whether whatever is nearer to open opens fully, and all else closes fully.
        horizon: control steps that are executed of each answer; None: as many as the server says.
        wait_steps: control steps that hold still before the first decision, behind those of the environment itself.
        image_keys, state_key, prompt_key: names in a message of the dialect ``openpi``.
        unnorm_key: which of its statistics a starVLA server applies; empty for its default.
        timeout_s: seconds to wait for an answer; the first one may compile the policy.
        name: how results call the policy; empty for what the server is called, or its address.

    """

    preset: str = ""
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    drawn_size: Side = 256
    image_size: Side = 224
    resize: Literal["bilinear", "bicubic", "lanczos", "box"] = "bilinear"
    orientation: Literal["upright", "turned", "mirrored"] = "upright"
    reflection: bool = True
    mesh_detail_mm: Annotated[float, Range(0, 1000)] = 0.0
    state: Literal["full", "mean_finger", "quaternion", "none"] = "full"
    rotation: Literal["robosuite", "shortest"] = "robosuite"
    gripper_open: float | None = -1.0
    gripper_closed: float | None = 1.0
    gripper_binary: bool = False
    horizon: Annotated[int, Range(1, 1000)] | None = None
    wait_steps: Annotated[int, Range(0, 1000)] = 0
    image_keys: tuple[str, ...] = ("observation/image", "observation/wrist_image")
    state_key: str = "observation/state"
    prompt_key: str = "prompt"
    unnorm_key: str = ""
    timeout_s: Annotated[float, Range(0, 86_400, above=True)] = 600.0
    name: str = ""

    def __post_init__(self) -> None:
        """Refuses settings that contradict each other.

        Raises:
            UserError: names the setting.

        """
        super().__post_init__()
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise UserError(f"foreign.cameras is {list(self.cameras)}; name at least one camera, and each once")
        if (self.gripper_open is None) != (self.gripper_closed is None) or (
            self.gripper_open is not None and self.gripper_open == self.gripper_closed
        ):
            raise UserError(
                f"foreign.gripper_open is {self.gripper_open}, foreign.gripper_closed {self.gripper_closed}; give two "
                "values that differ"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "openpi": {"image_size": 224, "horizon": 5},
    "starvla": {
        "image_size": 224, "state": "none", "gripper_open": 1.0, "gripper_closed": 0.0, "gripper_binary": True,
    },
    "vla-eval": {"image_size": 256, "rotation": "shortest", "gripper_binary": True, "horizon": 1},
    "openvla": {
        "image_size": 224, "resize": "lanczos", "gripper_open": 1.0, "gripper_closed": 0.0, "gripper_binary": True,
        "horizon": 8,
    },
}  # fmt: skip
"""What differs from the defaults of :class:`Conventions` in the peers' own LIBERO evaluations."""


def conventions(preset: str, *changes: dict[str, Any]) -> Conventions:
    """A preset with changes laid on top, the last first.

    Raises:
        UserError: an unknown preset or setting, or an impossible value.

    """
    if not isinstance(preset, str) or preset not in PRESETS:
        raise unknown_name("foreign.preset", str(preset), PRESETS)
    values = dict(PRESETS[preset])
    for change in changes:
        values |= change
    return build(Conventions, {**values, "preset": preset}, "foreign.")


def drawn_spec(chosen: Conventions, environment: ObservationSpec, horizon: int) -> ObservationSpec:
    """How the environment must look for a policy: large images, and a frame at each decision.

    Raises:
        UserError: a camera that the environment does not show.

    """
    for camera in chosen.cameras:
        if camera not in environment.cameras:
            raise unknown_name("foreign.cameras", camera, environment.cameras)
    return dataclasses.replace(
        environment,
        cameras=chosen.cameras,
        image_size=chosen.drawn_size,
        frame_stride=horizon,
        reflection=chosen.reflection,
        mesh_detail_mm=chosen.mesh_detail_mm,
    )


def expected_image(image: UInt8[np.ndarray, "height width 3"], chosen: Conventions) -> UInt8[np.ndarray, "size size 3"]:
    """A camera's image as the policy expects it."""
    turned = {"upright": image, "turned": image[::-1, ::-1], "mirrored": image[:, ::-1]}[chosen.orientation]
    size = chosen.image_size
    if turned.shape[:2] == (size, size):
        return np.ascontiguousarray(turned)
    from PIL import Image

    method = Image.Resampling[chosen.resize.upper()]
    return np.asarray(Image.fromarray(np.ascontiguousarray(turned)).resize((size, size), method))


def expected_state(
    state: Float32[np.ndarray, " state"], spec: ObservationSpec, chosen: Conventions
) -> Float64[np.ndarray, " shown"] | None:
    """The environment's state as the policy expects it; None if it expects none.

    Raises:
        UserError: the environment's state has no orientation or fingers.

    """
    if chosen.state == "none":
        return None
    values = state.astype(np.float64)
    if chosen.rotation == "shortest":
        turn = list(_named(spec, "orientation", "rotation", chosen.rotation))
        values[turn] = shortest_rotation(values[turn])
    if chosen.state == "mean_finger":
        fingers = list(_named(spec, "fingers", "state", chosen.state))
        values[fingers[0]] = values[fingers].mean()
        return np.delete(values, fingers[1:])
    if chosen.state == "quaternion":
        turn = list(_named(spec, "orientation", "state", chosen.state))
        return np.concatenate([values[: turn[0]], quaternion(values[turn]), values[turn[-1] + 1 :]])
    return values


def _named(spec: ObservationSpec, part: str, setting: str, value: str) -> tuple[int, ...]:
    indices: tuple[int, ...] = getattr(spec, part)
    if not indices:
        raise UserError(f"foreign.{setting} is {value!r}, but the environment's state has no {part}; choose another")
    return indices


def shortest_rotation(rotation: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """The rotation vector (rad) of at most half a turn that turns as another one does."""
    angle = float(np.linalg.norm(rotation))
    return rotation * (1 - 2 * np.pi / angle) if angle > np.pi else rotation


def quaternion(rotation: Float[np.ndarray, "3"]) -> Float[np.ndarray, "4"]:
    """The quaternion (x, y, z, w) of a rotation vector (rad), with a negative w beyond half a turn."""
    half = float(np.linalg.norm(rotation)) / 2
    return np.append(rotation / 2 * np.sinc(half / np.pi), np.cos(half))


def raw_actions(answer: Float[np.ndarray, "steps action"], spec: ActionSpec, chosen: Conventions) -> Chunk:
    """The environment's actions for a policy's answer, within their bounds.

    Args:
        answer: the policy's own actions.
        spec: of the environment's actions.
        chosen: what the policy's gripper values mean.

    Raises:
        UserError: actions of another size.

    """
    if answer.ndim != 2 or answer.shape[1] != spec.dim:
        raise UserError(
            f"the served policy answers actions of the shape {list(answer.shape)}, the environment takes [steps, "
            f"{spec.dim}] ({', '.join(spec.names)}); serve a policy for this robot"
        )
    actions = np.array(answer, np.float64)
    for index, opened, closed in zip(spec.grippers, spec.gripper_open, spec.gripper_closed, strict=True):
        own = (opened, closed)
        if chosen.gripper_open is not None and chosen.gripper_closed is not None:
            own = (chosen.gripper_open, chosen.gripper_closed)
        if own == (opened, closed) and not chosen.gripper_binary:
            continue  # bit for bit
        share = (actions[:, index] - own[0]) / (own[1] - own[0])
        if chosen.gripper_binary:
            share = (share >= 0.5).astype(np.float64)
        actions[:, index] = opened + share * (closed - opened)
    return clip_action(actions.astype(np.float32), spec)
