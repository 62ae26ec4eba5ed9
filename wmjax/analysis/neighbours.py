"""Nearest neighbours among latents: latents cannot be decoded, but the frames of their neighbours can be viewed."""

import numpy as np
from jaxtyping import Float32, Int

CHUNK = 256
"""Queries compared with all keys at a time."""


def nearest(
    queries: Float32[np.ndarray, " n *shape"],
    keys: Float32[np.ndarray, " m *shape"],
    count: int = 1,
    apart: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]] | None = None,
) -> Int[np.ndarray, "n count"]:
    """Rows of ``keys`` by Euclidean distance, the nearest first.

    Args:
        queries: what is looked for.
        keys: what may be found.
        count: how many of each query.
        apart: a number of each query and of each key, such as its episode; a key with the query's own is left out.

    """
    wanted, table = (values.reshape(len(values), -1) for values in (queries, keys))
    lengths, rows = np.square(table).sum(1), []
    for start in range(0, len(wanted), CHUNK):
        part = slice(start, start + CHUNK)
        # |q|² is the same for all keys: it does not change the order.
        square = lengths - 2.0 * wanted[part] @ table.T
        if apart is not None:
            square[apart[0][part, None] == apart[1]] = np.inf
        rows.append(np.argsort(square, axis=1, kind="stable")[:, :count])
    return np.concatenate(rows)
