"""One training step with any setting, of networks that are small enough to try hundreds of settings."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from tests.data.synthetic import make_latents, make_store
from wmjax.core.settings import merge
from wmjax.data.loader import make_loader
from wmjax.data.store import TrainingStore
from wmjax.experiment.checks import require_consistent
from wmjax.experiment.config import Experiment, load
from wmjax.experiment.dimensions import of_store
from wmjax.models.parameters import split_model, trainable_filter
from wmjax.models.vla import VLA
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.optimizer import make_optimizer
from wmjax.trainer.sharding import make_mesh, require_divisible
from wmjax.trainer.step import initial_state, make_train_step

TRAINS = ("model.", "optimizer.", "train.", "prompt.", "mesh.")
"""Groups of settings that a training step depends on."""
SMALL: dict[str, Any] = {
    "train": {"steps": 3, "batch_size": 4, "validation_fraction": 0.2, "threads": 1},
    "model": {
        "backbone": {
            "vision": {"depth": 1, "hidden": 16, "heads": 1, "mlp": 16, "out": 24, "full_attention": [0]},
            "text": {"depth": 1, "hidden": 24, "heads": 1, "kv_heads": 1, "mlp": 16, "rope_sections": [4, 4, 4]},
        },
        "prophet": {"width": 16, "heads": 1, "layers": 1, "latent_dim": 192, "tokens": 16},
        "injection": {"width": 16, "heads": 1},
        "head_sizes": {"hidden": 16, "width": 16, "layers": 1, "heads": 1},
    },
}
"""Settings of a network of a few thousand parameters."""


class Stepper:
    """Trains steps on a small store in a folder."""

    def __init__(self, folder: Path) -> None:
        self._store: TrainingStore = make_store(folder / "store", image_size=56)
        self._latents = make_latents(folder / "latents", self._store, grid=4, dim=192)
        self._trained: list[Experiment] = []

    def try_step(self, name: str, given: dict[str, Any]) -> bool:
        """Trains one step with some settings; False if the setting ``name`` does not concern training.

        Raises:
            UserError: the settings do not fit together.
            AssertionError: the loss or a parameter is not finite.

        """
        if not name.startswith(TRAINS):
            return False
        data = {"data": {"path": str(self._store.folder)}}
        experiment = load("e2_flow", "smoke", overrides=merge(merge(SMALL, data), given))
        if experiment not in self._trained:  # as "0" and "0.0" are
            self._train(experiment, name)
            self._trained.append(experiment)
        return True

    def _train(self, experiment: Experiment, name: str) -> None:
        """One step."""
        experiment = of_store(experiment, self._store)
        model, config = experiment.model, experiment.train
        require_consistent(experiment, self._store, evaluates=False)
        require_divisible(config.batch_size, make_mesh(experiment.mesh))
        inputs = make_inputs(self._store, self._latents, experiment.prompt, model, config)
        optimizer = make_optimizer(experiment.optimizer, config.steps, config.accumulate)
        built = VLA(model, rngs=nnx.Rngs(config.seed))
        graph, params, frozen = split_model(built, trainable_filter(config.trainable))
        update = make_train_step(
            graph,
            optimizer,
            inputs.action_spec,
            inputs.encoder_spec,
            seed=config.seed,
            ema_decay=config.ema_decay,
            max_shift=experiment.encoder.max_shift,
            state_noise=config.state_noise,
            cameras=inputs.cameras,
        )
        loader = dataclasses.replace(inputs.loader, batch_size=config.batch_size, seed=config.seed)
        with contextlib.closing(
            iter(make_loader(self._store, inputs.latents, inputs.train_episodes, loader))
        ) as stream:
            state, metrics = jax.jit(update)(initial_state(params, optimizer), frozen, next(stream), inputs.prompts)
        if not np.isfinite(metrics["loss"]):
            raise AssertionError(f"the loss is {metrics['loss']} with {name}")
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)):
            raise AssertionError(f"parameters are not finite after a step with {name}")
