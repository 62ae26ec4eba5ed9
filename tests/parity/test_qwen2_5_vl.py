"""Equality of the Flax Qwen2.5-VL with the reference implementation, on random weights."""

import copy
import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers.vision_utils import get_vision_window_index  # noqa: E402

from tests.parity.qwen_reference import IMAGE, Case, convert, error, make_reference, run_reference, small_config  # noqa: E402
from wmjax.models.backbones.qwen2_5_vl.config import preset  # noqa: E402
from wmjax.models.backbones.qwen2_5_vl.rope import positions_of  # noqa: E402

pytestmark = pytest.mark.torch

TOLERANCE = 1e-4
CASES = {
    "text": Case([([], 9), ([], 5)]),
    "one image": Case([([(112, 112)], 7)]),
    "two images": Case([([(112, 112)] * 2, 7), ([(112, 112)] * 2, 12)]),
    "three images of mixed sizes": Case([([(112, 224), (140, 84), (252, 252)], 6)]),
    "mixed batch, left": Case([([(140, 196)], 5), ([], 8), ([(56, 56), (28, 112)], 11)]),
    "mixed batch, right": Case([([(140, 196)], 5), ([], 8), ([(56, 56), (28, 112)], 11)], padding="right"),
}


@functools.partial(jax.jit, static_argnums=0)
def forward(graph, state, tokens, images, positions, mask):
    """Outputs of every vision block per image, of every decoder layer, and the logits."""
    model = nnx.merge(graph, state)
    blocks = [model.vision.run(image[None], None, collect=True)[1] for image in images]
    x = model.embed(tokens, [image[None] for image in images] or None)
    hidden, layers = model.run(x, positions, mask, None, collect=True)
    return blocks, layers, model.logits(hidden)


def our_positions(case):
    grids = [(i.shape[0] // 28, i.shape[1] // 28) for i in case.images]
    return positions_of(*case.tokens(), grids, IMAGE)


def our_outputs(model, case, positions=None):
    """Every vision block of every image, every decoder layer and the logits, the last two without padding."""
    tokens, mask = case.tokens()
    positions = our_positions(case) if positions is None else positions
    blocks, layers, logits = forward(*nnx.split(model), tokens, case.images, positions, mask)
    per_block = [np.asarray(image)[i, 0] for i in range(model.config.vision.depth) for image in blocks]
    return [*per_block, *(np.asarray(layer)[mask] for layer in layers), np.asarray(logits)[mask]]


def their_outputs(reference, case):
    """The same of the reference, and its positions."""
    out, mask = run_reference(reference, case), case.tokens()[1]
    per_block = [image.numpy() for block in to_raster(out["blocks"], case) for image in block] if case.images else []
    layers = [layer.numpy()[mask] for layer in out["layers"]]
    return [*per_block, *layers, out["logits"].numpy()[mask]], out["positions"]


def to_raster(blocks, case):
    """The reference's block outputs, per image in raster order of groups."""
    grids = torch.tensor([[1, i.shape[0] // 14, i.shape[1] // 14] for i in case.images])
    index, _ = get_vision_window_index(grids, spatial_merge_size=2, window_size=112, patch_size=14)
    inverse = torch.argsort(index)
    sizes = [int(h * w // 4) for _, h, w in grids]
    return [torch.split(b.reshape(len(index), 4, -1)[inverse], sizes) for b in blocks]


def errors(found, wanted):
    return [error(a, b) for a, b in zip(found, wanted, strict=True)]


def compare(reference, model, case):
    """The errors of every layer and the logits; also asserts equal positions."""
    wanted, positions = their_outputs(reference, case)
    if case.images:
        np.testing.assert_array_equal(our_positions(case).transpose(1, 0, 2), positions.numpy())
    return errors(our_outputs(model, case), wanted)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    config = small_config()
    reference = make_reference(config)
    return reference, convert(reference, config, tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("name", CASES)
def test_every_layer_and_the_logits(pair, name):
    assert max(compare(*pair, CASES[name])) < TOLERANCE


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tied"),
    [
        pytest.param(4, 4, True, marks=pytest.mark.long),
        (4, 1, False),
        pytest.param(6, 2, False, marks=pytest.mark.long),
    ],
)
def test_grouped_queries_and_untied_embeddings(tmp_path, heads, kv_heads, tied):
    config = small_config(heads, kv_heads, tied)
    reference = make_reference(config, seed=heads + kv_heads)
    assert max(compare(reference, convert(reference, config, tmp_path), CASES["two images"])) < TOLERANCE


@pytest.mark.parametrize("name", [n if n == "two images" else pytest.param(n, marks=pytest.mark.long) for n in CASES])
def test_error_is_that_of_float32(pair, name):
    """At most three times the reference's own float32 error against float64, in every layer and the logits.

    Prompt by prompt, because the reference's float64 gives NaN beside padding.
    """
    reference, model = pair
    exact = copy.deepcopy(reference).double()
    for prompt in {str(prompt): prompt for prompt in CASES[name].prompts}.values():
        case = Case([prompt])
        wanted, _ = their_outputs(exact, case)
        own, ours = errors(their_outputs(reference, case)[0], wanted), errors(our_outputs(model, case), wanted)
        assert all(a < 3 * b for a, b in zip(ours, own, strict=True)), (prompt, ours, own)


SIDES = st.integers(1, 6).map(lambda groups: 28 * groups)
PROMPTS = st.lists(st.tuples(st.lists(st.tuples(SIDES, SIDES), max_size=2), st.integers(1, 9)), min_size=1, max_size=2)


@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(PROMPTS, st.sampled_from(["left", "right"]))
def test_any_prompts(pair, prompts, padding):
    """Grids, prompt lengths and paddings as hypothesis finds them. Few: every one is a compilation."""
    assert max(compare(*pair, Case(prompts, padding))) < TOLERANCE


@pytest.mark.long
def test_true_widths_of_3b(tmp_path):
    """Two vision blocks, one with full attention, and two decoder layers, with a small vocabulary."""
    whole = preset("3b")
    config = dataclasses.replace(
        whole,
        vision=dataclasses.replace(whole.vision, depth=2, full_attention=(1,)),
        text=dataclasses.replace(whole.text, depth=2, vocabulary=1024),
        image_token=IMAGE,
        vision_start_token=IMAGE + 1,
        vision_end_token=IMAGE + 2,
    )
    reference = make_reference(config)
    model = convert(reference, config, tmp_path)
    assert max(compare(reference, model, Case([([(140, 112)], 9)]))) < TOLERANCE


def test_static_images_equal_lists_of_images(pair):
    """The policy's path: one array of images per prompt."""
    case = CASES["two images"]
    graph, state = nnx.split(pair[1])
    tokens, _ = case.tokens()
    embed = jax.jit(lambda state, images: nnx.merge(graph, state).embed(tokens, images))
    together = embed(state, np.stack(case.images).reshape(2, 2, 112, 112, 3))
    np.testing.assert_allclose(together, embed(state, [image[None] for image in case.images]), atol=2e-5)


def test_a_wrong_position_is_noticed(pair):
    """The comparison can fail: exchanging height and width in the positions breaks it."""
    case = CASES["one image"]
    reference, model = pair
    wrong = our_outputs(model, case, our_positions(case)[:, [0, 2, 1]])[-1]
    assert error(wrong, their_outputs(reference, case)[0][-1]) > 10 * TOLERANCE
