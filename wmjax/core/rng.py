"""Random keys: the experiment's seed with the consumer's name, and then integers, folded in.

Because streams have names, each is independent of how many others exist and of the order in which they draw.
"""

import hashlib

import jax
from jaxtyping import Array, UInt32

Key = UInt32[Array, "..."]


def stable_hash(name: str) -> int:
    """A 31-bit hash of a name that is the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") & 0x7FFFFFFF


def named_key(seed: int | Array, name: str, *steps: int | Array) -> jax.Array:
    """The key of one named consumer: ``fold_in(key(seed), hash(name))``, then each of ``steps`` folded in."""
    key = jax.random.fold_in(jax.random.key(seed), stable_hash(name))
    for step in steps:
        key = jax.random.fold_in(key, step)
    return key
