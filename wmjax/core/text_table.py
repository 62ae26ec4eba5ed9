"""Tables as plain text."""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np


def text_table(head: Sequence[str], rows: Iterable[Sequence[Any]], left: Collection[int] = (0,)) -> str:
    """Aligned columns under a ruled head; floats with three decimals, missing values as a dash.

    Args:
        head: the columns' names.
        rows: a value for each column.
        left: columns that are aligned to the left, negative ones counted from the end.

    """
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lefts = {column % len(head) for column in left}
    lines = [
        "  ".join(c.ljust(w) if i in lefts else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)
