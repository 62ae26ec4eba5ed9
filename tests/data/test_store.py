import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.data.synthetic import LENGTHS, make_episode, make_store
from wmjax.core import files, store_files
from wmjax.core.errors import UserError
from wmjax.data.store import Task, TrainingStore, finalize, part_names, write_part
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

SPEC = dataclasses.replace(OBSERVATION_SPEC, image_size=28)


def episode(length=17):
    return make_episode(0, length, image_size=28)


def test_episodes_come_back_bit_for_bit(store):
    assert [entry["length"] for entry in store.episodes] == list(LENGTHS)
    for index, length in enumerate(LENGTHS):
        expected, actual = make_episode(index, length, image_size=28), store.episode(index)
        for name in ("images", "frame_step", "state", "action", "executed", "settled_state"):
            assert np.array_equal(getattr(actual, name), getattr(expected, name)), name
            assert getattr(actual, name).dtype == getattr(expected, name).dtype, name
        assert expected.meta.items() <= actual.meta.items()
    assert store.tasks == [Task("libero_spatial", t, make_episode(t, 8).meta["instruction"]) for t in (0, 1)]


def test_frame_rows_point_at_the_frame_s_episode_and_step(store):
    assert np.array_equal(store.state[store.frame_row, 0].astype(int), store.frame_episode)
    assert np.array_equal(store.state[store.frame_row, 1].astype(int), store.frame_step)


def test_merging_twice_gives_the_same_hash(tmp_path):
    first = make_store(tmp_path, image_size=28)
    assert finalize(tmp_path, first.spec, ACTION_SPEC).hash == first.hash
    first.verify()


def test_import_is_light():
    code = (
        "import sys, wmjax.data.store, wmjax.data.latents, wmjax.data.statistics, wmjax.data.loader;"
        "import wmjax.data.shift, wmjax.data.split, wmjax.data.windows, wmjax.core.specs;"
        "print([m for m in ('jax', 'torch', 'grain', 'mujoco', 'libero') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def broken(change):
    data = episode()
    change(data)
    return data


def set_value(name, index, value):
    def change(data):
        getattr(data, name)[index] = value

    return change


def set_field(name, make):
    return lambda data: setattr(data, name, make(getattr(data, name)))


BROKEN = {
    "instruction is '  '": lambda d: d.meta.update(instruction="  "),
    "instruction is None": lambda d: d.meta.update(instruction=None),
    "'instruction' is missing": lambda d: d.meta.pop("instruction"),
    "state[3, 1] is nan": set_value("state", (3, 1), np.nan),
    "action[2, 0] is inf": set_value("action", (2, 0), np.inf),
    "action[4, 6] is 1.5, outside [-1, 1]": set_value("action", (4, 6), 1.5),
    "executed[0, 2] is -1.00999999": set_value("executed", (0, 2), -1.01),
    "action has shape (16, 7), expected (17, 7)": set_field("action", lambda a: a[:-1]),
    "images have shape (2, 20, 28, 3), expected (2, 28, 28, 3)": set_field("images", lambda a: a[:, :, :20]),
    "for 4 images": set_field("images", lambda a: a[:-1]),
    "frame_step must increase": set_value("frame_step", 1, 0),
    "frame_stride 4": set_value("frame_step", 1, 5),
    "0 control steps": lambda d: [setattr(d, n, getattr(d, n)[:0]) for n in ("state", "action", "executed")],
}


@pytest.mark.parametrize("message", BROKEN)
def test_bad_episode_is_refused_and_nothing_written(tmp_path, message):
    with pytest.raises(UserError) as error:
        write_part(tmp_path, "a", broken(BROKEN[message]), SPEC, ACTION_SPEC)
    assert message in str(error.value) and "a.npz" in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.npz"))


def test_a_kill_while_writing_a_part_leaves_no_part(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_part(tmp_path, "a", episode(), SPEC)
    assert part_names(tmp_path) == [] and not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("victim", ["save_settled", "hash_file"])
def test_interrupted_finalize_keeps_the_old_store(tmp_path, monkeypatch, victim):
    old = make_store(tmp_path, image_size=28, lengths=(9, 13))
    write_part(tmp_path, "z", episode(), SPEC)

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    target = (np, "savez") if victim == "save_settled" else (store_files, "hash_file")
    with monkeypatch.context() as patch:
        patch.setattr(*target, fail)
        with pytest.raises(KeyboardInterrupt):
            finalize(tmp_path, old.spec, ACTION_SPEC)
    kept = TrainingStore(tmp_path)
    kept.verify()
    assert kept.hash == old.hash and not list(tmp_path.glob(".staging*"))
    merged = finalize(tmp_path, old.spec, ACTION_SPEC)
    assert len(merged.episodes) == 3


def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    write_part(tmp_path, "a", episode(), SPEC)
    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match=r"its file system has no locks \(No locks available\); write to another"):
        finalize(tmp_path, SPEC, ACTION_SPEC)


def test_first_finalize_interrupted_at_the_manifest_is_no_store(tmp_path, monkeypatch):
    write_part(tmp_path, "a", episode(), SPEC)
    monkeypatch.setattr(store_files, "write_json", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        finalize(tmp_path, SPEC, ACTION_SPEC)
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        TrainingStore(tmp_path)


@pytest.fixture
def copy(tmp_path, store):
    return shutil.copytree(store.folder, tmp_path / "copy")


def test_one_flipped_bit_is_found(copy):
    path = copy / "frames.npy"
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"frames\.npy: sha256"):
        TrainingStore(copy).verify()


def flip(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def test_a_store_is_hashed_once_and_again_after_it_was_written_or_copied(tmp_path, copy, monkeypatch):
    hashed, real = [], files.hash_file
    monkeypatch.setattr(store_files, "hash_file", lambda path: hashed.append(path.name) or real(path))
    TrainingStore(copy).verify_once()
    assert sorted(hashed) == sorted(TrainingStore(copy).manifest["files"]), "a copy is not trusted"
    hashed.clear()
    TrainingStore(copy).verify_once()
    made = make_store(tmp_path / "made", image_size=28, lengths=(9, 13))
    hashed.clear()
    made.verify_once()
    assert hashed == [], "hashed again"
    identity = made.hash
    flip(tmp_path / "made" / "frames.npy")
    for _ in range(2):
        with pytest.raises(UserError, match=r"frames\.npy: sha256"):
            TrainingStore(tmp_path / "made").verify_once()
    assert hashed == ["frames.npy"] * 2 and TrainingStore(tmp_path / "made").hash == identity
    (copy / ".verified.json").write_text("{")
    TrainingStore(copy).verify_once()
    assert len(hashed) > 2 and json.loads((copy / ".verified.json").read_text())


def test_truncated_missing_and_foreign_files_are_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(UserError, match="version is 99"):
        TrainingStore(copy)
    (copy / "manifest.json").write_text(json.dumps({**manifest, "format": "other"}))
    with pytest.raises(UserError, match="training store"):
        TrainingStore(copy)
    (copy / "manifest.json").write_text(json.dumps(manifest)[:100])
    with pytest.raises(UserError, match="not valid JSON"):
        TrainingStore(copy)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    content = (copy / "action.npy").read_bytes()
    (copy / "action.npy").write_bytes(content[:-100])
    with pytest.raises(UserError, match=rf"action\.npy: {len(content) - 100} bytes"):
        TrainingStore(copy)
    (copy / "action.npy").unlink()
    with pytest.raises(UserError, match=r"action\.npy: missing"):
        TrainingStore(copy)


def test_damaged_part_and_empty_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="no finished episodes"):
        finalize(tmp_path, SPEC, ACTION_SPEC)
    path = write_part(tmp_path, "a", episode(), SPEC)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"a\.npz: damaged"):
        finalize(tmp_path, SPEC, ACTION_SPEC)
    assert not (tmp_path / "manifest.json").exists()


def test_a_task_outside_the_list_is_refused(tmp_path):
    write_part(tmp_path, "a", episode(), SPEC)
    with pytest.raises(UserError, match="not in the task list"):
        finalize(tmp_path, SPEC, ACTION_SPEC, [Task("libero_goal", 0, "push the plate")])


def test_full_disk_is_one_line(tmp_path, monkeypatch):
    write_part(tmp_path, "a", episode(), SPEC)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(UserError, match=r"GB needed, 0\.00 GB free"):
        finalize(tmp_path, SPEC, ACTION_SPEC)
    monkeypatch.undo()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match="no disk space left"):
        write_part(tmp_path, "b", episode(), SPEC)
    assert part_names(tmp_path) == ["a"]


def test_pickles_are_never_executed(tmp_path):
    write_part(tmp_path, "a", episode(), SPEC)
    path = tmp_path / "parts" / "a.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "images": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(UserError, match="damaged"):
        finalize(tmp_path, SPEC, ACTION_SPEC)


@pytest.mark.parametrize("name", ["", "a/b", ".a"])
def test_bad_part_names_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="part name"):
        write_part(tmp_path, name, episode(), SPEC)


def test_a_kill_between_new_arrays_and_manifest_never_shows_a_mixed_store(tmp_path, monkeypatch):
    old = make_store(tmp_path, image_size=28, lengths=(9, 13))
    other = make_episode(7, 13, image_size=28)
    write_part(tmp_path, "episode-001", other, old.spec)
    with monkeypatch.context() as patch:
        patch.setattr(store_files, "write_json", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            finalize(tmp_path, old.spec, ACTION_SPEC)
    with pytest.raises(UserError, match="is missing"):
        TrainingStore(tmp_path)
    assert np.array_equal(finalize(tmp_path, old.spec, ACTION_SPEC).episode(1).images, other.images)
