import numpy as np
import pytest

from wmjax.data.shift import draw_views, shift_images


def reference(image, dy, dx):
    """Edge padding and a crop: another way to say the same."""
    pad = 9
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    height, width = image.shape[:2]
    return padded[pad - dy : pad - dy + height, pad - dx : pad - dx + width]


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 3, 13, 17, 3), dtype=np.uint8)


def test_content_moves_down_and_right_and_the_edge_repeats(images):
    for dy, dx in [(0, 0), (2, -3), (-6, 6), (9, -9)]:
        shifted = shift_images(images[0, 0], dy, dx)
        assert shifted.dtype == np.uint8 and np.array_equal(shifted, reference(images[0, 0], dy, dx))
        assert np.array_equal(shift_images(images, dy, dx)[0, 0], shifted)


def test_one_shift_per_leading_index(images):
    dy, dx = np.array([0, 1, -2, 6, -6]), np.array([3, 0, 5, -6, 6])
    shifted = shift_images(images, dy, dx)
    for b in range(5):
        for t in range(3):
            assert np.array_equal(shifted[b, t], reference(images[b, t], dy[b], dx[b]))


def test_numpy_and_jitted_jax_agree_bit_for_bit(images):
    import jax

    views = draw_views(5, 2, 0)[:, 1]
    expected = shift_images(images, views[:, 0], views[:, 1])
    found = jax.jit(shift_images)(images, views[:, 0], views[:, 1])
    assert found.dtype == np.uint8 and np.array_equal(np.asarray(found), expected)


def test_views_start_unshifted_and_stay_in_range():
    views = draw_views(200, 3, seed=1, max_shift=4)
    assert views.shape == (200, 3, 2) and views.dtype == np.int32
    assert not views[:, 0].any()
    assert set(np.unique(views[:, 1:])) == set(range(-4, 5))
    assert np.array_equal(views, draw_views(200, 3, seed=1, max_shift=4))
    assert not np.array_equal(views, draw_views(200, 3, seed=2, max_shift=4))
