"""A client's request for a decision, checked against the policy's specs; shared by all dialects."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from wmjax.core.errors import UserError
from wmjax.core.handover import Realtime
from wmjax.core.specs import ActionSpec, ObservationSpec, to_dict
from wmjax.data.observation import resize_image
from wmjax.serving.packed import Limits

MAX_SIDE = 1024
"""Largest image (pixels) that is resized for a client."""
LARGEST = np.float64(np.finfo(np.float32).max)
MAX_TEXT = 1000
"""Longest instruction or name, in characters."""


@dataclasses.dataclass(frozen=True)
class Service:
    """The served policy, and the inputs that its clients must send.

    Attributes:
        observation: what the policy sees.
        action: what it answers.
        horizon: control steps between two decisions of an episode.
        frames_per_decision: frames that fall due in that time.
        realtime: how a chunk continues what is executed while it is computed.
        delay: control steps between an observation and the execution of its actions, where that is known.
        pending_steps: how many pending actions a decision carries.
        limits: of every message.
        card: which policy it is, for the dialects that tell their clients.

    """

    observation: ObservationSpec
    action: ActionSpec
    horizon: int
    frames_per_decision: int
    realtime: Realtime = "none"
    delay: int = 0
    pending_steps: int = 0
    limits: Limits = dataclasses.field(default_factory=Limits)
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def about(self) -> dict[str, Any]:
        """What all dialects tell their clients: which policy it is, what it was trained on, when it decides."""
        return {
            **self.card,
            "observation": to_dict(self.observation),
            "action": to_dict(self.action),
            "open_loop_horizon": self.horizon,
            "frames_per_decision": self.frames_per_decision,
            "realtime": self.realtime,
            "execution_delay": self.delay,
            "pending_steps": self.pending_steps,
        }


@dataclasses.dataclass(frozen=True)
class Request:
    """One decision that a client requests.

    Attributes:
        frames: all that fell due since the client's last decision, oldest first, or the newest alone.
        state: proprioception now.
        instruction: what to do.
        episode: name of the episode, which determines the noise; None if the client sends none.
        session: the client's own name; another name is another episode. None if the client sends none.
        step: control steps since the episode's start; None if the client sends none.
        pending: raw actions that the client still executes; None if it sends none.

    """

    frames: UInt8[np.ndarray, "frames cameras height width 3"]
    state: Float32[np.ndarray, " state"]
    instruction: str
    episode: str | None = None
    session: str | None = None
    step: int | None = None
    pending: Float32[np.ndarray, "steps action"] | None = None


def read_frames(
    images: Mapping[str, tuple[str, Any]], service: Service
) -> UInt8[np.ndarray, "frames cameras height width 3"]:
    """The frames of all cameras, in the policy's order and size.

    Args:
        images: for each camera of the policy, the client's name for it and what it sent: u8 ``[side, side, 3]``, or
            ``[frames, side, side, 3]``. Another side is resized by :func:`wmjax.data.observation.resize_image`.
        service: what the policy needs.

    Raises:
        UserError: an image of another type, rank, shape or number of frames.

    """
    views = [_camera_frames(*images[camera], service) for camera in service.observation.cameras]
    if len({len(view) for view in views}) != 1:
        counts = ", ".join(f"{len(view)} of {images[c][0]}" for c, view in zip(images, views, strict=True))
        raise UserError(f"the cameras have different numbers of frames ({counts}); send as many of each")
    return np.stack(views, axis=1)


def _camera_frames(name: str, value: Any, service: Service) -> UInt8[np.ndarray, "frames height width 3"]:
    """What one camera saw."""
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
        found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"{name} is {found}; send an array of uint8")
    if value.ndim not in (3, 4) or value.shape[-1] != 3 or value.shape[-2] != value.shape[-3]:
        raise UserError(f"{name} has the shape {list(value.shape)}; send [side, side, 3], or [frames, side, side, 3]")
    view = value if value.ndim == 4 else value[None]
    needed, side, size = service.frames_per_decision, view.shape[1], service.observation.image_size
    if len(view) not in (1, needed):
        raise UserError(f"{name} has {len(view)} frames; send the newest, or the {needed} since the last decision")
    if not 0 < side <= MAX_SIDE:
        raise UserError(f"{name} has images of {side} pixels a side; send 1 to {MAX_SIDE}, the policy sees {size}")
    return view if side == size else np.stack([resize_image(image, size) for image in view])


def read_state(name: str, value: Any, service: Service) -> Float32[np.ndarray, " state"]:
    """Proprioception.

    Raises:
        UserError: not numbers, another number of them, or too large for float32.

    """
    names = service.observation.state

    def wanted() -> str:
        return f"{len(names)} numbers ({', '.join(names)})"

    return _numbers(name, value, (len(names),), wanted, "metres and radians")


def read_pending(name: str, value: Any, service: Service) -> Float32[np.ndarray, "steps action"]:
    """The actions that a client still executes, raw, from the control step of its observation on.

    Raises:
        UserError: the policy takes none; not numbers, another number of them, or too large for float32.

    """
    steps, dim = service.pending_steps, service.action.dim
    if not steps:
        raise UserError(f"{name} is sent, but the policy takes no pending actions; leave it out")
    return _numbers(
        name, value, (steps, dim), lambda: f"{[steps, dim]} numbers, the next {steps} actions", "raw actions"
    )


def _numbers(
    name: str, value: Any, shape: tuple[int, ...], wanted: Callable[[], str], fix: str
) -> Float32[np.ndarray, "..."]:
    """An array of numbers of a shape; ``wanted`` says of which, for the error alone."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or value.shape != shape:
        found = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"{name} is {found}; send an array of {wanted()}")
    if not (np.abs(value) <= LARGEST).all():
        raise UserError(f"{name} has numbers that are too large for float32; send {fix}")
    return value.astype(np.float32)


def read_text(name: str, value: Any) -> str:
    """An instruction or a name; a numpy array of one text counts as that text.

    Raises:
        UserError: no text, an empty one, or a long one.

    """
    if isinstance(value, np.ndarray) and value.dtype.kind == "U" and value.size == 1:
        value = value.item()
    if not isinstance(value, str):
        raise UserError(f"{name} is a {type(value).__name__}; send text")
    if not value.strip() or len(value) > MAX_TEXT:
        raise UserError(f"{name} has {len(value.strip())} characters; send 1 to {MAX_TEXT}")
    return value


def read_step(name: str, value: Any) -> int:
    """Control steps since an episode's start.

    Raises:
        UserError: not a whole number, or a negative one.

    """
    if isinstance(value, np.integer):
        value = int(value)
    if type(value) is not int or value < 0:
        raise UserError(f"{name} is {str(value)[:40]!r}; send a whole number of control steps, 0 or more")
    return value


def required(message: Mapping[str, Any], key: str) -> Any:
    """What an observation must have.

    Raises:
        UserError: it does not.

    """
    if key not in message:
        raise UserError(f"the observation has no {key!r}; send it")
    return message[key]
