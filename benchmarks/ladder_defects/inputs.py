"""Faults of what the network is given: clips that see the future, and prompts without an instruction."""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from wmjax.data.latents import LatentStore
from wmjax.data.store import TrainingStore
from wmjax.models.backbones.qwen2_5_vl.prompt import PromptBuilder
from wmjax.pipeline import train as pipeline
from wmjax.policy import policy
from wmjax.policy.carry import Carry
from wmjax.trainer.config import Inputs

AHEAD = 2
"""How many frames a clip of training ends after its own frame: 8 control steps, those of the action chunk."""


@contextlib.contextmanager
def clips_see_ahead() -> Iterator[None]:
    """The clips of training are not those of acting: they see the future, and a rollout begins with a single frame.

    The encoder attends in both directions in time. In training the latent of frame t, and so the history that the
    policy acts on, comes from the clip of the frames t-1 to t+2. In acting the clip ends at t, and at the first
    decision of an episode it is one frame, of which V-JEPA makes a tubelet, not a clip of the usual length.
    """

    def make_inputs(store: TrainingStore, latents: Any, *arguments: Any, **settings: Any) -> Inputs:
        made = inputs(store, latents, *arguments, **settings)
        return dataclasses.replace(made, latents=see_ahead(made.latents, store))

    def begin_with_one_frame(
        carry: Carry, frames: UInt8[Array, "batch n cameras height width 3"], first: Array, encode: Any
    ) -> Carry:
        after = observe(carry, frames, first, encode)
        batch, cameras = frames.shape[0], frames.shape[2]
        single = encode(frames[:, -1].reshape(batch * cameras, 1, *frames.shape[3:]))
        single = single.reshape(batch, 1, -1, single.shape[-1])
        begun = jnp.repeat(single, after.latents.shape[1], axis=1)
        return after._replace(latents=jnp.where(first[:, None, None, None], begun, after.latents))

    inputs, observe = pipeline.make_inputs, policy.observe
    with (
        mock.patch.object(pipeline, "make_inputs", make_inputs),
        mock.patch.object(policy, "observe", begin_with_one_frame),
    ):
        yield


class FramesAhead:
    """Latents ``[views, frames, tokens, dim]`` in which a frame has the latent of a later one of its episode."""

    def __init__(self, latents: Any, later: Int[np.ndarray, " frames"]) -> None:
        self._latents, self._later, self.shape = latents, later, latents.shape

    def __getitem__(self, index: tuple[Any, Any]) -> np.ndarray:
        views, frames = index
        return np.asarray(self._latents[views, self._later[frames]])


def see_ahead(latents: LatentStore, store: TrainingStore) -> LatentStore:
    """A latent store whose latent of frame t is that of a clip that ends ``AHEAD`` frames later.

    Where the episode is over, the clip ends with it.
    """
    entries = [store.episodes[index] for index in store.frame_episode]
    last = np.array([entry["frame_start"] + entry["num_frames"] - 1 for entry in entries])
    shifted = copy.copy(latents)
    shifted.latents = FramesAhead(latents.latents, np.minimum(np.arange(len(last)) + AHEAD, last))
    return shifted


@contextlib.contextmanager
def empty_instruction() -> Iterator[None]:
    """The instruction of every prompt is empty, in training and in acting, as if a key of the data were missing."""
    render = PromptBuilder.render
    with mock.patch.object(PromptBuilder, "render", lambda self, instruction: render(self, "")):
        yield
