"""Chat templates: found where checkpoints keep them, rendered as transformers does, refused when damaged."""

import json
import shutil
from pathlib import Path

import pytest

from wmjax.core.errors import UserError
from wmjax.models.backbones.qwen2_5_vl.chat import ChatTemplate
from wmjax.models.backbones.qwen2_5_vl.prompt import MINI_TOKENIZER, PromptBuilder

# A system message if the conversation has none, counters, and indentation that trimming must remove.
TEMPLATE = """{% set seen = namespace(images=0) %}
{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a robot.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
    {% for part in message['content'] %}
        {% if 'image' in part or part['type'] == 'image' %}
            {% set seen.images = seen.images + 1 %}
{% if add_vision_id %}Picture {{ seen.images }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>
        {%- elif 'text' in part %}{{ part['text'] }}{% endif %}
    {% endfor %}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def checkpoint(folder: Path, name: str, text: str) -> Path:
    shutil.copy(MINI_TOKENIZER / "tokenizer.json", folder / "tokenizer.json")
    (folder / name).write_text(text if name.endswith("jinja") else json.dumps({"chat_template": text}))
    return folder


def test_the_mini_prompt_is_the_short_chat_format() -> None:
    text = PromptBuilder("mini", [(112, 112), (28, 56)], chunk=8, length=80).render("go")
    pads = (
        "<|vision_start|>" + "<|image_pad|>" * 16 + "<|vision_end|>",
        f"<|vision_start|>{'<|image_pad|>' * 2}<|vision_end|>",
    )
    assert text == f"<|im_start|>user\n{''.join(pads)}go<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_a_template_is_rendered_as_transformers_renders_it(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = checkpoint(tmp_path, name, TEMPLATE)
    message = {"role": "user", "content": [{"type": "image"}] * 2 + [{"type": "text", "text": "pick up {the} bowl"}]}
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    expected = reference.apply_chat_template(
        [message], chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    assert ChatTemplate(folder)("pick up {the} bowl", 2) == expected
    assert "You are a robot." in expected and expected.count(IMAGE) == 2 and "{the}" in expected


def test_the_first_file_that_has_a_template_counts(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "tokenizer_config.json", "old")
    (folder / "chat_template.json").write_text("{}")
    assert ChatTemplate(folder).source == "old"
    (folder / "chat_template.jinja").write_text("new")
    assert ChatTemplate(folder).source == "new"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("other.json", "x", "no chat template in chat_template.jinja, chat_template.json, tokenizer_config.json"),
        ("chat_template.jinja", "{% for x in %}", "the chat template is damaged"),
        (
            "chat_template.jinja",
            "{{ raise_exception('no images') }}",
            r"a message of 1 images and a text \(no images\)",
        ),
        ("chat_template.jinja", "{{ messages[0]['content'][-1]['text'] }}", r"writes 0 <\|image_pad\|> for 1 images"),
        ("chat_template.jinja", "{{ ().__class__.__bases__ }}", "the chat template refuses"),
    ],
)
def test_templates_that_do_not_work_are_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        PromptBuilder(checkpoint(tmp_path, name, text), [(112, 112)], 8, 80, PromptBuilder("mini", [], 8, 80).config)(
            "go"
        )


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: not valid JSON"):
        ChatTemplate(tmp_path)
