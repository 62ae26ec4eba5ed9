"""Qwen2.5-VL: token and image embedding, the text decoder, logits."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from wmjax.core.errors import UserError
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig
from wmjax.models.backbones.qwen2_5_vl.layers import RMSNorm, linear_factory
from wmjax.models.backbones.qwen2_5_vl.rope import text_angles
from wmjax.models.backbones.qwen2_5_vl.text import DecoderLayer
from wmjax.models.backbones.qwen2_5_vl.vision import VisionTower
from wmjax.models.nn.layout import gather_rows, split_batch
from wmjax.models.nn.lora import AdapterInputs, AddedParam
from wmjax.models.nn.stack import annotate, run_layers, stack_layers

Images = UInt8[Array, "prompts images height width channels"] | Sequence[UInt8[Array, "_ _ _ channels"]]
"""Images of one size per prompt, or for any mix of sizes a list of stacks, in order of their appearance."""


class Qwen2_5_VL(nnx.Module):
    """The vision-language model, without a key-value cache: it is not for generating text."""

    def __init__(self, config: Qwen2_5_VLConfig, *, rngs: nnx.Rngs) -> None:
        text = config.text
        self.config = config
        self.vision = VisionTower(config, rngs=rngs)
        table = annotate(nnx.initializers.normal(config.embedding_std), "vocab", "embed")
        self.embedding = nnx.Param(table(rngs.params(), (text.vocabulary, text.hidden), jnp.dtype(config.param_dtype)))
        rows = annotate(nnx.initializers.normal(config.embedding_std), None, "embed")
        shape = (config.added_tokens, text.hidden)
        self.added = AddedParam(rows(rngs.params(), shape, jnp.float32)) if config.added_tokens else None
        self.layers = stack_layers(lambda keys: DecoderLayer(config, rngs=keys), text.depth, rngs)
        self.norm = RMSNorm(text.hidden, text.norm_epsilon, rngs=rngs, param_dtype=config.param_dtype)
        linear = linear_factory(config, ())
        self.head = None if config.tied else linear(text.hidden, text.vocabulary, ("embed", "vocab"), rngs=rngs)

    def embed(
        self, tokens: Int[Array, "batch tokens"], images: Images | None = None, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens hidden"]:
        """Embeds a prompt; the k-th image placeholder of a prompt gets the k-th token of its images.

        Args:
            tokens: token ids; ids from ``text.vocabulary`` on are added tokens.
            images: the images of every prompt, or a list of stacks whose images fill the batch's placeholders one
                prompt after the other.
            key: for dropout in the vision tower's adapters.

        Raises:
            UserError: an image size that does not fit.

        """
        if images is None:
            return self._embed_tokens(tokens)
        if isinstance(images, Sequence):
            keys = [None] * len(images) if key is None else list(jax.random.split(key, len(images)))
            parts = [self.vision(stack, k) for stack, k in zip(images, keys, strict=True)]
            joined = jnp.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
            return self.place_features(tokens.reshape(1, -1), joined[None]).reshape(*tokens.shape, -1)
        if images.ndim != 5 or images.shape[0] != tokens.shape[0]:
            raise UserError(
                f"images have shape {images.shape}; expected [{tokens.shape[0]}, images, height, width, channels]"
            )
        features = self.vision(images.reshape(-1, *images.shape[2:]), key)
        return self.place_features(tokens, features.reshape(tokens.shape[0], -1, features.shape[-1]))

    def place_features(
        self, tokens: Int[Array, "batch tokens"], features: Float[Array, "batch image_tokens hidden"]
    ) -> Float[Array, "batch tokens hidden"]:
        """As :meth:`embed`, with the features that the vision tower has made of the prompts' images, in their order."""
        return _fill(self._embed_tokens(tokens), tokens == self.config.image_token, features)

    def _embed_tokens(self, tokens: Int[Array, "batch tokens"]) -> Float[Array, "batch tokens hidden"]:
        size = self.config.text.vocabulary
        table = gather_rows(self.embedding[...], "vocab")
        x = jnp.take(table, jnp.minimum(tokens, size - 1), axis=0).astype(self.config.dtype)
        if self.added is None:
            return split_batch(x)
        rows = jnp.take(self.added[...], jnp.maximum(tokens - size, 0), axis=0).astype(self.config.dtype)
        return split_batch(jnp.where((tokens >= size)[..., None], rows, x))

    def forward(
        self,
        embeddings: Float[Array, "batch tokens hidden"],
        positions: Int[Array, "batch 3 tokens"],
        mask: Bool[Array, "batch tokens"],
        key: Key[Array, ""] | None = None,
        last: int | None = None,
    ) -> Float[Array, "batch read hidden"]:
        """The hidden states after the final norm; those of padding tokens are meaningless.

        Args:
            embeddings: from :meth:`embed`.
            positions: (time, height, width) of every token, see :func:`rope.positions_of`.
            mask: False at padding, on either side.
            key: for dropout in the adapters; None switches it off.
            last: how many of the last positions are read; None: all. The others are left out where the layers are a
                plain sequence (``scan_unroll`` covers them), so that the last layer computes keys and values only
                there. Splitting a scanned stack would copy its weights.

        """
        return self.run(embeddings, positions, mask, key, collect=False, last=last)[0]

    def run(
        self,
        embeddings: Float[Array, "batch tokens hidden"],
        positions: Int[Array, "batch 3 tokens"],
        mask: Bool[Array, "batch tokens"],
        key: Key[Array, ""] | None,
        collect: bool,
        last: int | None = None,
    ) -> tuple[Float[Array, "batch read hidden"], Float[Array, "depth batch tokens hidden"] | None]:
        """As :meth:`forward`, and also returns the hidden states after every layer, before the norm, if ``collect``."""
        config = self.config
        angles = text_angles(positions, config.text.rope_theta, config.text.rope_sections)

        def call(layer: DecoderLayer, x: Array, adapter: AdapterInputs, kind: int, last: int | None = None) -> Array:
            return layer(x, angles, mask, adapter, last)

        x, collected = run_layers(
            self.layers,
            call,
            embeddings.astype(config.dtype),
            per_layer=self._adapter_inputs(key),
            remat=config.remat,
            unroll=config.scan_unroll,
            collect=collect,
            last_call=None if last is None else functools.partial(call, last=last),
        )
        return self.norm(x), collected

    def forward_injected(
        self,
        embeddings: Float[Array, "batch tokens hidden"],
        positions: Int[Array, "batch 3 tokens"],
        mask: Bool[Array, "batch tokens"],
        key: Key[Array, ""] | None,
        layers: tuple[int, ...],
        inject: Callable[[Array, Array], tuple[Array, Array]],
        last: int | None = None,
    ) -> tuple[Float[Array, "batch read hidden"], Float[Array, " batch"]]:
        """As :meth:`forward`, with something done to the hidden states after some layers.

        One scan over all layers, in which a condition skips the others: splitting the stack would copy the weights.

        Args:
            embeddings: from :meth:`embed`.
            positions: (time, height, width) of every token.
            mask: False at padding.
            key: for dropout in the adapters; None switches it off.
            layers: indices of the layers.
            inject: ``inject(x, i) -> (x, ratio)`` for the i-th of them, with one number per sample.
            last: as in :meth:`forward`; at least what ``inject`` changes.

        Returns:
            Hidden states, and the mean of the ratios.

        """
        config, depth = self.config, self.config.text.depth
        angles = text_angles(positions, config.text.rope_theta, config.text.rope_sections)
        numbers = np.full(depth, -1, np.int32)
        numbers[list(layers)] = np.arange(len(layers))

        def call(
            layer: DecoderLayer,
            carry: tuple[Array, Array],
            extra: tuple[AdapterInputs, Array],
            kind: int,
            last: int | None = None,
        ) -> Any:
            (x, total), (adapter, number) = carry, extra

            def injected(x: Array) -> tuple[Array, Array]:
                changed, ratio = inject(x, number)
                return changed, total + ratio

            return jax.lax.cond(number >= 0, injected, lambda x: (x, total), layer(x, angles, mask, adapter, last))

        (x, total), _ = run_layers(
            self.layers,
            call,
            (embeddings.astype(config.dtype), jnp.zeros(embeddings.shape[0])),
            per_layer=(self._adapter_inputs(key), jnp.asarray(numbers)),
            remat=config.remat,
            unroll=config.scan_unroll,
            last_call=None if last is None else functools.partial(call, last=last),
        )
        return self.norm(x), total / len(layers)

    def _adapter_inputs(self, key: Key[Array, ""] | None) -> AdapterInputs:
        depth, chosen = self.config.text.depth, self.config.lora.layers
        active = jnp.asarray(np.isin(np.arange(depth), chosen), jnp.float32) if chosen else None
        return AdapterInputs(None if key is None else jax.random.split(key, depth), active)

    def logits(self, hidden: Float[Array, "*batch hidden"]) -> Float[Array, "*batch vocabulary"]:
        """Scores of the pretrained vocabulary, float32."""
        kernel = self.embedding[...].T if self.head is None else self.head.kernel[...]
        return jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)


def _fill(
    x: Float[Array, "batch tokens hidden"],
    is_image: Bool[Array, "batch tokens"],
    features: Float[Array, "batch image_tokens hidden"],
) -> Float[Array, "batch tokens hidden"]:
    """Puts image features, in order, where the image placeholders are."""
    index = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, features.shape[1] - 1)
    placed = jnp.take_along_axis(features, index[..., None], axis=1)
    return jnp.where(is_image[..., None], placed.astype(x.dtype), x)
