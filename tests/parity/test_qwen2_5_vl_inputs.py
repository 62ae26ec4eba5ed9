"""What goes into Qwen2.5-VL equals the reference's: sizes, patches, positions, the order of windows."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import Qwen2_5_VLForConditionalGeneration  # noqa: E402
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil  # noqa: E402
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference_resize  # noqa: E402
from transformers.vision_utils import get_vision_window_index  # noqa: E402

from tests.parity.qwen_reference import IMAGE, Case, reference_config, small_config  # noqa: E402
from wmjax.models.backbones.qwen2_5_vl import image  # noqa: E402
from wmjax.models.backbones.qwen2_5_vl.rope import positions_of  # noqa: E402

pytestmark = pytest.mark.torch

LEVEL = 1 / 255


def test_windows_of_any_grid():
    """Our order of groups, window by window, holds the reference's windows, each with its groups in raster order."""
    for rows, columns in itertools.product((1, 3, 4, 5, 8, 9), (1, 2, 4, 7, 8)):
        grid = torch.tensor([[1, 2 * rows, 2 * columns]])
        index, edges = get_vision_window_index(grid, spatial_merge_size=2, window_size=112, patch_size=14)
        edges = torch.unique(edges // 4)
        wanted = {tuple(index[a:b].tolist()) for a, b in itertools.pairwise(edges)}
        order = image.to_windows(np.arange(rows * columns).reshape(1, -1, 1), (rows, columns), 4).reshape(-1)
        sizes = [r.window_size for r in image.regions(rows, columns, 4) for _ in range(r.windows)]
        found = {tuple(part.tolist()) for part in np.split(order, np.cumsum(sizes)[:-1])}
        assert found == wanted


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(1, 2500), st.integers(1, 2500))
def test_sizes_after_resizing(height, width):
    if max(height, width) <= 200 * min(height, width):
        found = image.smart_resize(height, width)
        assert found == reference_resize(height, width, 28, image.MIN_PIXELS, image.MAX_PIXELS)


def patches(pixels):
    """Ours inside jit, in the reference's layout: repeated in time."""

    def run(pixels):
        pixels = image.resize(pixels, image.smart_resize(*pixels.shape[:2]))
        return image.patchify(pixels[None], 14, 2)[0]

    out = np.asarray(jax.jit(run)(pixels)).reshape(-1, 3, 1, 196)
    return np.broadcast_to(out, (out.shape[0], 3, 2, 196)).reshape(-1, 1176)


def reference_patches(pixels):
    return np.asarray(Qwen2VLImageProcessorPil()(images=[pixels], return_tensors="np")["pixel_values"])


def test_patches_of_images_of_a_right_size():
    pixels = np.random.default_rng(0).integers(0, 256, (84, 140, 3), np.uint8)
    np.testing.assert_allclose(patches(pixels), reference_patches(pixels), atol=1e-6)


@pytest.mark.parametrize("size", [(256, 256), (100, 133), (120, 160), (175, 198), (20, 300)])
def test_patches_of_resized_noise_are_within_one_level(size):
    """Noise is the hardest image: almost every pixel overshoots."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    std = np.repeat(image.STD, 2 * 196)  # back to pixels in [0, 1]
    difference = np.abs(patches(pixels) - reference_patches(pixels)) * std
    assert difference.max() < 1.001 * LEVEL and np.mean(difference > LEVEL / 2) < 0.01


@pytest.fixture(scope="module")
def reference():
    """Only its positions are asked for; without weights."""
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(reference_config(small_config()))


SIDES = st.integers(1, 9).map(lambda groups: 28 * groups)
PROMPTS = st.lists(st.tuples(st.lists(st.tuples(SIDES, SIDES), max_size=3), st.integers(1, 20)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(PROMPTS, st.sampled_from(["left", "right"]))
def test_positions_of_any_prompts(reference, prompts, padding):
    case = Case(prompts, padding)
    tokens, mask = case.tokens()
    sizes = [size for images, _ in prompts for size in images]
    ids = torch.from_numpy(tokens).long()
    grids = torch.tensor([[1, h // 14, w // 14] for h, w in sizes]) if sizes else None
    wanted = reference.model.get_rope_index(
        ids, (ids == IMAGE).int(), grids, attention_mask=torch.from_numpy(mask).long()
    )[0]
    found = positions_of(tokens, mask, [(h // 28, w // 28) for h, w in sizes], IMAGE)
    for row, valid in enumerate(mask):
        np.testing.assert_array_equal(found[row][:, valid], wanted[:, row].numpy()[:, valid])
