"""Observations: the function from raw simulator readings to what a policy receives.

Recording, dataset import, training and rollout all build observations with the functions below. Imports neither jax
nor the simulator; NamedTuples are pytrees without either.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from wmjax.core.errors import UserError
from wmjax.core.specs import ObservationSpec

Array = Any
"""A numpy or jax array; this module must not import jax."""


Prompt = Any
"""A batch of prompts: a pytree of arrays with the batch first, which only the backbone that made it understands."""


class Observation(NamedTuple):
    """The inputs of a policy at one decision.

    ``images`` are the ``n`` frames that became due since the last decision, oldest first, the newest being
    the one the decision is made on. ``first`` marks an episode's first decision, at which history is clamped.
    """

    images: UInt8[Array, "batch n cameras height width 3"]
    state: Float32[Array, "batch state"]
    prompt: Prompt
    first: Bool[Array, " batch"]


def require_observation(observation: Observation, keys: Array, spec: ObservationSpec) -> None:
    """Refuses what a policy would misread, such as images of colours from 0 to 1, or could not compute.

    Args:
        observation: for a policy.
        keys: the randomness, one key per row.
        spec: the observations that the policy was trained on.

    Raises:
        UserError: names the first field of another type or shape, and what it must be.

    """
    shape, edge = np.shape(observation.images), spec.image_size
    batch = shape[0] if shape else 1
    frames = shape[1] if len(shape) > 1 and shape[1] else 1
    _require_array(observation.images, "images", np.uint8, (batch, frames, len(spec.cameras), edge, edge, 3))
    _require_array(observation.state, "state", np.floating, (batch, spec.state_dim))
    _require_array(observation.first, "first", np.bool_, (batch,))
    if isinstance(observation.state, np.ndarray) and not np.isfinite(observation.state).all():
        raise UserError(f"observation.state is {observation.state.tolist()}; give finite numbers")
    if isinstance(text := observation.prompt, str):
        raise UserError(f"observation.prompt is {text!r}; give policy.prompt({text!r})")
    if np.shape(keys)[:1] != (batch,):
        raise UserError(
            f"keys have shape {np.shape(keys)}; give one for each of {batch} rows, as jax.random.split does"
        )


def _require_array(value: Any, name: str, kind: type[np.generic], shape: tuple[int, ...]) -> None:
    found = getattr(value, "dtype", None)
    if found is None or not np.issubdtype(found, kind) or np.shape(value) != shape:
        given = f"{type(value).__name__ if found is None else found} {np.shape(value)}"
        raise UserError(f"observation.{name} is {given}; the policy takes {kind.__name__} {shape}")


def orient_image(raw: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Rotates a raw MuJoCo image by 180 degrees, the convention of every published LIBERO dataset."""
    return np.ascontiguousarray(raw[::-1, ::-1])


def resize_image(image: UInt8[np.ndarray, "height width 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes to ``size`` by Pillow's antialiased bilinear filter: what ``resize_filter="bilinear"`` means.

    Dataset import and rollout both use it; an image that has the size already is returned as it is.
    """
    if image.shape[:2] == (size, size):
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def axis_angle(quaternion: Float[np.ndarray, "4"]) -> Float32[np.ndarray, "3"]:
    """Rotation vector (rad) of an xyzw quaternion, exactly as ``robosuite.utils.transform_utils.quat2axisangle``.

    No sign normalisation of the quaternion: the published states were made without it.
    """
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0):
        return np.zeros(3, np.float32)
    return (quaternion[:3] * 2.0 * np.arccos(w) / sine).astype(np.float32)


def build_state(
    position: Float[np.ndarray, "3"], quaternion: Float[np.ndarray, "4"], fingers: Float[np.ndarray, "2"]
) -> Float32[np.ndarray, " state"]:
    """Proprioception: end-effector xyz (m), axis-angle (rad), the two finger positions (m)."""
    return np.concatenate([position, axis_angle(quaternion), fingers]).astype(np.float32)
