"""The chat template of a checkpoint, as ``transformers`` renders it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from wmjax.core.errors import UserError, one_line
from wmjax.core.reading import read_json, read_text

FIX = "download it again"
FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
"""The files that may hold the template; the first one found is used. The JSON files have the key ``chat_template``."""


class ChatTemplate:
    """Renders one user message, images before the text, up to where the assistant answers.

    Attributes:
        source: the template's text.

    """

    def __init__(self, folder: Path) -> None:
        """Reads the template of a checkpoint's folder.

        Raises:
            UserError: no template there, or a damaged one.

        """
        self.source, self._path = _read(folder)
        # The environment of transformers' apply_chat_template: templates count on its treatment of white space.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(self.source)
        except TemplateError as error:
            raise UserError(
                f"{self._path}: the chat template is damaged ({one_line(error)}); download it again"
            ) from error

    def __call__(self, instruction: str, images: int) -> str:
        """The text, with one image placeholder per image.

        Raises:
            UserError: the template refuses such a message.

        """
        parts: Sequence[dict[str, str]] = [{"type": "image"}] * images + [{"type": "text", "text": instruction}]
        try:
            return self._template.render(messages=[{"role": "user", "content": parts}], add_generation_prompt=True)
        except Exception as error:  # a template is a program, which may divide by zero or call itself
            reason = one_line(error)
            raise UserError(
                f"{self._path}: the chat template refuses a message of {images} images and a text ({reason}); take "
                "another checkpoint's"
            ) from error


def _read(folder: Path) -> tuple[str, Path]:
    for name in FILES:
        path = folder / name
        if not path.is_file():
            continue
        if path.suffix == ".jinja":
            return read_text(path, FIX), path
        content = read_json(path, dict[str, Any], FIX)
        if isinstance(content.get("chat_template"), str):
            return content["chat_template"], path
    raise UserError(f"{folder}: no chat template in {', '.join(FILES)}; download the checkpoint's own files")


def _refuse(message: str) -> None:
    raise TemplateError(message)
