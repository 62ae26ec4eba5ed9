"""The prompts of a policy network, built from its settings, the same for training and for rollout."""

from collections.abc import Sequence

import jax
import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.specs import ObservationSpec
from wmjax.data.observation import Prompt
from wmjax.models.backbones.base import BACKBONES, Prepare, PromptConfig
from wmjax.models.vla import VLAConfig

__all__ = ["PromptConfig", "join_prompts", "make_prepare", "mean_tokens", "prompt_shapes", "trim_prompts"]


def make_prepare(prompt: PromptConfig, model: VLAConfig, spec: ObservationSpec) -> Prepare:
    """A function from an instruction to its prompt, one image per camera that the model sees.

    Raises:
        UserError: no such tokenizer, fewer cameras than the model wants to see, or an image size or length that does
            not fit it.

    """
    backbone = BACKBONES.resolve(model.backbone.kind)
    return backbone.prepare(model.backbone, prompt, _image_sizes(model, spec), 1 + model.chunk)


def prompt_shapes(prompt: PromptConfig, model: VLAConfig, spec: ObservationSpec) -> Prompt:
    """The result of :func:`make_prepare`'s function as a pytree of ``jax.ShapeDtypeStruct``; nothing is downloaded.

    Raises:
        UserError: fewer cameras than the model wants to see, or settings that do not fit it.

    """
    backbone = BACKBONES.resolve(model.backbone.kind)
    return backbone.prompt_shapes(model.backbone, prompt, _image_sizes(model, spec), 1 + model.chunk)


def _image_sizes(model: VLAConfig, spec: ObservationSpec) -> list[tuple[int, int]]:
    """(height, width) in pixels of each image that the model sees."""
    available = len(spec.cameras)
    used = available if model.cameras is None else model.cameras
    if not 1 <= used <= available:
        raise UserError(
            f"model.cameras is {used}; the data have {available} ({', '.join(spec.cameras)}), choose 1 to {available}"
        )
    return [(spec.image_size, spec.image_size)] * used


def trim_prompts(prompts: Prompt, model: VLAConfig) -> Prompt:
    """Prompts without the padding that all of them have: training is faster with no more tokens than its data need."""
    return BACKBONES.resolve(model.backbone.kind).trim(prompts)


def mean_tokens(prompts: Prompt, model: VLAConfig) -> float | None:
    """The mean number of the decoder's tokens over prompts, without padding; None for a backbone that counts none."""
    counts = BACKBONES.resolve(model.backbone.kind).count_tokens(prompts)
    return None if counts is None else float(np.mean(counts))


def join_prompts(prompts: Sequence[Prompt]) -> Prompt:
    """Several batches of prompts as one, on the host."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *prompts)
