"""Batches that would do harm are skipped and named; gradients are accumulated; a second compilation is spoken of."""

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kill_chain import metrics, trees
from tests.trainer.toy import fit_toy, toy_config, toy_inputs
from wmjax.core.errors import UserError
from wmjax.data.loader import Batch, BatchSource, make_loader
from wmjax.data.store import TrainingStore
from wmjax.trainer import checkpoint
from wmjax.trainer.guard import GuardState, guarded, initial_guard
from wmjax.trainer.loop import loader_config, make_mesh
from wmjax.trainer.program import Program
from wmjax.trainer.sharding import MeshConfig
from wmjax.trainer.step import TrainState


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(logging.getLogger("wmjax"), "propagate", True)
    yield caplog


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Makes the actions of these steps' batches NaN."""
    get = BatchSource.__getitem__

    def broken(self: BatchSource, index: int) -> Batch:
        batch = get(self, index)
        if self.config.views != 1 and index + 1 in steps:  # validation draws from one view
            batch["action"] = np.full_like(batch["action"], np.nan)
        return batch

    monkeypatch.setattr(BatchSource, "__getitem__", broken)


@pytest.mark.slow
def test_twenty_bad_batches_change_nothing_and_are_named(
    store: TrainingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    config = toy_config(steps=30, log_every=5, eval_every=30, checkpoint_every=5, max_to_keep=1, keep_period=10)
    inputs = toy_inputs(store, config)
    spoil(monkeypatch, set(range(6, 26)))
    fit_toy(inputs, tmp_path, config)
    assert checkpoint.complete_steps(tmp_path / "checkpoints") == [10, 20, 30]
    (ten, twenty) = (trees(tmp_path / "checkpoints" / f"{step:08d}") for step in (10, 20))
    changed = {name for name in ten if ten[name] != twenty[name] and not name.startswith("guard")}
    assert changed == {"state['step']"}
    source = BatchSource(store, None, inputs.train_episodes, loader_config(config, inputs, make_mesh(MeshConfig())))
    lines = [record.message for record in logged.records if "update skipped" in record.message]
    assert len(lines) == 20
    assert lines[0].startswith(f"update skipped at step 6: loss nan; its batch has the samples "
                               f"{source[5]['sample_id'].tolist()} of the episodes [")  # fmt: skip
    by_step = {line["step"]: line for line in metrics(tmp_path) if line["split"] == "train"}
    assert "skipped" not in by_step[5] and by_step[10]["skipped"] == 5 and by_step[30]["skipped"] == 20
    assert "loss" not in by_step[10] and np.isfinite(by_step[30]["loss"])


def test_a_checkpoint_of_a_bad_time_replaces_no_good_one_and_training_ends(
    store: TrainingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(steps=30, log_every=3, eval_every=30, checkpoint_every=5, max_to_keep=1, max_skipped=18)
    spoil(monkeypatch, set(range(7, 31)))
    with pytest.raises(UserError, match="the last 18 updates were skipped"):
        fit_toy(toy_inputs(store, config), tmp_path, config)
    assert checkpoint.complete_steps(tmp_path / "checkpoints") == [5, 20]


def test_a_spike_is_skipped_once_the_usual_loss_is_known() -> None:
    def update(state: TrainState, frozen: None, batch: dict, prompts: None) -> tuple[TrainState, dict]:
        value = batch["loss"]
        return state._replace(step=state.step + 1, params=state.params + value), {"loss": value, "gradient_norm": value}

    step = jax.jit(guarded(update, spike=5.0))
    state, guard = TrainState(jnp.int32(0), jnp.float32(0), None, ()), initial_guard()
    for number, loss in enumerate([9.0, *[1.0] * 25, 30.0, 4.0], 1):
        state, guard, _ = step(state, guard, None, {"loss": jnp.float32(loss)}, None)
        assert int(state.step) == number
    assert isinstance(guard, GuardState)
    assert (int(guard.skipped), int(guard.in_a_row), int(guard.steps[0]), float(guard.losses[0])) == (1, 0, 27, 30.0)
    assert float(state.params) == 9 + 25 + 4


@pytest.mark.slow
def test_gradients_of_several_batches_make_one_update(store: TrainingStore, tmp_path: Path) -> None:
    """Two batches of 4 are one of 8: the mean gradient, the schedule and the average of parameters are the same."""
    plain = toy_config(steps=4, state_noise=0.0, checkpoint_every=1, max_to_keep=9)
    halves = toy_config(steps=8, state_noise=0.0, checkpoint_every=1, max_to_keep=9, batch_size=4, accumulate=2)
    for name, config in (("plain", plain), ("halves", halves)):
        fit_toy(toy_inputs(store, config), tmp_path / name, config, noise=0.0)
    for step, before in itertools.pairwise(range(4, -1, -1)):
        whole = trees(tmp_path / "plain" / "checkpoints" / f"{step:08d}")
        both = trees(tmp_path / "halves" / "checkpoints" / f"{2 * step:08d}")
        names = [name for name in whole if name.startswith(("ema", "state['params"))]
        assert len(names) == 4
        for name in names:
            a, b = (np.frombuffer(tree[name], np.float32) for tree in (both, whole))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        if before:
            first = trees(tmp_path / "halves" / "checkpoints" / f"{2 * step - 1:08d}")
            last = trees(tmp_path / "halves" / "checkpoints" / f"{2 * step - 2:08d}")
            assert all(first[name] == last[name] for name in names), "no update in between"


def test_a_second_compilation_names_what_changed(logged: pytest.LogCaptureFixture) -> None:
    program = Program("the step", jax.jit(lambda batch: batch["images"].sum()))
    program({"images": jnp.zeros((4, 3)), "state": jnp.zeros(2)})
    program({"images": jnp.ones((4, 3)), "state": jnp.ones(2)})
    assert not [record for record in logged.records if record.name.startswith("wmjax")]
    program({"images": jnp.zeros((5, 3)), "state": jnp.zeros(2)})
    (record,) = [record for record in logged.records if record.name.startswith("wmjax")]
    assert "the step was compiled again: 0/images was float32[4, 3], now it is float32[5, 3]" in record.message


def test_a_second_compilation_names_a_weak_type(logged: pytest.LogCaptureFixture) -> None:
    program = Program("the step", jax.jit(lambda gate: 2.0 * gate))
    program(program(jnp.full((1,), 0.1)))
    program(jnp.full((1,), 0.1, jnp.float32))
    (record,) = [record for record in logged.records if record.name.startswith("wmjax")]
    assert "0 was weak float32[1], now it is float32[1]" in record.message


def test_every_loader_of_a_training_is_closed(
    store: TrainingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads ahead in threads of its own, and every validation opens one."""
    opened: list[Any] = []

    class Recorded:
        def __init__(self, *arguments: Any) -> None:
            self.dataset = make_loader(*arguments)

        def __iter__(self) -> Any:
            opened.append(iter(self.dataset))
            return opened[-1]

    monkeypatch.setattr("wmjax.trainer.loop.make_loader", Recorded)
    config = toy_config(steps=6, eval_every=2)
    fit_toy(toy_inputs(store, config), tmp_path, config)
    assert len(opened) == 1 + 1 + 3  # training, the compilation of the validation, three validations
    for stream in opened:
        with pytest.raises(ValueError, match="closed"):
            next(stream)
