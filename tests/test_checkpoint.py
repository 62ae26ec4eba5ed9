"""Checkpoints: exact round trip, retention, interrupted saves, damage."""

import hashlib
import json
import logging
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.corrupt_checkpoint import corrupt, make_checkpoints
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
        checkpoint.save(tmp_path, step, items(step), {}, max_to_keep=2)
    assert checkpoint.complete_steps(tmp_path) == [2, 3]
    (tmp_path / "00000003" / "manifest.json").unlink()
    assert checkpoint.latest(tmp_path).name == "00000002"
    checkpoint.save(tmp_path, 3, items(3), {})
    assert checkpoint.complete_steps(tmp_path) == [2, 3]


def test_a_checkpoint_that_was_evaluated_stays(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    for step in (1, 2, 3, 4):
        folder = checkpoint.save(root, step, items(step), {}, max_to_keep=2)
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


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256"])
def test_the_manifest_protects_itself(tmp_path: Path, name: str) -> None:
    """One flipped bit makes an action scale of 2.41 out of 0.41."""
    folder = checkpoint.save(tmp_path, 1, items(1), {"scale": 0.41})
    line = (folder / "manifest.sha256").read_text()  # for sha256sum -c
    assert line == f"{hashlib.sha256((folder / 'manifest.json').read_bytes()).hexdigest()}  manifest.json\n"
    text = (folder / name).read_bytes()
    at = text.index(b"0.41") if name == "manifest.json" else 5
    (folder / name).write_bytes(text[:at] + bytes([text[at] ^ 2]) + text[at + 1 :])
    with pytest.raises(UserError, match=r"manifest\.json is not what manifest\.sha256 says"):
        checkpoint.read_meta(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        checkpoint.read_meta(folder)


def test_every_damage_of_a_checkpoint_is_detected_by_name_or_harmless(tmp_path: Path) -> None:
    """``benchmarks/corrupt_checkpoint.py`` does three hundred."""
    make_checkpoints(tmp_path)
    result = corrupt(tmp_path, 40, seed=1, compare=False)
    assert result["faults"] == [] and result["ours"]["detected"] > 30


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What is logged, once, whether a command has set up the logger or not: pytest looks at it before the test."""
    monkeypatch.setattr(logging.getLogger("wmjax"), "propagate", True)
    return caplog


def test_the_newest_intact_checkpoint_is_used_and_a_copy_beside_it_is_ignored(
    tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "checkpoints"
    for step in (250, 500, 750):
        checkpoint.save(root, step, items(step), {}, max_to_keep=3)
    for name in ("00000500.bak", "notes", ".hidden", "1000"):
        shutil.copytree(root / "00000500", root / name)
    (root / "00000900").write_text("a file")
    (root / "00000750" / "manifest.json").write_text("")  # power failure
    shutil.rmtree(root / "00000500" / "state")
    assert checkpoint.latest(root).name == "00000250"
    assert [record.levelname for record in heard.records] == ["WARNING", "WARNING"]
    assert "00000750: manifest.json is not what" in heard.text and "00000500: state/" in heard.text
    assert checkpoint.find(tmp_path).name == "00000500", "a policy needs the averaged parameters only"
    assert checkpoint.latest(root).name == "00000250" and len(heard.records) == 2, "each is named once"
    checkpoint.save(root, 1000, items(3), {}, max_to_keep=1)
    assert (root / "00000500.bak" / "manifest.json").is_file() and (root / "00000900").is_file()


def test_exchanged_checkpoints_are_found(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, items(step), {})
    (tmp_path / "00000001").rename(tmp_path / "one")
    (tmp_path / "00000002").rename(tmp_path / "00000001")
    with pytest.raises(UserError, match=r"its manifest\.json is of step 2"):
        checkpoint.read_meta(tmp_path / "00000001")
    assert checkpoint.read_manifest(tmp_path / "one")["step"] == 1, "a copy under another name is a checkpoint"


def test_files_are_hashed_once_and_only_those_of_what_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint.save(tmp_path, 1, items(1), {})
    hashed, hash_file = [], checkpoint.hash_file
    monkeypatch.setattr(checkpoint, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    for _ in range(2):
        checkpoint.restore(checkpoint.find(folder), "ema", like(items(1)["ema"]))
    assert {path.relative_to(folder).parts[0] for path in hashed} == {"ema"} and len(set(hashed)) == len(hashed)
    victim = next(p for p in (folder / "ema").rglob("*") if p.is_file())
    victim.write_bytes(victim.read_bytes())  # written again: looked at again
    checkpoint.verify(folder, ["ema"])
    assert len(set(hashed)) < len(hashed)


def test_a_checkpoint_of_version_1_is_refused(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, 1, items(1), {"a": 1})
    manifest = json.loads((folder / "manifest.json").read_text()) | {"format_version": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "manifest.sha256").unlink()
    with pytest.raises(UserError, match="format_version 1, this wmjax reads 2; train again, or use the wmjax that"):
        checkpoint.read_meta(folder)
    for text in (b"", b"[]", b"{}", b'{"format_version": 1, "step": 1, "meta": [], "sha256": {}}', b"\xff"):
        (folder / "manifest.json").write_bytes(text)
        with pytest.raises(UserError, match=r"manifest\.json is damaged or missing"):
            checkpoint.read_meta(folder)


def test_training_continues_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays that are donated to the next step meanwhile are saved as they were."""
    go, hash_file = threading.Event(), checkpoint.hash_file
    monkeypatch.setattr(checkpoint, "hash_file", lambda path: go.wait(60) and hash_file(path))
    step = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    array = jnp.zeros((512, 512))
    with checkpoint.Saver(tmp_path) as saver:
        folder = saver.save(1, {"ema": {"a": array}}, {})
        for _ in range(5):
            array = step(array)
        jax.block_until_ready(array)
        assert not folder.exists() and checkpoint.complete_steps(tmp_path) == []
        go.set()
        saver.wait()
        assert checkpoint.complete_steps(tmp_path) == [1]
    restored = checkpoint.restore(folder, "ema", like({"a": array}))
    assert not np.asarray(restored["a"]).any()


def test_retention(tmp_path: Path) -> None:
    with checkpoint.Saver(tmp_path, checkpoint.Retention(max_to_keep=2, keep_period=4)) as saver:
        for step in range(1, 11):
            saver.save(step, {"ema": {"a": jnp.zeros(1)}}, {checkpoint.BAD: step in (9, 10)})
    assert checkpoint.complete_steps(tmp_path) == [4, 7, 8, 10], "a bad one replaces no good one"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device"), "no disk space left"),
        (OSError(28, "No space left on device"), "no disk space left"),
        (OSError(30, "Read-only file system"), "not writable"),
        (ValueError("PERMISSION_DENIED: Permission denied"), "not writable"),
    ],
)
def test_a_disk_that_fills_up_or_becomes_read_only_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    kept = checkpoint.save(tmp_path, 1, items(1), {})

    def fail(path: Path) -> str:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "hash_file", fail)
        for step in (1, 2):
            with pytest.raises(UserError, match=message):
                checkpoint.save(tmp_path, step, items(step), {})
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    checkpoint.verify(kept)


def test_wrong_model_and_empty_folder_are_refused(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, 1, items(1), {})
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.restore(folder, "ema", {"b": jax.ShapeDtypeStruct((3, 5), jnp.bfloat16)})
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.restore(folder, "ema", {"a/kernel": jax.ShapeDtypeStruct((3, 6), jnp.bfloat16)})
    with pytest.raises(UserError, match="none is complete"):
        checkpoint.latest(tmp_path / "nothing")
