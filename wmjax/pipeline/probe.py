"""Probes of a policy's starting backbone: its tokens as features, beside those of pooled pixels."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Key, UInt8

from wmjax.core.errors import UserError
from wmjax.core.paths import keep_compiled_programs
from wmjax.core.rng import named_key
from wmjax.core.settings import merge
from wmjax.core.specs import ObservationSpec
from wmjax.data.observation import Prompt
from wmjax.data.store import TrainingStore
from wmjax.diagnostics.probe import Frames, Table, find_camera, probe
from wmjax.encoders.encode import encode_clips
from wmjax.encoders.vjepa2.model import pool_last_tubelet
from wmjax.experiment.config import Experiment, load
from wmjax.experiment.plan import starting_weights
from wmjax.models.backbones.qwen2_5_vl import weights
from wmjax.models.nn.lora import LoRAConfig
from wmjax.models.prompts import make_prompt_builder
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
        self._prompts = make_prompt_builder(experiment.prompt, model, spec)
        if camera >= len(self._prompts.image_grids):
            raise UserError(
                f"camera {spec.cameras[camera]!r} is not seen by the policy, model.cameras is {model.cameras}; "
                f"choose from {', '.join(spec.cameras[: model.cameras])}"
            )
        side = self._prompts.image_grids[camera][0]
        self._grid = min(GRID, side)
        if side % self._grid:
            raise UserError(
                f"image_size is {spec.image_size}, {side} x {side} tokens that do not pool to {GRID} x {GRID}; "
                f"give stores of {GRID * model.backbone.vision.factor} pixels or a multiple"
            )
        graph, self._state = nnx.split(starting_model(experiment))
        self._look = jax.jit(functools.partial(look, graph, self._grid))

    def __call__(self, frames: Frames, instruction: str) -> dict[str, Float32[np.ndarray, "frames tokens dim"]]:
        """Features of every frame of an episode, row by row of the table."""
        prompt = self._prompts(instruction)
        images = np.flatnonzero(prompt.tokens[0] == self._prompts.config.image_token)
        places = images.reshape(len(self._prompts.image_grids), -1)[self._camera]
        look = functools.partial(self._look, self._state, prompt, places)
        seen = encode_clips(look, frames[:, : self._cameras], BATCH)
        return {f"{self.name}: {row}": seen[:, i] for i, row in enumerate(ROWS)}


def look(
    graph: nnx.GraphDef,
    grid: int,
    state: nnx.State,
    prompt: Prompt,
    places: Int[Array, "tokens"],
    images: UInt8[Array, "batch cameras height width 3"],
) -> Float[Array, "batch 2 pooled dim"]:
    """A backbone's embeddings and last hidden states at the image tokens ``places`` of one prompt, pooled; float32."""
    backbone: Any = nnx.merge(graph, state)
    tokens, mask, positions = (jnp.repeat(jnp.asarray(x), len(images), axis=0) for x in prompt)
    embeddings = backbone.embed(tokens, images)
    hidden = backbone.decode(embeddings, positions, mask)
    parts = (pool_last_tubelet(x[:, None, places], grid) for x in (embeddings, hidden))
    return jnp.stack([part.astype(jnp.float32) for part in parts], axis=1)


def starting_model(experiment: Experiment) -> nnx.Module:
    """The backbone as training starts it: published weights, or random values that follow from the seed.

    Adapters do not matter here: they start as the identity.

    Raises:
        UserError: there are no such weights, or they do not fit the settings.

    """
    config = experiment.model.backbone
    folder = starting_weights(experiment).folder
    if folder is not None:
        return weights.load_model(folder, dataclasses.replace(config, lora=LoRAConfig()))

    def build(key: Key[Array, ""]) -> Any:  # the whole policy draws its values in one order; jit drops the rest
        return VLA(experiment.model, rngs=nnx.Rngs(key)).backbone

    key = named_key(experiment.train.seed, "parameters")
    graph = nnx.split(nnx.eval_shape(build, key))[0]
    return nnx.merge(graph, jax.jit(lambda key: nnx.split(build(key))[1])(key))


def probe_backbones(
    stores: list[TrainingStore],
    names: list[str],
    *,
    scale: str = "mini_lora",
    camera: str = "agentview",
    settings: dict[str, Any] | None = None,
) -> Table:
    """Probes starting backbones on held-out episodes.

    Args:
        stores: training stores.
        names: what ``train.backbone_weights`` may name: folders, hub ids or ``random``.
        scale: a file of ``train/scales``.
        camera: whose tokens are read.
        settings: nested settings, laid over the files.

    Raises:
        UserError: a store without the camera, or a backbone that does not fit the settings.

    """
    keep_compiled_programs()
    index = find_camera(stores, camera)
    kinds = []
    for name in names:
        experiment = load(RECIPE, scale, None, merge(settings or {}, {"train": {"backbone_weights": name}}))
        kinds.append(BackboneFeatures(experiment, stores[0].spec, index))
    return probe(stores, index, kinds)
