"""The prompts of a policy network, built from its settings, the same for training and for rollout."""

import dataclasses
from pathlib import Path

from wmjax.core.errors import UserError
from wmjax.core.specs import ObservationSpec
from wmjax.models.backbones.pretrained import backbone_folder
from wmjax.models.backbones.qwen2_5_vl.prompt import MINI_TOKENIZER, PromptBuilder
from wmjax.models.vla import VLAConfig


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """``tokenizer`` is ``mini``, a checkpoint's folder or a hub id; ``length`` the tokens every prompt is padded to."""

    tokenizer: str = "mini"
    length: int = 80


def make_prompt_builder(prompt: PromptConfig, model: VLAConfig, spec: ObservationSpec) -> PromptBuilder:
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
    return PromptBuilder(tokenizer_folder(prompt.tokenizer), sizes, model.chunk, prompt.length, model.backbone)


def tokenizer_folder(name: str) -> Path:
    """Where a tokenizer and its companions lie: ``mini``, a folder or a hub id, downloaded once.

    Raises:
        UserError: no such folder and the hub does not deliver it.

    """
    return MINI_TOKENIZER if name == "mini" else backbone_folder(name, "prompt.tokenizer")
