"""Equality of the Flax Qwen2.5-VL with the reference implementation, on random weights."""

import functools
import itertools

import jax
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers.vision_utils import get_vision_window_index  # noqa: E402

from tests.parity.qwen_reference import IMAGE, Case, convert, error, make_reference, run_reference, small_config  # noqa: E402
from wmjax.models.qwen2_5_vl.rope import positions_of  # noqa: E402

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


def run_ours(model, case, positions=None):
    """Every layer's output, the logits and the positions of our model."""
    tokens, mask = case.tokens()
    grids = [(i.shape[0] // 28, i.shape[1] // 28) for i in case.images]
    positions = positions_of(tokens, mask, grids, IMAGE) if positions is None else positions
    blocks, layers, logits = forward(*nnx.split(model), tokens, case.images, positions, mask)
    return {"blocks": blocks, "layers": layers, "logits": logits, "positions": positions, "mask": mask}


def to_raster(blocks, case):
    """The reference's block outputs, per image in raster order of groups."""
    grids = torch.tensor([[1, i.shape[0] // 14, i.shape[1] // 14] for i in case.images])
    index, _ = get_vision_window_index(grids, spatial_merge_size=2, window_size=112, patch_size=14)
    inverse = torch.argsort(index)
    sizes = [int(h * w // 4) for _, h, w in grids]
    return [torch.split(b.reshape(len(index), 4, -1)[inverse], sizes) for b in blocks]


def compare(reference, model, case):
    """The errors of every layer and the logits; also asserts equal positions."""
    theirs, ours = run_reference(reference, case), run_ours(model, case)
    mask = ours["mask"]
    errors = []
    for layer, per_image in enumerate(to_raster(theirs["blocks"], case) if case.images else []):
        errors += [error(ours["blocks"][i][layer, 0], wanted) for i, wanted in enumerate(per_image)]
    errors += [error(a[mask], b[mask]) for a, b in zip(np.asarray(ours["layers"]), theirs["layers"], strict=True)]
    errors.append(error(np.asarray(ours["logits"])[mask], theirs["logits"][mask]))
    if case.images:
        np.testing.assert_array_equal(ours["positions"].transpose(1, 0, 2), theirs["positions"].numpy())
    return errors


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    config = small_config()
    reference = make_reference(config)
    return reference, convert(reference, config, tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("name", CASES)
def test_every_layer_and_the_logits(pair, name):
    assert max(compare(*pair, CASES[name])) < TOLERANCE


@pytest.mark.parametrize(("heads", "kv_heads", "tied"), [(4, 4, True), (4, 1, False), (6, 2, False)])
def test_grouped_queries_and_untied_embeddings(tmp_path, heads, kv_heads, tied):
    config = small_config(heads, kv_heads, tied)
    reference = make_reference(config, seed=heads + kv_heads)
    assert max(compare(reference, convert(reference, config, tmp_path), CASES["two images"])) < TOLERANCE


def test_error_is_that_of_float32(pair, tmp_path):
    """At most three times the reference's own float32 error against float64."""
    config = small_config()
    reference, model = pair
    exact = make_reference(config).double()
    case = CASES["three images of mixed sizes"]
    mask = case.tokens()[1]
    wanted = run_reference(exact, case)["logits"][mask]
    own = error(run_reference(reference, case)["logits"][mask], wanted)
    assert error(np.asarray(run_ours(model, case)["logits"])[mask], wanted) < 3 * own


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
    tokens, mask = case.tokens()
    positions = positions_of(tokens, mask, [(4, 4)], IMAGE)[:, [0, 2, 1]]
    logits = np.asarray(run_ours(model, case, positions)["logits"])
    assert error(logits[mask], run_reference(reference, case)["logits"][mask]) > 10 * TOLERANCE


def test_windows_of_any_grid():
    """Our order of groups, window by window, holds the reference's windows, each with its groups in raster order."""
    from wmjax.models.qwen2_5_vl import image

    for rows, columns in itertools.product((1, 3, 4, 5, 8, 9), (1, 2, 4, 7, 8)):
        grid = torch.tensor([[1, 2 * rows, 2 * columns]])
        index, edges = get_vision_window_index(grid, spatial_merge_size=2, window_size=112, patch_size=14)
        edges = torch.unique(edges // 4)
        wanted = {tuple(index[a:b].tolist()) for a, b in itertools.pairwise(edges)}
        order = image.to_windows(np.arange(rows * columns).reshape(1, -1, 1), (rows, columns), 4).reshape(-1)
        sizes = [r.window_size for r in image.regions(rows, columns, 4) for _ in range(r.windows)]
        found = {tuple(part.tolist()) for part in np.split(order, np.cumsum(sizes)[:-1])}
        assert found == wanted
