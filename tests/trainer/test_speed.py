"""What a training tells of its speed: a trace of some steps, and the share of the devices' FLOP/s."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.data.synthetic import make_latents
from tests.tiny import LATENT_DIM
from tests.trainer.job import experiment
from tests.trainer.toy import fit_toy, toy_config, toy_inputs
from wmjax.data.store import TrainingStore
from wmjax.pipeline import utilisation as module
from wmjax.trainer.clock import Clock
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.program import Program


@pytest.mark.parametrize(("steps", "asked", "traced"), [(8, 2, 2), (4, 50, 3)])
def test_steps_after_the_compilation_are_traced(
    store: TrainingStore, tmp_path: Path, steps: int, asked: int, traced: int
) -> None:
    """As many as were asked for, or as there are."""
    config = toy_config(steps=steps, profile_steps=asked)
    fit_toy(toy_inputs(store, config), tmp_path, config)
    (path,) = (tmp_path / "profile").rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    events = [event.name for plane in planes for line in plane.lines for event in line.events]
    assert events.count("train") == traced


def test_speed_is_that_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = Clock(0, toy_config(batch_size=8, steps=124), lambda rate: {"mfu": rate / 40})
    for part, seconds in (("data", 1.0), ("validation", 5.0), ("save", 3.0)):
        with clock.of(part):
            passes(seconds)
    passes(1.0)  # the step
    assert clock.tick(4) == {"samples_per_second": 16.0, "mfu": 0.4}
    parts = "(data 10 %, compute 10 %, save 30 %, validation 50 %, MFU 40.0 %)"
    assert clock.left(4) == f"16 samples/s  1.0 min left  {parts}"


def test_a_step_gets_nothing_but_its_batch_from_the_host(
    store: TrainingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are placed by the loop; all other arguments were, before the first step, on all devices."""
    arguments: list[Any] = []
    call = Program.__call__

    def noted(self: Program, *given: Any) -> Any:
        arguments.extend(jax.tree.leaves(given))
        return call(self, *given)

    monkeypatch.setattr(Program, "__call__", noted)
    config = toy_config(steps=4)
    fit_toy(toy_inputs(store, config), tmp_path, config)
    arrays = [argument for argument in arguments if np.ndim(argument)]
    assert len(arrays) > 50
    assert all(isinstance(array, jax.Array) and array.sharding.device_set == set(jax.devices()) for array in arrays)


def test_the_log_has_the_speed_and_what_follows_from_it(store: TrainingStore, tmp_path: Path) -> None:
    config = toy_config(steps=4)
    fit_toy(toy_inputs(store, config), tmp_path, config, speed=lambda rate: {"mfu": rate / 1e9})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["split"] == "train"]
    assert len(trained) == 4
    assert all(line["mfu"] == pytest.approx(line["samples_per_second"] / 1e9) for line in trained)


@pytest.mark.slow
def test_utilisation_counts_the_models_products_once_whatever_is_computed_again(
    store: TrainingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = experiment({"store": str(store.folder)})
    latents = make_latents(tmp_path / "latents", store, dim=LATENT_DIM)
    inputs = make_inputs(store, latents, plain.prompt, plain.model, plain.train)
    tokens = np.mean([row[row.argmax() :].size for row in inputs.prompts.mask])  # what follows the padding
    assert 2 * 4 + 1 + plain.model.chunk < tokens < 56, "two images of four tokens, state, actions and words"
    assert module.utilisation(plain, inputs)(2.0) == {"tokens_per_second": 2.0 * tokens}, "a CPU has no data sheet"
    world = dataclasses.replace(plain, train=dataclasses.replace(plain.train, objective="world"))
    assert module.utilisation(world, inputs)(2.0) == {}
    monkeypatch.setattr(module, "peak_flops", lambda kind: 1e9)
    backbone = dataclasses.replace(plain.model.backbone, remat="full")
    again = dataclasses.replace(plain, model=dataclasses.replace(plain.model, backbone=backbone))
    once, twice = (module.utilisation(each, inputs) for each in (plain, again))
    needed = module.sample_flops(plain, inputs)
    assert needed > 1e6
    share = 3.0 * needed / (1e9 * jax.device_count())
    assert once(3.0) == twice(3.0) == {"mfu": share, "tokens_per_second": 3.0 * tokens}
