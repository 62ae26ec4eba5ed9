"""The resources that the checks share: settings, programs, noise as weights, one demonstration, one short training."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from wmjax.core.errors import UserError, one_line
from wmjax.core.settings import merge
from wmjax.core.specs import to_dict
from wmjax.data.observation import Prompt
from wmjax.data.store import TrainingStore
from wmjax.encoders.base import EncoderConfig, describe
from wmjax.encoders.vjepa2 import PRESETS, VJEPA2Encoder, save_encoder
from wmjax.experiment.checks import given_store
from wmjax.experiment.config import Experiment, load
from wmjax.experiment.dimensions import of_store
from wmjax.models.backbones.qwen2_5_vl.config import preset
from wmjax.models.backbones.qwen2_5_vl.prompt import TOKENIZER
from wmjax.models.parameters import RANDOM
from wmjax.models.prompts import join_prompts, make_prepare
from wmjax.pipeline.latents import latents_or_views
from wmjax.policy.policy import Policy
from wmjax.policy.restore import parameter_shapes
from wmjax.recording.record import record
from wmjax.scaling.arrays import filled, filled_model, random_batch
from wmjax.scaling.firstlight.request import MissingPieceError, Request
from wmjax.scaling.latency import INSTRUCTION
from wmjax.scaling.program import programs
from wmjax.scaling.shapes import image_size, plain_specs, tasks
from wmjax.sim.libero import simulator_version
from wmjax.trainer.build import Arrays, Built
from wmjax.trainer.sharding import make_mesh, require_divisible, shard_batch

T = TypeVar("T")


def shared(make: Callable[["Bench"], T]) -> Callable[["Bench"], T]:
    """Makes a resource once. If that fails, the first check that needs it fails, and later ones are skipped."""

    @functools.wraps(make)
    def get(bench: "Bench") -> T:
        name = make.__name__
        if name not in bench.made:
            try:
                bench.made[name] = make(bench)
            except MissingPieceError:
                raise
            except Exception as error:
                bench.made[name] = error
                raise
        if isinstance(found := bench.made[name], Exception):
            raise MissingPieceError(f"no {name}, see above: {one_line(found)}")
        return found

    return get


class Bench:
    """Settings of a request, and the resources that are made from them when a check needs them.

    Attributes:
        request: what was asked.
        scratch: a folder for stores, checkpoints and runs.
        experiment: the settings, without what would have to be downloaded or converted first.
        store: the training store that was given, if one was.
        made: pieces by name, or the errors that they ended with.

    """

    def __init__(self, request: Request, scratch: Path) -> None:
        """Reads the settings.

        Raises:
            UserError: they contradict each other.

        """
        self.request, self.scratch = request, scratch
        self.experiment, self.store = at_hand(request, scratch)
        self.made: dict[str, Any] = {}

    @property
    def given(self) -> Path | None:
        """The folder of published weights."""
        return None if self.request.weights is None else Path(self.request.weights)

    @shared
    def encoder(self) -> EncoderConfig:
        """The encoder's settings; an encoder that would have to be downloaded is one of noise, written once."""
        config: Any = self.experiment.encoder
        if config.model == str(folder := _noise_encoder(self.scratch)) and not (folder / "config.json").is_file():
            size = PRESETS[_encoder_size(self.request)]
            save_encoder(filled_model(lambda: VJEPA2Encoder(size, rngs=nnx.Rngs(0))), folder)
        return config

    @shared
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh over all devices."""
        mesh = make_mesh(self.experiment.mesh)
        require_divisible(self.experiment.train.batch_size, mesh)
        return mesh

    @shared
    def programs(self) -> Built:
        """The programs of the training."""
        return programs(self.experiment, self.mesh())

    def arrays(self) -> Arrays:
        """Parameters of noise by name in the layout of the training, moments and counters of zero."""
        shapes = self.programs().shapes.named()
        state = shapes.state
        zeros = jax.jit(
            lambda: jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), (state.step, state.opt, shapes.guard)),
            out_shardings=jax.tree.map(lambda s: s.sharding, (state.step, state.opt, shapes.guard)),
        )
        step, opt, guard = zeros()
        params = filled(state.params)
        made = state._replace(step=step, params=params, ema=jax.tree.map(jax.numpy.copy, params), opt=opt)
        return Arrays(made, guard, filled(shapes.frozen))

    def batch(self) -> Any:
        """A batch of noise on the devices."""
        return shard_batch(random_batch(self.experiment, self.experiment.train.batch_size), self.mesh())

    def prompts(self) -> Prompt:
        """One prompt per task, all alike."""
        experiment = self.experiment
        one = make_prepare(experiment.prompt, experiment.model, experiment.data.observation)(INSTRUCTION)
        return join_prompts([one] * tasks(self.experiment))

    @shared
    def demonstration(self) -> TrainingStore:
        """The training store that was given, or one demonstration, recorded here.

        Raises:
            MissingPieceError: there is none, and no simulator to record one.

        """
        if self.store is not None:
            return self.store
        try:
            simulator_version()
        except UserError as error:
            raise MissingPieceError(f"no demonstration: {error}, or give a training store as --data.path") from error
        data = self.experiment.data
        place, config = self.scratch / "demonstration", data.demonstrations
        return record(place, data.suite, data.tasks, 1, data.observation, workers=1, config=config)

    @shared
    def views(self) -> Any:
        """The latents of the demonstration, or its views if the recipe reads none."""
        store, config = self.demonstration(), self.encoder()
        spec = describe(config) if self.experiment.model.memory.reads_latents else None
        return latents_or_views(self.experiment, store, spec)

    def policy(self, batch_size: int) -> Policy:
        """A policy of noise."""
        action, encoder = plain_specs(self.experiment)
        if encoder is not None:
            encoder = dataclasses.replace(describe(self.encoder()), mean=encoder.mean, std=encoder.std)
        specs = {"observation": self.experiment.data.observation, "action": action, "encoder": encoder}
        named = {name: None if spec is None else to_dict(spec) for name, spec in specs.items()}
        params = filled(parameter_shapes(self.experiment))
        return Policy(self.experiment, named, params, batch_size=batch_size, open_loop_horizon=action.chunk)


def at_hand(request: Request, scratch: Path) -> tuple[Experiment, TrainingStore | None]:
    """The settings of a request, with shipped or generated files where others would have to be downloaded or converted.

    Of a given training store the first episode's task is what counts.

    Raises:
        UserError: settings that contradict each other.

    """
    own = merge({"train": {"backbone_weights": request.weights or RANDOM}}, request.settings)
    first = load(request.recipe, request.scale, None, own)
    places = merge(_prompt(request, first), {"encoder": {"backend": "jax"}})
    if _encoder_size(request) is not None:
        places = merge(places, {"encoder": {"model": str(_noise_encoder(scratch))}})
    dataset = None
    given = request.settings.get("data", {})
    if not {"path", "paths"} & set(given):
        dataset = "smoke"
        one = {"episodes_per_task": 1, "observation": {"image_size": image_size(first)}}
        places = merge(places, {"data": merge(one, given)})
    found = load(request.recipe, request.scale, dataset, merge(own, places))
    store = given_store(found)
    if store is not None:
        first_episode = store.episodes[0]
        task = {"suite": first_episode["suite"], "tasks": (first_episode["task_id"],), "observation": store.spec}
        data = dataclasses.replace(found.data, path="", paths=(), weights=(), **task)
        found = dataclasses.replace(found, data=data)
    return of_store(found, store), store


def _prompt(request: Request, first: Experiment) -> dict[str, Any]:
    """The tokenizer of the weights; without one the small tokenizer that ships, and its ids of images."""
    if request.weights and (Path(request.weights) / TOKENIZER).is_file():
        return {"prompt": {"tokenizer": request.weights}}
    name = first.prompt.tokenizer
    if name == "mini" or Path(name).is_dir() or "tokenizer" in request.settings.get("prompt", {}):
        return {}
    mini = preset("mini")
    ids = {key: getattr(mini, key) for key in ("image_token", "vision_start_token", "vision_end_token")}
    return {"prompt": {"tokenizer": "mini"}, "model": {"backbone": ids}}


def _noise_encoder(scratch: Path) -> Path:
    return scratch / "encoder"


def _encoder_size(request: Request) -> str | None:
    """The size of the V-JEPA 2 that noise replaces; None if the encoder exists or was given."""
    settings = merge({"train": {"backbone_weights": RANDOM}}, request.settings)
    config: Any = load(request.recipe, request.scale, None, settings).encoder
    name = str(getattr(config, "model", "mini"))
    if name == "mini" or Path(name).is_dir() or "model" in request.settings.get("encoder", {}):
        return None
    return next((size for size in PRESETS if size != "mini" and size in name), None)


def square(bench: Bench, batch: int, seed: int = 0) -> np.ndarray:
    """Clips of noise, as large as the frames of the demonstrations: uint8 [batch, time, size, size, 3]."""
    side = bench.experiment.data.observation.image_size
    shape = (batch, bench.experiment.encoder.clip_length, side, side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
