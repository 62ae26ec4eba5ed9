"""The prompts of a policy network, built from its settings, the same for training and for rollout."""

from collections.abc import Sequence

import jax
import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.specs import ObservationSpec
from wmjax.data.observation import Prompt
from wmjax.models.backbones.base import BACKBONES, Prepare, PromptConfig
from wmjax.models.vla import VLAConfig

__all__ = ["PromptConfig", "join_prompts", "make_prepare"]


def make_prepare(prompt: PromptConfig, model: VLAConfig, spec: ObservationSpec) -> Prepare:
    """A function from an instruction to its prompt, one image per camera that the model sees.

    Raises:
        UserError: no such tokenizer, fewer cameras than the model wants to see, or an image size or length that does
            not fit it.

    """
    available = len(spec.cameras)
    seen = available if model.cameras is None else model.cameras
    if not 1 <= seen <= available:
        raise UserError(
            f"model.cameras is {seen}; the data have {available} ({', '.join(spec.cameras)}), choose 1 to {available}"
        )
    sizes = [(spec.image_size, spec.image_size)] * seen
    return BACKBONES.resolve(model.backbone.kind).prepare(model.backbone, prompt, sizes, 1 + model.chunk)


def join_prompts(prompts: Sequence[Prompt]) -> Prompt:
    """Several batches of prompts as one, on the host."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *prompts)
