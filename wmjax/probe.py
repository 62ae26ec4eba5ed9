"""What a policy's backbone knows before it is trained: ridge probes of a pre-trained one, a random one, pooled pixels.

python -m wmjax.probe --data STORE [STORE ...] --backbone FOLDER --backbone random

A backbone is what ``wmjax.train --scale SCALE --train.backbone_weights NAME`` starts from, ``random`` following from
``--train.seed``; any setting can be given. Two rows each: the image's tokens as the vision tower hands them to the
text decoder, and the hidden states at the same tokens after its last layer and norm. Prints R^2 on the held-out
quarter of the episodes and effective rank; ``encoders_export.probe`` does the same for the latents' encoders.
"""

import argparse
import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Key, UInt8

from wmjax.commands import run_command
from wmjax.config import Experiment, load
from wmjax.data.encode import encode_clips
from wmjax.data.location import local, location
from wmjax.data.observation import Prompt
from wmjax.data.probe import Frames, find_camera, probe, show
from wmjax.errors import UserError
from wmjax.models.lora import LoRAConfig
from wmjax.models.prompts import make_prompt_builder
from wmjax.models.qwen2_5_vl import weights
from wmjax.models.vjepa2.model import pool_last_tubelet
from wmjax.models.vla import VLA
from wmjax.rng import named_key
from wmjax.specs import ObservationSpec
from wmjax.train import starting_backbone
from wmjax.typed import merge, parse_overrides

RECIPE = "e2_flow"
"""Any would do: the backbone is built first, so that its random values depend on scale and seed only."""
GRID = 4
"""An image's tokens are pooled to 4 x 4, as latents are: 3,072 features at ``mini``, which pools nothing at 112 px."""
BATCH = 32
ROWS = ("vision tower", "last layer")


class BackboneFeatures:
    """A starting backbone as :data:`wmjax.data.probe.Features`: its tokens of one camera inside the policy's prompt.

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
    folder, _ = starting_backbone(experiment)
    if folder is not None:
        return weights.load_model(folder, dataclasses.replace(config, lora=LoRAConfig()))

    def build(key: Key[Array, ""]) -> Any:  # the whole policy draws its values in one order; jit drops the rest
        return VLA(experiment.model, rngs=nnx.Rngs(key)).backbone

    key = named_key(experiment.train.seed, "parameters")
    graph = nnx.split(nnx.eval_shape(build, key))[0]
    return nnx.merge(graph, jax.jit(lambda key: nnx.split(build(key))[1])(key))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m wmjax.probe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data", type=location, nargs="+", required=True, help="training stores")
    parser.add_argument("--backbone", action="append", required=True, help="a folder, a hub id or random; repeatable")
    parser.add_argument("--scale", default="mini_lora", help="a file of train/scales (default: mini_lora)")
    parser.add_argument("--camera", default="agentview")
    parser.add_argument("--json", type=local, help="also write the numbers there")

    def body() -> int:
        options, rest = parser.parse_known_args(arguments)
        return _run(options, parse_overrides(rest))

    return run_command(body)


def _run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from wmjax import logs
    from wmjax.cache import keep_compiled_programs
    from wmjax.data.files import write_json
    from wmjax.data.store import TrainingStore

    logs.set_up()
    keep_compiled_programs()
    stores = [TrainingStore(folder) for folder in options.data]
    camera = find_camera(stores, options.camera)
    kinds = []
    for name in options.backbone:
        experiment = load(RECIPE, options.scale, None, merge(overrides, {"train": {"backbone_weights": name}}))
        kinds.append(BackboneFeatures(experiment, stores[0].spec, camera))
    table = probe(stores, camera, kinds)
    print(show(table))
    if options.json:
        write_json(options.json, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
