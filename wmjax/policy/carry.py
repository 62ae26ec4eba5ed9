"""The memory of a policy for each slot's episode: the frames of the encoder's clips and the latent history."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, UInt8

from wmjax.data.windows import clip_indices


class Carry(NamedTuple):
    """The state of a policy for each slot's episode: the clips' frames and the latent history, oldest first.

    ``prediction`` is what the last decision expected of the next frames; it is only compared with what came.
    """

    clip: UInt8[Array, "batch clip cameras height width 3"]
    latents: Float32[Array, "batch history tokens dim"]
    prediction: Float32[Array, "batch future tokens dim"]


def observe(carry: Carry, frames: UInt8[Array, "batch n cameras height width 3"], first: Array, encode: Any) -> Carry:
    """Pushes the newly due frames through the clip buffer and their latents into the history.

    At an episode's first decision both buffers are filled with the first frame, which is what the clip and history
    windows of the training data do (``data.windows``: indices clamped at the episode's first frame).
    """
    clip = jnp.where(first[:, None, None, None, None, None], frames[:, :1], carry.clip)
    clip, new = encode_new_frames(clip, frames, encode)
    history = jnp.where(first[:, None, None, None], new[:, :1], carry.latents)
    latents = jnp.concatenate([history, new], 1)[:, -history.shape[1] :]
    return carry._replace(clip=clip, latents=latents)


def encode_new_frames(
    clip: UInt8[Array, "batch clip cameras height width 3"],
    frames: UInt8[Array, "batch n cameras height width 3"],
    encode: Any,
) -> tuple[UInt8[Array, "batch clip cameras height width 3"], Float32[Array, "batch n tokens dim"]]:
    """Pushes new frames through the clip buffer and encodes each of them.

    Returns:
        The clip that ends with the last new frame, and the latent of each new frame, in which the cameras' tokens
        follow one another.

    """
    length, n = clip.shape[1], frames.shape[1]
    every = jnp.concatenate([clip, frames], 1)
    clips = every[:, clip_indices(np.arange(length, length + n), 0, length)]  # the windows of the training data
    clips = jnp.moveaxis(clips, 3, 2)
    new = encode(clips.reshape(-1, *clips.shape[3:]))
    return every[:, -length:], new.reshape(clips.shape[0], n, -1, new.shape[-1])


def beside(leaf: Array) -> jax.sharding.Sharding:
    """A sharding that replicates arrays over the devices of another, possibly split, array."""
    place = leaf.sharding
    return NamedSharding(place.mesh, PartitionSpec()) if isinstance(place, NamedSharding) else place
