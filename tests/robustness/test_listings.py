"""Foreign files in folders that are listed: copies, notes, and what systems and editors leave beside other files."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.synthetic import make_episode, make_store
from tests.robustness.sources import CAMERAS, SIZE, write_hdf5, write_v21, write_v30
from tests.rollout.test_results import record
from wmjax.core.paths import listed
from wmjax.data.formats import libero_hdf5
from wmjax.data.formats.base import ConvertSettings
from wmjax.data.formats.lerobot.convert import convert, source_files
from wmjax.data.formats.lerobot.dataset import LeRobotDataset
from wmjax.data.formats.lerobot.writer import write_lerobot_v30
from wmjax.data.store import finalize, part_names, write_part
from wmjax.encoders.vjepa2.files import MINI_FOLDER, weight_files
from wmjax.experiment import config
from wmjax.pipeline.convert import convert_dataset
from wmjax.reporting.gallery import find_clips
from wmjax.reporting.sweep_tables import read_results
from wmjax.reporting.video.clips import write_video
from wmjax.rollout import protocol
from wmjax.rollout.evaluation_shards import gather, shard_folders
from wmjax.rollout.results import Results
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC
from wmjax.trainer import checkpoint

LEFT = ("._{}", ".{}", ".ipynb_checkpoints/{}", ".cache/huggingface/{}", "{}.bak", "{}~", "notes.txt", "Thumbs.db")
"""What may lie beside a file of any name."""


def litter(folder: Path, names: list[str]) -> None:
    """Leaves damaged files of foreign names beside files of these names."""
    for name in names:
        for pattern in LEFT:
            path = folder / pattern.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\x00\x05\x16\x07 nothing that can be read")


def parts(folder: Path) -> Any:
    store = make_store(folder / "made", image_size=28, lengths=(9, 13))
    for index in range(2):
        write_part(folder, f"{index}", make_episode(index, 9, 28), store.spec)
    litter(folder / "parts", ["0.npz", "1.npz"])
    assert part_names(folder) == ["0", "1"]
    return len(finalize(folder, store.spec, ACTION_SPEC).episodes) == 2


def lerobot(write: Callable[..., Path]) -> Callable[[Path], bool]:
    def check(folder: Path) -> bool:
        source = write(folder / "data", (9, 7))
        litter(source / "data/chunk-000", ["episode_000000.parquet", "file-000.parquet"])
        litter(source / "meta", ["info.json", "tasks.parquet"])
        (source / "meta/episodes").mkdir(exist_ok=True)
        litter(source / "meta/episodes/chunk-000", ["file-000.parquet"])
        return len(convert(str(source), folder / "out", image_size=SIZE).episodes) == 2

    return check


def hdf5(folder: Path) -> bool:
    (folder / "data").mkdir()
    write_hdf5(folder / "data" / "a_demo.hdf5")
    litter(folder / "data", ["a_demo.hdf5"])
    return len(libero_hdf5.convert(folder / "data", folder / "out", image_size=16).episodes) == 2


def encoder(folder: Path) -> bool:
    copy = shutil.copytree(MINI_FOLDER, folder / "mini")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in names:
        shutil.copyfile(copy / "model.safetensors", copy / name)
    (copy / "model.safetensors").unlink()
    litter(copy, names)
    (copy / "model-00001-of-00002 (1).safetensors").touch()
    return [path.name for path in weight_files(copy)] == names


def checkpoints(folder: Path) -> bool:
    checkpoint.save(folder, 3, {"ema": {"weight": jnp.zeros(3)}}, {})
    shutil.copytree(folder / "00000003", folder / "00000003.bak")
    shutil.copytree(folder / "00000003", folder / "00000009 copy")
    litter(folder, ["00000005"])
    return checkpoint.complete_steps(folder) == [3]


def clips(folder: Path) -> bool:
    name = "libero_spatial-0__random-0__success.mp4"
    (folder / name).touch()
    litter(folder, [name, "montage.mp4"])
    (folder / "montage.mp4").touch()
    return [clip.path.name for clip in find_clips(folder)] == [name]


def sweeps(folder: Path) -> bool:
    cell = {"cell": "a", "seed": 0, "minutes": {"training": 1.0}, "evaluations": {"p": {"episodes": {}}}}
    (folder / "a.json").write_text(json.dumps(cell), encoding="utf-8")
    litter(folder, ["a.json"])
    return [result.cell for result in read_results(folder)] == ["a"]


def shards(folder: Path) -> bool:
    header = {"actor": "noop"}
    Results(folder / "shards" / "0-of-2", header).add(record(0, 0, "success"))
    for name in ("0-of-2.bak", "0-of-2 copy", ".0-of-2", "0-of-2~"):
        Results(folder / "shards" / name, {"actor": "another"}).add(record(0, 1, "success"))
    litter(folder / "shards", ["1-of-2"])
    return len(gather(folder, Results(folder, header).header)) == len(shard_folders(folder)) == 1


@pytest.mark.parametrize(
    "check", [parts, lerobot(write_v21), lerobot(write_v30), hdf5, encoder, checkpoints, clips, shards, sweeps]
)
def test_foreign_files_are_passed_over(check: Callable[[Path], bool], tmp_path: Path) -> None:
    assert check(tmp_path)


def test_files_of_settings_and_protocols_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for axis in (*config.AXES, "protocols"):
        (tmp_path / axis).mkdir()
        (tmp_path / axis / "mine.toml").touch()
        litter(tmp_path / axis, ["mine.toml"])
    for module in (config, protocol):
        monkeypatch.setattr(module, "resource_folder", lambda _: tmp_path)
    assert all(config.axis_names(axis) == ["mine"] for axis in config.AXES)
    assert protocol.protocol_names() == ["mine"]


def test_a_changed_note_does_not_change_the_source(tmp_path: Path) -> None:
    """A stopped import resumes although a file manager added files meanwhile."""
    source = write_v21(tmp_path / "data", (9, 7))
    undisturbed = convert(str(source), tmp_path / "whole", image_size=SIZE)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(str(source), tmp_path / "out", image_size=SIZE, progress=stop)
    litter(source / "meta", ["info.json"])
    assert convert(str(source), tmp_path / "out", image_size=SIZE).hash == undisturbed.hash


def test_what_is_listed_is_in_order_and_not_hidden(tmp_path: Path) -> None:
    for name in ("b.x", "a.x", "sub/c.x", "sub/.d.x", ".sub/e.x", "._a.x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in listed(tmp_path, "*.x")] == ["a.x", "b.x"]
    assert [path.name for path in listed(tmp_path, "**/*.x")] == ["a.x", "b.x", "c.x"]
    assert listed(tmp_path / "nothing", "*") == listed(tmp_path / "nothing", "**/*") == []


def test_linked_folders_are_looked_into_once(tmp_path: Path) -> None:
    """Data lie on another disk, and the folder of a dataset has links to them."""
    (tmp_path / "disk/far").mkdir(parents=True)
    (tmp_path / "disk/far/a.x").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link").symlink_to(tmp_path / "disk")
    (tmp_path / "data/link2").symlink_to(tmp_path / "disk/far")
    (tmp_path / "disk/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/gone").symlink_to(tmp_path / "nothing")
    found = listed(tmp_path / "data", "**/*.x")
    assert [path.relative_to(tmp_path / "data").as_posix() for path in found] == ["link/far/a.x"]


@pytest.mark.parametrize("hidden", ["data", "data/b", "data/link"])
def test_a_folder_that_cannot_be_read_is_not_an_empty_one(
    hidden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "disk"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data/link").symlink_to(tmp_path / "data/disk")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / hidden and access(path, mode))
    with pytest.raises(PermissionError) as caught:
        listed(tmp_path / "data", "**/*.x")
    assert caught.value.filename == str(tmp_path / hidden)


def test_checkpoints_that_cannot_be_read_are_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run/checkpoints/00000001").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError) as caught:
        checkpoint.find(tmp_path / "run")
    assert caught.value.filename == str(tmp_path / "run/checkpoints")


@pytest.mark.parametrize("place", ["data/chunk-000", "data", "meta/episodes", f"videos/{CAMERAS[0]}", "videos", "meta"])
def test_a_dataset_of_linked_folders(place: str, tmp_path: Path) -> None:
    source = write_v30(tmp_path / "data", (9, 7), video=True)
    whole = convert(str(source), tmp_path / "whole", image_size=SIZE)
    content = source_files(LeRobotDataset(source))
    shutil.move(source / place, tmp_path / "elsewhere")
    (source / place).symlink_to(tmp_path / "elsewhere")
    assert convert(str(source), tmp_path / "out", image_size=SIZE).hash == whole.hash
    assert source_files(LeRobotDataset(source)) == content  # also of what lies behind the link


@pytest.mark.parametrize("name", ["a:b", "file:x", "a b", "a%20b#c?d", "-x", "a[1]*", "é中", "a\nb", "%03d", "$x"])
def test_folders_of_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_v21(tmp_path / name / "data", (9,), video=True)
    store = convert(f"{name}/data", Path(name) / "store", image_size=SIZE)
    assert len(store.frames) == 3
    clip = Path(name) / "clip.mp4"
    write_video(clip, np.asarray(store.frames[:]), ["", "", ""], 5.0)
    with av.open(str(clip.absolute())) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3
    spec = dataclasses.replace(OBSERVATION_SPEC, image_size=28, frame_stride=1)
    write_lerobot_v30(Path(name) / "written", [make_episode(0, 9, 28, 1, 1)], spec, ACTION_SPEC)
    assert [entry.length for entry in LeRobotDataset(Path(name) / "written").episodes] == [9]


@pytest.mark.parametrize("name", ["a_demo.h5", "a_demo.HDF5"])
def test_hdf5_files_of_linked_folders_and_other_endings(name: str, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    write_hdf5(tmp_path / "disk" / name)
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites/libero_spatial").symlink_to(tmp_path / "disk")
    assert convert_dataset(str(tmp_path / "suites"), tmp_path / "out", ConvertSettings(image_size=16)).spec.image_size
    assert libero_hdf5.find_files(tmp_path / "disk" / name) == [tmp_path / "disk" / name]
