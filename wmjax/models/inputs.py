"""The batch that goes into the policy network."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Float32, UInt8

from wmjax.data.observation import Prompt


class ModelInput(NamedTuple):
    """A batch for the policy. ``future`` and its mask serve the world loss only and never reach an action.

    ``images`` are None for a Prophet that is trained alone, and where ``features`` are there: what the backbone's
    vision tower has made of the images of the cameras that the VLM gets. ``pending`` are the normalised actions that
    are still to be executed before the chunk begins, for a policy that takes them as an input.
    """

    images: UInt8[Array, "batch cameras height width 3"] | None
    state: Float32[Array, "batch state"]
    prompt: Prompt
    latents: Float32[Array, "batch history tokens dim"] | None = None
    future: Float32[Array, "batch future tokens dim"] | None = None
    future_mask: Bool[Array, "batch future"] | None = None
    pending: Float32[Array, "batch pending action"] | None = None
    features: Float[Array, "batch image_tokens channels"] | None = None
