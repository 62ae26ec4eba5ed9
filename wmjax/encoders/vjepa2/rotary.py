"""The 3-D rotary positions of V-JEPA 2 as a numpy table, shared by the Flax encoder and PyTorch pre-training."""

import numpy as np
from jaxtyping import Float32


def rotary_table(
    head_dim: int, grid_size: int, num_tokens: int
) -> tuple[Float32[np.ndarray, "tokens dim"], Float32[np.ndarray, "tokens dim"]]:
    """Cosine and sine ``[num_tokens, head_dim]`` of the tubelet positions (time, row, column).

    Each axis rotates ``2 * (head_dim // 3 // 2)`` channels; the remainder is left alone (cos 1, sin 0). The
    published weights were trained with the angles *tiled* over the two halves of an axis' channels while
    channel pairs are *interleaved*; that mismatch is kept. Positions count in the ``grid_size`` of
    the config's image size, independent of the input's size.
    """
    width = 2 * (head_dim // 3 // 2)
    ids = np.arange(num_tokens)
    time, within = np.divmod(ids, grid_size**2)
    row, column = np.divmod(within, grid_size)
    omega = 1.0 / 10000 ** (np.arange(width // 2, dtype=np.float32) / np.float32(width / 2))
    angles = [np.tile(p[:, None].astype(np.float32) * omega.astype(np.float32), (1, 2)) for p in (time, row, column)]
    rest = np.zeros((num_tokens, head_dim - 3 * width), np.float32)
    angle = np.concatenate([*angles, rest], axis=1)
    return np.cos(angle), np.sin(angle)
