"""Probes of a policy's starting backbone: its tokens as features, beside those of pooled pixels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Key, UInt8

from wmjax.core.errors import UserError
from wmjax.core.paths import enable_compilation_cache
from wmjax.core.rng import named_key
from wmjax.core.settings import merge
from wmjax.core.specs import ObservationSpec
from wmjax.data.observation import Prompt
from wmjax.data.store import TrainingStore
from wmjax.diagnostics.probe import Frames, Table, find_camera, probe
from wmjax.encoders.encode import encode_clips
from wmjax.experiment.config import Experiment, load
from wmjax.experiment.plan import starting_weights
from wmjax.models.backbones.base import BACKBONES
from wmjax.models.prompts import make_prepare
from wmjax.models.vla import VLA

RECIPE = "e2_flow"
"""Any would do: the backbone is built first, so that its random values depend on scale and seed only."""
GRID = 4
"""An image's tokens are pooled to 4 x 4, as latents are: 3,072 features at ``mini``, which pools nothing at 112 px."""
BATCH = 32
ROWS = ("vision tower", "last layer")


class BackboneFeatures:
    """A starting backbone as :data:`wmjax.diagnostics.probe.Features`: tokens of one camera inside the policy's prompt.

    The decoder is causal and the image comes before the words: its hidden states know the cameras before it, but
    neither instruction nor state.
    """

    def __init__(self, experiment: Experiment, spec: ObservationSpec, camera: int) -> None:
        """Builds the backbone that training starts from.

        Args:
            experiment: its settings; ``train.backbone_weights`` names the rows.
            spec: of the frames.
            camera: index of the camera whose tokens are read; the model gets all that its policy sees.

        Raises:
            UserError: weights or tokenizer that do not fit the settings, a camera that the policy does not see, an
                image size that does not fit the model or cannot be pooled.

        """
        model = experiment.model
        self.name, self._camera, self._cameras = experiment.train.backbone_weights, camera, model.cameras
        self._prepare = make_prepare(experiment.prompt, model, spec)
        cameras = spec.cameras[: model.cameras]
        if camera >= len(cameras):
            raise UserError(
                f"camera {spec.cameras[camera]!r} is not used by the policy, model.cameras is {model.cameras}; "
                f"choose from {', '.join(cameras)}"
            )
        graph, self._state = nnx.split(starting_model(experiment))
        tokens = functools.partial(image_tokens, graph, camera)
        size = spec.image_size
        shape = jax.ShapeDtypeStruct((1, len(cameras), size, size, 3), np.uint8)
        side = jax.eval_shape(tokens, self._state, self._prepare("look"), shape).shape[2]
        grid = min(GRID, side)
        if side % grid:
            raise UserError(
                f"image_size is {size}, {side} x {side} tokens that do not pool to {GRID} x {GRID}; "
                f"give stores of {GRID * (size // side)} pixels or a multiple"
            )
        self._read_features = jax.jit(lambda *inputs: pool(tokens(*inputs), grid))

    def __call__(self, frames: Frames, instruction: str) -> dict[str, Float32[np.ndarray, "frames tokens dim"]]:
        """Features of every frame of an episode, row by row of the table."""
        look = functools.partial(self._read_features, self._state, self._prepare(instruction))
        features = encode_clips(look, frames[:, : self._cameras], BATCH)
        return {f"{self.name}: {row}": features[:, i] for i, row in enumerate(ROWS)}


def image_tokens(
    graph: nnx.GraphDef,
    camera: int,
    state: nnx.State,
    prompt: Prompt,
    images: UInt8[Array, "batch cameras height width 3"],
) -> Float[Array, "batch 2 rows columns dim"]:
    """A camera's image tokens in one prompt, as they enter a backbone's layers and as they leave them."""
    backbone: Any = nnx.merge(graph, state)
    prompts = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), len(images), axis=0), prompt)
    return backbone.image_tokens(prompts, images, camera)


def pool(tokens: Float[Array, "batch 2 rows columns dim"], grid: int) -> Float32[Array, "batch 2 pooled dim"]:
    """The mean of the tokens in each cell of a ``grid`` x ``grid`` cut of the image."""
    batch, kinds, side, _, dim = tokens.shape
    cells = tokens.reshape(batch, kinds, grid, side // grid, grid, side // grid, dim)
    return cells.mean(axis=(3, 5)).reshape(batch, kinds, grid * grid, dim).astype(jnp.float32)


def starting_model(experiment: Experiment) -> nnx.Module:
    """The backbone as training starts it: published weights, or random values that follow from the seed.

    Adapters do not matter here: they start as the identity.

    Raises:
        UserError: there are no such weights, or they do not fit the settings.

    """
    config, folder = experiment.model.backbone, starting_weights(experiment).folder

    def build(key: Key[Array, ""]) -> Any:  # the whole policy draws its values in one order; jit drops the rest
        return VLA(experiment.model, rngs=nnx.Rngs(key)).backbone

    key = named_key(experiment.train.seed, "parameters")
    graph = nnx.split(nnx.eval_shape(build, key))[0]
    state = jax.jit(lambda key: nnx.split(build(key))[1])(key)
    if folder is None:
        return nnx.merge(graph, state)
    leaves = dict(nnx.to_flat_state(state))

    def put(path: tuple[Any, ...], array: np.ndarray) -> Array:
        new = jnp.asarray(array, leaves[path].get_value().dtype)
        leaves[path] = leaves[path].replace(new)
        return new

    BACKBONES.resolve(config.kind).read_weights(folder, config, put)
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def probe_backbones(
    stores: list[TrainingStore],
    names: list[str],
    *,
    scale: str = "mini_lora",
    camera: str | None = None,
    settings: dict[str, Any] | None = None,
) -> Table:
    """Probes starting backbones on held-out episodes.

    Args:
        stores: training stores.
        names: what ``train.backbone_weights`` may name: folders, hub ids or ``random``.
        scale: a file of ``train/scales``.
        camera: whose tokens are read; the first of the stores when None.
        settings: nested settings, laid over the files.

    Raises:
        UserError: a store without the camera, or a backbone that does not fit the settings.

    """
    enable_compilation_cache()
    index = find_camera(stores, camera)
    kinds = []
    for name in names:
        experiment = load(RECIPE, scale, None, merge(settings or {}, {"train": {"backbone_weights": name}}))
        kinds.append(BackboneFeatures(experiment, stores[0].spec, index))
    return probe(stores, index, kinds)
