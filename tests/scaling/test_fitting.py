"""``model.backbone.remat auto``: the first settings that fit, on the real training step of a small network."""

import dataclasses
import functools
from typing import Any

import jax
import pytest

from tests.tiny import tiny_config
from wmjax.core.errors import UserError
from wmjax.experiment.changes import as_chosen, as_given, changed_settings, with_choice
from wmjax.experiment.config import Experiment, load, to_dict
from wmjax.experiment.plan import first_difference
from wmjax.scaling.fitting import (
    MARGIN,
    Attempt,
    attempt,
    choose,
    describe,
    require_fitting,
)
from wmjax.scaling.program import call_shapes, programs
from wmjax.trainer.sharding import make_mesh

BATCH, DEVICES = 8, 4
"""Four devices: a batch of eight is halved once."""


def small(**train: Any) -> Experiment:
    experiment = load("e0_mse", "mini", overrides={"train": {"batch_size": BATCH}})
    model = tiny_config("e0", "regression", remat="auto")
    return dataclasses.replace(experiment, model=model, train=dataclasses.replace(experiment.train, **train))


@pytest.mark.long
def test_the_first_settings_that_fit_are_taken() -> None:
    experiment, mesh = small(), make_mesh(small().mesh, jax.devices()[:1])

    @functools.cache
    def compile_step(experiment: Experiment) -> Attempt:
        built = programs(experiment, mesh)
        return attempt(lambda: built.train_step.lower(*call_shapes(experiment, built, mesh)))

    def limit(remat: Any, batches: int) -> float:
        """The memory in which a step just fits."""
        return (compile_step(with_choice(experiment, remat, batches)).needed or 0) / (1 - MARGIN)

    steps: list[tuple[Any, int]] = [("names", 1), ("full", 1), ("full", 2)]
    limits = [limit(*step) for step in steps]
    assert limits == sorted(limits, reverse=True)
    for (remat, batches), free in zip(steps, limits, strict=True):
        found = choose(experiment, compile_step, free + 1, DEVICES)
        train, backbone = found.experiment.train, found.experiment.model.backbone
        assert found.fits and (backbone.remat, train.accumulate) == (remat, batches)
        assert train.batch_size * train.accumulate == BATCH and train.steps == batches * experiment.train.steps
    assert describe(found, 2e9).startswith("remat full, 2 batches of 4 per update: 0.0 of 2.0 GB")
    free = limits[-1] / 2
    found = choose(experiment, compile_step, free, DEVICES)
    with pytest.raises(UserError, match=r"with 'full' and 1 samples per device .* GB are missing; split parameters"):
        require_fitting(found, free, DEVICES)


def test_settings_are_tried_in_order_until_one_fits() -> None:
    tried: list[tuple[str, int]] = []

    def compile_step(experiment: Experiment) -> Attempt:
        backbone: Any = experiment.model.backbone
        tried.append((backbone.remat, experiment.train.batch_size))
        return Attempt(None, "RESOURCE_EXHAUSTED: of memory", 0.0, 0.0)

    found = choose(small(), compile_step, 3e9, DEVICES)
    assert tried == [("names", 8), ("full", 8), ("full", 4)], "a device has at least one sample"
    with pytest.raises(UserError, match=r"and 1 samples per device .* than the 3\.00 GB that are free \(RESOURCE_EX"):
        require_fitting(found, 3e9, DEVICES)
    # Another process's memory decides.
    assert choose(small(), compile_step, 3e9, DEVICES, lambda fits: True).experiment == with_choice(small(), "names")


def test_nothing_is_compiled_where_nothing_is_to_be_chosen() -> None:
    def compile_step(experiment: Experiment) -> Attempt:
        raise AssertionError("compiled")

    assert choose(small(), compile_step, None, 1).experiment == with_choice(small(), "none")
    full = with_choice(small(), "full")
    assert choose(full, compile_step, 1.0, 1).experiment == full
    other = load(
        "e0_mse", "mini", overrides={"model": {"backbone": {"kind": "tests.extending.bag_of_words:BagOfWords"}}}
    )
    assert choose(other, compile_step, 1.0, 1).experiment == other


def test_a_run_that_has_started_keeps_its_choice() -> None:
    chosen = with_choice(small(), "full", 2)
    saved = to_dict(chosen)
    assert as_chosen(small(), saved) == chosen
    for changed in (small(batch_size=16), small(batch_size=9), small(accumulate=4), small(steps=7)):
        assert first_difference(saved, to_dict(as_chosen(changed, saved))) is not None
    none = with_choice(small(), "none")
    assert as_chosen(none, saved) == none, "it was given"


def test_what_the_memory_allowed_is_no_part_of_the_recipe() -> None:
    given = load("e2_flow", "3b", "spatial", {"train": {"backbone_weights": "random", "steps": 7}})
    for chosen in (given, with_choice(given, "names"), with_choice(given, "full", 4)):
        assert as_given(chosen) == given
        assert changed_settings(chosen) == {"train.steps": 7, "train.backbone_weights": "random"}
    mini = load("e2_flow", "mini")
    assert as_given(with_choice(mini, "full", 2)) == with_choice(mini, "full", 2), "its files leave nothing open"
