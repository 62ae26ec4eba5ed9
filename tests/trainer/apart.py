"""One of two processes that save to a URL: ``python -m tests.trainer.apart PORT INDEX URL``, with its own WMJAX_CACHE.

It saves steps 1 and 2, restores step 2 from what is at the URL, and saves step 3 while process 1 can copy nothing.
"""

import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wmjax.core.errors import UserError
from wmjax.core.location import Remote
from wmjax.trainer import checkpoint
from wmjax.trainer.mirror import Mirror


def items(mesh: Mesh, step: int) -> dict[str, Any]:
    """An array of which each device holds a part, and one that all hold whole."""

    def spread(value: np.ndarray, *axes: str) -> jax.Array:
        at = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.make_array_from_callback(value.shape, at, lambda index: value[index])

    values = step + np.arange(64, dtype=np.float32).reshape(8, 8)
    return {"ema": {"split": spread(values, "fsdp"), "whole": spread(-values)}}


def main(port: str, index: int, url: str) -> int:
    jax.distributed.initialize(f"localhost:{port}", 2, index)
    mesh, mirror = Mesh(np.array(jax.devices()), ("fsdp",)), Mirror(Remote(url))
    root = mirror.run / "checkpoints"
    with checkpoint.Saver(root, copy=mirror) as saver:
        for step in (1, 2):
            saver.save(step, items(mesh, step), {})
        saver.wait()
        mirror.follow(2)
        expected = items(mesh, 2)["ema"]
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), expected)
        found = checkpoint.restore(root / "00000002", "ema", like)
        for name, array in expected.items():
            for mine, theirs in zip(found[name].addressable_shards, array.addressable_shards, strict=True):
                np.testing.assert_array_equal(mine.data, theirs.data, err_msg=name)
        if index == 1:
            Remote.upload = cut_off  # type: ignore[method-assign]
        try:
            saver.save(3, items(mesh, 3), {})
            saver.wait()
        except UserError as error:
            print(f"refused: {error}")
        return 0


def cut_off(place: Remote, *_: object) -> None:
    raise UserError(f"{place}: cannot be written")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
