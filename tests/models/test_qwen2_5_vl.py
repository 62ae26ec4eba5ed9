"""Qwen2.5-VL by itself: size, prompts, padding, added tokens, and errors for bad input. Parity is in tests/parity."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.vla_helpers import initialised
from tests.tiny import tiny_config
from wmjax.core.errors import UserError
from wmjax.models.backbones.qwen2_5_vl import flops, image, names
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig, preset
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.backbones.qwen2_5_vl.prompt import PromptBuilder
from wmjax.models.backbones.qwen2_5_vl.rope import positions_of
from wmjax.models.nn.lora import LoRAConfig
from wmjax.models.parameters import count
from wmjax.models.prompts import join_prompts, trim_prompts

CONFIG = tiny_config().backbone
INSTRUCTION = "pick up the black bowl and place it on the plate"


def make(**changes: object) -> Qwen2_5_VL:
    config = dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]
    return initialised(lambda rngs: Qwen2_5_VL(config, rngs=rngs))


def test_3b_has_the_published_number_of_parameters() -> None:
    state = nnx.state(names.abstract_model(preset("3b")))
    vision = count(nnx.state(names.abstract_model(preset("3b")).vision))
    assert (count(state), vision) == (3_754_622_976, 668_684_288)
    lora = preset("3b", lora=LoRAConfig(rank=16))
    assert count(nnx.state(names.abstract_model(lora), nnx.LoRAParam)) == 29_933_568


def test_a_prompt_ends_with_the_state_and_the_actions() -> None:
    builder = PromptBuilder("mini", [(112, 112)] * 2, chunk=8, length=80)
    prompt = builder(INSTRUCTION)
    first = builder.config.text.vocabulary
    np.testing.assert_array_equal(prompt.tokens[0, -9:], np.arange(first, first + 9))
    assert (prompt.tokens == builder.config.image_token).sum() == 2 * 4 * 4
    padding = int((~prompt.mask).sum())
    assert padding > 0 and not prompt.mask[0, :padding].any() and prompt.mask[0, padding:].all()
    one, other = join_prompts([prompt, builder("open the drawer")]), builder("open the drawer")
    np.testing.assert_array_equal(one.tokens[1:], other.tokens)


@pytest.mark.parametrize(
    ("arguments", "instruction", "message"),
    [
        (([(112, 112)], 8, 24), INSTRUCTION, r"makes a prompt of \d+ tokens, the prompt length is 24; set it to \d+"),
        (([(112, 112)], 8, 80), "  ", "instruction is empty"),
        (([(112, 112)], 8, 80), "go <|image_pad|>", r"contains the special token '<\|image_pad\|>'"),
        (([(20, 112)], 8, 80), INSTRUCTION, "image size is 20 x 112; use positive multiples of 28"),
        (([(112, 112)], 8, 81), INSTRUCTION, "prompt length is 81 and chunk 8; use a multiple of 8"),
        (([(112, 112)], 0, 80), INSTRUCTION, "chunk 0; use a multiple of 8 and at least 1"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(arguments: tuple, instruction: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PromptBuilder("mini", *arguments)(instruction)


def test_a_tokenizer_of_another_model_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"<\|image_pad\|> is token \d+, the model's image_token is 5"):
        PromptBuilder("mini", [(112, 112)], 8, 80, dataclasses.replace(preset("mini"), image_token=5))
    with pytest.raises(UserError, match=r"tokenizer\.json does not exist"):
        PromptBuilder(tmp_path, [(112, 112)], 8, 80, CONFIG)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer"):
        PromptBuilder(tmp_path, [(112, 112)], 8, 80, CONFIG)


def test_padding_on_either_side_changes_nothing() -> None:
    graph, state = nnx.split(make())
    tokens = np.random.default_rng(0).integers(0, 500, (1, 9)).astype(np.int32)

    @jax.jit
    def decode(tokens, positions, mask):
        model = nnx.merge(graph, state)
        return model.forward(model.embed(tokens), positions, mask)

    def hidden(left: int, right: int) -> np.ndarray:
        padded = np.pad(tokens, ((0, 0), (left, right)), constant_values=3)
        mask = np.pad(np.ones((1, 9), bool), ((0, 0), (left, right)))
        return np.asarray(decode(padded, positions_of(padded, mask, [], CONFIG.image_token), mask))[mask]

    plain = hidden(0, 0)
    np.testing.assert_allclose(hidden(5, 0), plain, atol=2e-5)
    np.testing.assert_allclose(hidden(0, 5), plain, atol=2e-5)


@pytest.mark.parametrize("unroll", [1, 3])
def test_the_last_positions_are_the_same_alone(unroll: int) -> None:
    """States and gradients; as a plain sequence the last layer computes no others."""
    text = dataclasses.replace(CONFIG.text, depth=3)
    graph, params = nnx.split(make(text=text, scan_unroll=unroll))
    rng = np.random.default_rng(0)
    tokens, mask = rng.integers(0, 500, (2, 12)).astype(np.int32), np.arange(12) >= np.array([[3], [0]])
    positions = positions_of(tokens, mask, [], CONFIG.image_token)
    weight = rng.normal(size=(2, 4, text.hidden)).astype(np.float32)

    def shift(x: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x.at[:, -4:, 0].add(1.0 + number), jnp.ones(len(x))

    @functools.partial(jax.jit, static_argnames="last")
    def run(params: nnx.State, last: int | None) -> Any:
        def loss(params: nnx.State) -> Any:
            model = nnx.merge(graph, params)
            embeddings = model.embed(tokens)
            plain = model.forward(embeddings, positions, mask, None, last)
            injected, _ = model.forward_injected(embeddings, positions, mask, None, (0, 2), shift, last)
            assert plain.shape[1] == injected.shape[1] == (12 if last is None or unroll == 1 else last)
            return jnp.sum(weight * (plain[:, -4:] + injected[:, -4:])), (plain[:, -4:], injected[:, -4:])

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, found), gradients = run(params, 4)
    (_, expected), wanted = run(params, None)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), found, expected)
    assert float(np.abs(found[0] - found[1]).max()) > 1e-2
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-4), nnx.as_pure(gradients), nnx.as_pure(wanted))


def test_padding_that_all_prompts_have_is_trimmed() -> None:
    builder = PromptBuilder("mini", [(112, 112)] * 2, chunk=8, length=96)
    prompts = join_prompts([builder(INSTRUCTION), builder("open the drawer")])
    used = int(prompts.mask.sum(axis=1).max())
    trimmed = trim_prompts(prompts, tiny_config())
    length = trimmed.tokens.shape[1]
    assert length % 8 == 0 and 0 <= length - used < 8 < 96 - length
    for whole, part in zip(prompts, trimmed, strict=True):
        np.testing.assert_array_equal(part, whole[..., -length:])
    assert not prompts.mask[:, :-length].any()
    again = trim_prompts(trimmed, tiny_config())
    np.testing.assert_array_equal(again.tokens, trimmed.tokens)


def test_added_tokens_train_without_touching_pretrained_rows() -> None:
    model = make(added_tokens=3)
    first = CONFIG.text.vocabulary
    tokens = jnp.array([[1, first, first + 2, first - 1, first + 2]])
    graph, state = nnx.split(model)
    gradients = jax.grad(lambda state: jnp.sum(nnx.merge(graph, state).embed(tokens)))(state)
    np.testing.assert_array_equal(gradients["added"].get_value()[:, 0], [1, 0, 2])
    rows = np.flatnonzero(np.abs(gradients["embedding"].get_value()).max(-1))
    np.testing.assert_array_equal(rows, [1, first - 1])  # only where those tokens themselves stand
    out, added = np.asarray(model.embed(tokens)[0]), np.asarray(model.added[...])
    np.testing.assert_array_equal(out[[1, 2, 4]], added[[0, 2, 2]])


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"image size is 20 x 112, sides must be positive multiples of 28; resize it"):
        image.patchify(jnp.zeros((1, 20, 112, 3), jnp.uint8), 14, 2)
    with pytest.raises(UserError, match="image size is 0 x 5"):
        image.smart_resize(0, 5)
    with pytest.raises(UserError, match="aspect ratio of at most 200"):
        image.smart_resize(1, 201)
    tokens = jnp.zeros((2, 8), jnp.int32)
    with pytest.raises(UserError, match=r"images have shape \(1, 1, 28, 28, 3\); expected \[2, images"):
        make().embed(tokens, jnp.zeros((1, 1, 28, 28, 3), jnp.uint8))


def test_placeholders_must_match_the_images() -> None:
    token = CONFIG.image_token
    tokens, mask = np.array([[1, token, token, 2]]), np.ones((1, 4), bool)
    assert positions_of(tokens, mask, [(1, 2)], token).shape == (1, 3, 4)
    with pytest.raises(UserError, match="has 2 image placeholders in a row, the image there has 2 x 2"):
        positions_of(tokens, mask, [(2, 2)], token)
    with pytest.raises(UserError, match="have 1 images fewer than the 2 given"):
        positions_of(tokens, mask, [(1, 2), (1, 2)], token)


def test_flops_of_3b() -> None:
    """At 224 pixels and 200 tokens, against sums made by hand over the published sizes."""
    config, grid = preset("3b", lora=LoRAConfig(rank=16)), (8, 8)
    layer = 2048 * (2048 + 2 * 256 + 2048 + 3 * 11008)
    text = 36 * (2 * 200 * layer + 4 * 200**2 * 2048)
    adapters = 2 * 200 * 29_933_568
    block = 2 * 256 * (4 * 1280**2 + 3 * 1280 * 3420)
    scores = 28 * 4 * 4 * 64**2 * 1280 + 4 * 4 * 256**2 * 1280
    vision = 2 * 256 * 588 * 1280 + 32 * block + scores + 2 * 64 * (5120**2 + 5120 * 2048)
    assert flops.vision_flops(config, grid) == vision
    assert flops.forward_flops(config, [grid] * 2, 200) == 2 * vision + text + adapters
    backward = 36 * (2 * 200 * layer + 2 * 4 * 200**2 * 2048) + 2 * adapters
    assert flops.lora_step_flops(config, [grid] * 2, 200) == 2 * vision + text + adapters + backward


def test_the_default_is_3b() -> None:
    assert Qwen2_5_VLConfig() == preset("3b")
    with pytest.raises(UserError, match=r"unknown Qwen2\.5-VL preset '3B'; did you mean 3b"):
        preset("3B")
