"""The vision tower of a frozen backbone by itself: what it makes of an image is the same in every training step."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, UInt8

from wmjax.core.errors import UserError
from wmjax.core.files import hash_bytes
from wmjax.core.rng import named_key
from wmjax.core.specs import EncoderSpec
from wmjax.data.latents import Backend
from wmjax.models.backbones.base import BACKBONES, BackboneConfig
from wmjax.models.nn.lora import ADAPTER


class FrozenVision:
    """A tower as what encodes a store of features (:class:`wmjax.encoders.base.Exporter`).

    Attributes:
        spec: of the features, whose clips are single frames.
        backend: of the computation.

    """

    backend: Backend = "jax"

    def __init__(self, config: BackboneConfig, spec: EncoderSpec, load: Callable[[], nnx.State]) -> None:
        """Args: ``load`` brings the parameters, when the first image is encoded.

        Raises:
            UserError: see :func:`frozen_tower`.

        """
        self.spec, self._load, self._graph = spec, load, frozen_tower(config)[0]

    def encode(self, clips: UInt8[np.ndarray, "batch 1 height width 3"]) -> Float32[Array, "batch tokens dim"]:
        """The features of single frames of one camera; returns as soon as they are under way."""
        return self._apply(self._params, clips[:, 0])

    @functools.cached_property
    def _params(self) -> nnx.State:
        return self._load()

    @functools.cached_property
    def _apply(self) -> Callable[..., Array]:
        return jax.jit(lambda params, images: nnx.merge(self._graph, params)(images).astype(jnp.float32))


def frozen_tower(config: BackboneConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and shapes of a backbone's vision tower that is frozen wherever the backbone's base is.

    Raises:
        UserError: the backbone has no tower of which features could be stored, or one with adapters.

    """
    tower = nnx.eval_shape(lambda: _tower(config, nnx.Rngs(0)))
    graph, shapes = nnx.split(tower)
    if adapters := jax.tree.leaves(nnx.state(tower, nnx.Any(*ADAPTER))):
        raise UserError(
            f"train.cached_vision stores what a frozen vision tower makes of the images, but {len(adapters)} arrays of "
            "adapters in it are trained; leave model.backbone.lora.vision_targets empty, or set train.cached_vision "
            "to none"
        )
    return graph, shapes


def feature_shape(config: BackboneConfig, image_size: int) -> tuple[int, int]:
    """Tokens and channels of the features of one image.

    Raises:
        UserError: see :func:`frozen_tower`, or an image size that does not fit the tower.

    """
    graph, shapes = frozen_tower(config)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.uint8)
    _, tokens, channels = jax.eval_shape(lambda params, images: nnx.merge(graph, params)(images), shapes, image).shape
    return tokens, channels


def random_tower(config: BackboneConfig, seed: int) -> nnx.State:
    """The tower's parameters in a training of that seed whose backbone starts from random values.

    They are those of the policy, because a policy draws its backbone first.
    """
    return jax.jit(lambda: nnx.state(_tower(config, nnx.Rngs(named_key(seed, "parameters")))))()


def published_tower(config: BackboneConfig, folder: Path) -> nnx.State:
    """The tower's parameters from the files of a published backbone.

    Raises:
        UserError: files that do not fit the settings.

    """
    backbone, elsewhere = BACKBONES.resolve(config.kind), jnp.zeros(())
    leaves = dict(nnx.to_flat_state(frozen_tower(config)[1]))

    def put(path: tuple[Any, ...], array: np.ndarray) -> Array:
        if path[0] != backbone.VISION:
            return elsewhere
        leaf = leaves[path[1:]]
        placed = jnp.asarray(array, leaf.get_value().dtype)
        leaves[path[1:]] = leaf.replace(placed)
        return placed

    backbone.read_weights(folder, config, put)
    return nnx.from_flat_state(leaves)


def hash_parameters(params: nnx.State) -> str:
    """The first 16 hex digits of the SHA-256 of all values."""
    return hash_bytes(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)))[:16]


def _tower(config: BackboneConfig, rngs: nnx.Rngs) -> Any:
    backbone = BACKBONES.resolve(config.kind)
    if not backbone.VISION:
        raise UserError(
            f"train.cached_vision: the backbone {config.kind} has no vision tower of which features can be stored; set "
            "it to none"
        )
    return getattr(backbone(config, rngs=rngs), backbone.VISION)
