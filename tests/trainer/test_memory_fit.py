"""A new run chooses what fits into the memory of its devices, saves it, and keeps it."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.data.synthetic import make_latents
from tests.tiny import LATENT_DIM
from tests.trainer.job import experiment
from wmjax.core.errors import UserError
from wmjax.data.store import TrainingStore
from wmjax.experiment.changes import with_remat
from wmjax.experiment.plan import RunPlan, StartingWeights, save_settings
from wmjax.pipeline.memory_fit import chosen, free_memory, resumed
from wmjax.trainer.inputs import make_inputs


def saved(plan: RunPlan) -> dict[str, object]:
    found = json.loads((plan.folder / "config.json").read_text())
    return {"remat": found["model"]["backbone"]["remat"], "accumulate": found["train"]["accumulate"]}


@pytest.mark.slow
def test_the_choice_is_saved_and_a_resumed_run_does_not_choose_again(
    store: TrainingStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = with_remat(experiment({"store": str(store.folder)}), "auto")
    latents = make_latents(tmp_path / "latents", store, dim=LATENT_DIM)
    inputs = make_inputs(store, latents, given.prompt, given.model, given.train)
    plan = RunPlan(given, tmp_path / "run", store, None, StartingWeights(), None)
    plan.folder.mkdir()
    assert resumed(plan) == plan, "nothing has started"
    assert chosen(plan, inputs, free_memory()).experiment == with_remat(given, "none"), "a CPU states no limit"
    with caplog.at_level("INFO", logger="wmjax.train"):
        found = chosen(plan, inputs, 10**9)
    assert found.experiment == with_remat(given, "names") and saved(found) == {"remat": "names", "accumulate": 1}
    assert "remat names: 0.0 of 1.0 GB" in caplog.text
    (plan.folder / "metrics.jsonl").touch()  # the training has begun
    again = resumed(plan)
    assert again.experiment == found.experiment and chosen(again, inputs, 1) == again
    save_settings(again.folder, again.settings)
    other = dataclasses.replace(plan, experiment=with_remat(given, "none"))
    with pytest.raises(UserError, match=r"was started with model\.backbone\.remat = 'names', now it is 'none'"):
        save_settings(other.folder, resumed(other).settings)
