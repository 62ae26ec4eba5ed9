"""One training step with any setting, of networks that are small enough to try hundreds of settings."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

from tests.data.synthetic import make_latents, make_store
from wmjax.core.settings import merge
from wmjax.data.store import TrainingStore
from wmjax.experiment.checks import require_fit
from wmjax.experiment.config import load
from wmjax.experiment.dimensions import of_store
from wmjax.models.vla import VLA
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.loop import train

TRAINS = ("model.", "optimizer.", "train.", "prompt.", "mesh.")
"""Groups of settings that a training step depends on."""
SMALL: dict[str, Any] = {
    "train": {
        "steps": 1, "batch_size": 4, "eval_batches": 1, "eval_every": 1, "checkpoint_every": 1, "log_every": 1,
        "validation_fraction": 0.2, "threads": 1,
    },
    "model": {
        "backbone": {
            "vision": {"depth": 1, "hidden": 16, "heads": 1, "mlp": 16, "out": 24, "full_attention": [0]},
            "text": {"depth": 1, "hidden": 24, "heads": 1, "kv_heads": 1, "mlp": 16, "rope_sections": [4, 4, 4]},
        },
        "prophet": {"width": 16, "heads": 1, "layers": 1, "latent_dim": 192, "tokens": 16},
        "injection": {"width": 16, "heads": 1},
        "head_sizes": {"hidden": 16, "width": 16, "layers": 1, "heads": 1},
    },
}  # fmt: skip
"""Settings of a network of a few thousand parameters."""


class Stepper:
    """Trains steps on a small store in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store: TrainingStore = make_store(folder / "store", image_size=56)
        self._latents = make_latents(folder / "latents", self._store, grid=4, dim=192)

    def try_step(self, name: str, given: dict[str, Any]) -> bool:
        """Trains one step with some settings; False if the setting ``name`` does not concern training.

        Raises:
            UserError: the settings do not fit together.
            AssertionError: the loss is not finite.

        """
        if not name.startswith(TRAINS):
            return False
        data = {"data": {"path": str(self._store.folder)}}
        experiment = load("e2_flow", "smoke", overrides=merge(merge(SMALL, data), given))
        model = of_store(experiment.model, self._store)
        require_fit(dataclasses.replace(experiment, model=model), self._store, evaluates=False)
        inputs = make_inputs(self._store, self._latents, experiment.prompt, model, experiment.train)
        run = self._folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        train(
            lambda rngs: VLA(model, rngs=rngs),
            inputs,
            run,
            experiment.train,
            experiment.optimizer,
            experiment.mesh,
            max_shift=experiment.encoder.max_shift,
            meta={},
        )
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            loss = json.loads(line).get("loss", 0.0)
            if loss is None or not math.isfinite(loss):
                raise AssertionError(f"the loss is {loss} with {name}")
        return True
