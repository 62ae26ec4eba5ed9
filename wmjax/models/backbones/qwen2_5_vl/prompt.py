"""Tokenised prompts, made on the host: chat template, image and action placeholders, positions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32
from tokenizers import Tokenizer

from wmjax.core.errors import UserError, one_line, require_unicode
from wmjax.core.files import hash_bytes
from wmjax.models.backbones.qwen2_5_vl import chat
from wmjax.models.backbones.qwen2_5_vl.chat import ChatTemplate
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig, load_hf_config, preset
from wmjax.models.backbones.qwen2_5_vl.rope import positions_of

MINI_TOKENIZER = Path(__file__).parent / "mini_tokenizer"

TOKENIZER = "tokenizer.json"
COMPANIONS = (TOKENIZER, *chat.FILES, "vocab.json", "merges.txt", "preprocessor_config.json")
"""Files that a checkpoint's folder holds for its prompts and images, as far as it has them."""

MULTIPLE = 8
"""Lengths of prompts are multiples of it, as the tiles of accelerators are."""

PAD, IMAGE_PAD = "<|endoftext|>", "<|image_pad|>"


Array = Any
"""A numpy or jax array."""


class Prompt(NamedTuple):
    """A batch of tokenised prompts. The last ``1 + chunk`` tokens represent the state and the actions."""

    tokens: Int32[Array, "batch length"]
    mask: Bool[Array, "batch length"]
    positions: Int32[Array, "batch 3 length"]


class PromptBuilder:
    """Makes prompts of one fixed length: padding on the left, a state and ``chunk`` action placeholders at the end.

    The placeholders are the model's added tokens: the state is ``text.vocabulary``, the actions follow it.

    Attributes:
        chat: the chat template.
        hashes: of the tokenizer's and the chat template's files; a checkpoint keeps them.

    """

    def __init__(
        self,
        tokenizer: str | Path,
        image_sizes: Sequence[tuple[int, int]],
        chunk: int,
        length: int,
        config: Qwen2_5_VLConfig | None = None,
    ) -> None:
        """Loads the tokenizer.

        Args:
            tokenizer: ``"mini"``, or a checkpoint's folder with ``tokenizer.json`` and its chat template.
            image_sizes: (height, width) in pixels of every image, as the model gets it.
            chunk: number of action placeholders.
            length: total length of a prompt, a multiple of 8.
            config: the model's; by default the mini preset or the checkpoint's ``config.json``.

        Raises:
            UserError: a missing or unsuitable tokenizer, chat template, image size or length.

        """
        mini = str(tokenizer) == "mini"
        folder = MINI_TOKENIZER if mini else Path(tokenizer)
        self.config = config or (preset("mini") if mini else load_hf_config(folder))
        self.chunk, self.length = chunk, length
        self.image_grids = [self._grid(size) for size in image_sizes]
        if chunk < 1 or length < MULTIPLE or length % MULTIPLE:
            raise UserError(f"prompt length is {length} and chunk {chunk}; use a multiple of {MULTIPLE} and at least 1")
        self._tokenizer, content = _load(folder / TOKENIZER)
        self.chat = ChatTemplate(folder)
        self._check_ids(folder)
        self.hashes = {
            name: hash_bytes(data)[:16]
            for name, data in (("tokenizer", content), ("template", self.chat.source.encode()))
        }

    def __call__(self, instruction: str) -> Prompt:
        """The prompt of one instruction, as a batch of one: tokens int32, mask bool, positions int32.

        Raises:
            UserError: an empty instruction, one with special tokens, or one that does not fit into ``length``.

        """
        ids = self.encode(instruction)
        placeholders = self.config.text.vocabulary + np.arange(1 + self.chunk)
        used = len(ids) + len(placeholders)
        if used > self.length:
            raise UserError(
                f"instruction {instruction!r} makes a prompt of {used} tokens, the prompt length is {self.length}; "
                f"set it to {-(-used // 8) * 8} or shorten the instruction"
            )
        padding = self.length - used
        pad = self._tokenizer.token_to_id(PAD)
        tokens = np.concatenate([np.full(padding, pad), ids, placeholders]).astype(np.int32)[None]
        mask = (np.arange(self.length) >= padding)[None]
        positions = positions_of(tokens, mask, self.image_grids, self.config.image_token)
        return Prompt(tokens=tokens, mask=mask, positions=positions)

    def render(self, instruction: str) -> str:
        """The prompt's text, before the placeholders of state and actions.

        Raises:
            UserError: a chat template that does not take images.

        """
        # As the reference processor does: every placeholder becomes as many as the image has tokens.
        first, *rest = self.chat(instruction, len(self.image_grids)).split(IMAGE_PAD)
        if len(rest) != len(self.image_grids):
            raise UserError(f"the chat template writes {len(rest)} {IMAGE_PAD} for {len(self.image_grids)} images")
        tokens = (IMAGE_PAD * (rows * columns) for rows, columns in self.image_grids)
        return first + "".join(pads + text for pads, text in zip(tokens, rest, strict=True))

    def decode(self, tokens: Sequence[int] | Int32[np.ndarray, " tokens"]) -> str:
        """The text of tokens, special ones included."""
        return str(self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False))

    def encode(self, instruction: str) -> list[int]:
        """The tokens of an instruction's prompt, before the placeholders of state and actions.

        Raises:
            UserError: an empty instruction, or one with special tokens.

        """
        if not instruction.strip():
            raise UserError("instruction is empty; every prompt needs the task in words")
        require_unicode(instruction, "instruction")
        added = (token.content for token in self._tokenizer.get_added_tokens_decoder().values())
        special = [token for token in added if token in instruction]
        if special:
            raise UserError(f"instruction {instruction!r} contains the special token {special[0]!r}; remove it")
        return self._tokenizer.encode(self.render(instruction), add_special_tokens=False).ids

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        factor = self.config.vision.factor
        if min(size) < factor or size[0] % factor or size[1] % factor:
            raise UserError(f"image size is {size[0]} x {size[1]}; use positive multiples of {factor} pixels")
        return size[0] // factor, size[1] // factor

    def _check_ids(self, folder: Path) -> None:
        """The tokenizer and the model must agree on the image placeholder and on which ids are free."""
        found = self._tokenizer.token_to_id(IMAGE_PAD)
        if found != self.config.image_token or self._tokenizer.token_to_id(PAD) is None:
            raise UserError(
                f"{folder}: {IMAGE_PAD} is token {found}, the model's image_token is {self.config.image_token}; "
                f"take tokenizer and config from one checkpoint"
            )
        largest = max(self._tokenizer.get_vocab().values())
        if largest >= self.config.text.vocabulary:
            raise UserError(
                f"{folder}: the tokenizer has id {largest}, the model's vocabulary {self.config.text.vocabulary}; "
                f"take tokenizer and config from one checkpoint"
            )


def _load(path: Path) -> tuple[Tokenizer, bytes]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; give 'mini' or the folder of a downloaded checkpoint")
    content = path.read_bytes()
    try:
        tokenizer = Tokenizer.from_str(content.decode())
        # As transformers does before it encodes a text: a call with padding leaves its setting in the file.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer, content
    except Exception as error:  # tokenizers raises a bare Exception
        raise UserError(f"{path} is not a tokenizer ({one_line(error)}); download it again") from error
