"""Seeds trained side by side are those that are trained alone, resume bit for bit, and have runs of their own."""

import shutil

import numpy as np
import pytest

from benchmarks.kill_chain import metrics, trees
from tests.trainer.toy import Toy, fit_toy, toy_config, toy_inputs
from wmjax.core.errors import UserError
from wmjax.trainer.optimizer import OptimizerConfig
from wmjax.trainer.seeds import seeds_of, train_seeds

BOUND = 2e-5
"""Float32 sums in another order; another sample, noise or initial value makes 1e-3 or more."""
SEEDS = 3


def fit_seeds(store, root, config):
    inputs = toy_inputs(store, config)
    runs = [root / f"run-s{one.seed}" for one in seeds_of(config)]
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=1)
    chunk = inputs.loader.chunk
    return train_seeds(
        lambda rngs: Toy(chunk, rngs, 0.01), inputs, runs, config, optimizer, max_shift=3, metas=[{}] * SEEDS
    )


def floats(folder):
    """The float32 arrays of a checkpoint by name; the guard's and the counters are no parameters."""
    found = {name: value for name, value in trees(folder).items() if "guard" not in name and len(value) > 8}
    return {name: np.frombuffer(value, np.float32) for name, value in found.items()}


@pytest.fixture(scope="module")
def together(store, tmp_path_factory):
    root = tmp_path_factory.mktemp("together")
    return root, fit_seeds(store, root, toy_config(seed=5, seeds=SEEDS))


def test_each_seed_is_the_one_that_is_trained_alone(store, together, tmp_path):
    _, folders = together
    ends = []
    for config, folder in zip(seeds_of(toy_config(seed=5, seeds=SEEDS)), folders, strict=True):
        alone = fit_toy(toy_inputs(store, config), tmp_path / f"s{config.seed}", config)
        own, other = floats(alone), floats(folder)
        assert own.keys() == other.keys()
        for name, value in own.items():
            np.testing.assert_allclose(other[name], value, atol=BOUND, rtol=BOUND, err_msg=name)
        ends.append(own)
        mine, its = (metrics(run.parents[1]) for run in (alone, folder))
        assert [(line["step"], line["split"]) for line in mine] == [(line["step"], line["split"]) for line in its]
        for a, b in zip(mine, its, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=BOUND, rel=BOUND)
    name = next(name for name in ends[0] if name.startswith("ema"))
    assert np.abs(ends[0][name] - ends[1][name]).max() > 1e-2, "other seeds are other trainings"


def test_they_resume_bit_for_bit_from_the_step_that_all_have(store, together, tmp_path):
    root, folders = together
    copy = shutil.copytree(root, tmp_path / "copy")
    config = toy_config(seed=5, seeds=SEEDS)
    shutil.rmtree(copy / "run-s6" / "checkpoints" / "00000008")  # killed while the seeds were saved, one by one
    again = fit_seeds(store, copy, config)
    for before, after in zip(folders, again, strict=True):
        assert before.name == after.name == "00000008" and trees(before) == trees(after)
        assert metrics(before.parents[1]) == metrics(after.parents[1])
    assert fit_seeds(store, copy, config) == again  # nothing is left to do


def test_runs_without_a_common_step_are_refused(store, together, tmp_path):
    root, _ = together
    copy = shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(copy / "run-s6" / "checkpoints" / "00000008")
    shutil.rmtree(copy / "run-s7" / "checkpoints" / "00000004")
    with pytest.raises(UserError, match="the seeds' runs have no step in common"):
        fit_seeds(store, copy, toy_config(seed=5, seeds=SEEDS))
