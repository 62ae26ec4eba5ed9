"""Checkpoints: exact round trip, retention, interrupted saves, damage."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmjax.core.errors import UserError
from wmjax.trainer import checkpoint


def items(step: int) -> dict:
    key = jax.random.key(step)
    return {
        "state": {"a/kernel": jax.random.normal(key, (3, 5)), "step": jnp.int32(step)},
        "ema": {"a/kernel": jax.random.normal(key, (3, 5)).astype(jnp.bfloat16)},
    }


def like(tree: dict) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def test_round_trip_is_bit_exact_and_items_restore_alone(tmp_path: Path) -> None:
    saved = items(3)
    folder = checkpoint.save(tmp_path, 3, saved, {"specs": {"x": 1}})
    assert checkpoint.latest(tmp_path) == folder
    assert checkpoint.read_meta(folder) == {"specs": {"x": 1}}
    for name, tree in saved.items():
        restored = checkpoint.restore(folder, name, like(tree))
        assert jax.tree.map(lambda x: x.dtype, restored) == jax.tree.map(lambda x: x.dtype, tree)
        jax.tree.map(np.testing.assert_array_equal, restored, tree)


def test_keeps_the_newest_and_ignores_interrupted_saves(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, items(step), {}, keep=2)
    assert checkpoint.complete_steps(tmp_path) == [2, 3]
    (tmp_path / "00000003" / "manifest.json").unlink()
    assert checkpoint.latest(tmp_path).name == "00000002"
    checkpoint.save(tmp_path, 3, items(3), {})
    assert checkpoint.complete_steps(tmp_path) == [2, 3]


def test_a_checkpoint_that_was_evaluated_stays(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    for step in (1, 2, 3, 4):
        folder = checkpoint.save(root, step, items(step), {}, keep=2)
        if step == 2:
            (checkpoint.evaluations(folder) / "spatial_dev").mkdir(parents=True)
            (tmp_path / "evaluations" / "00000002" / "spatial_dev" / "summary.json").write_text("{}")
        (checkpoint.evaluations(folder) / "begun").mkdir(parents=True)
    assert checkpoint.complete_steps(root) == [2, 3, 4]


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = checkpoint.save(tmp_path, 1, items(1), {})
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 50, 50))
    for step in (1, 2):  # overwriting a step does not lose it either
        with pytest.raises(UserError, match="GB free; free some space"):
            checkpoint.save(tmp_path, step, items(step), {})
    assert checkpoint.latest(tmp_path) == kept
    checkpoint.read_meta(kept)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, 1, items(1), {})
    victim = max((p for p in (folder / "ema").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.restore(folder, "ema", like(items(1)["ema"]))


def test_wrong_model_and_empty_folder_are_refused(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, 1, items(1), {})
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.restore(folder, "ema", {"b": jax.ShapeDtypeStruct((3, 5), jnp.bfloat16)})
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.restore(folder, "ema", {"a/kernel": jax.ShapeDtypeStruct((3, 6), jnp.bfloat16)})
    with pytest.raises(UserError, match="none is complete"):
        checkpoint.latest(tmp_path / "nothing")
