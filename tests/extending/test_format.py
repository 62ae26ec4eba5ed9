"""A dataset format from outside the package: the convert command, and the store that it makes."""

from pathlib import Path

import numpy as np
import pytest

from tests.extending.npz_folder import HZ, JOINTS
from wmjax.convert import main as convert
from wmjax.core.files import write_npz
from wmjax.data.store import TrainingStore

KIND = "tests.extending.npz_folder:NpzFolder"


def write_episodes(folder: Path) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    episodes = []
    for index, length in enumerate((9, 12)):
        episode = {
            "images": np.full((length, 32, 32, 3), 50 * index, np.uint8),
            "state": rng.normal(size=(length, 2)).astype(np.float32),
            "action": rng.normal(size=(length, 2)).astype(np.float32),
            "instruction": np.array("fold the cloth"),
        }
        write_npz(folder / f"{index}.npz", episode)
        episodes.append(episode)
    return episodes


def test_it_is_converted_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episodes = write_episodes(tmp_path / "data")
    arguments = [str(tmp_path / "data"), "--format", KIND, "--image-size", "16", "--frame-stride", "3"]
    assert convert([*arguments, "--out", str(tmp_path / "store")]) == 0
    assert "2 episodes, 1 tasks, 7 frames" in capsys.readouterr().out
    store = TrainingStore(tmp_path / "store")
    assert store.spec.state == store.action_spec.names == JOINTS and store.spec.control_hz == HZ
    assert store.tasks[0].instruction == "fold the cloth" and store.frames.shape[1:] == (1, 16, 16, 3)
    for index, episode in enumerate(episodes):
        found = store.episode(index)
        np.testing.assert_array_equal(found.action, episode["action"])
        np.testing.assert_array_equal(found.state, episode["state"])
        assert (found.images == 50 * index).all()


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_episodes(tmp_path / "data")
    given = ["--out", str(tmp_path / "store"), "--format", KIND]
    assert convert([str(tmp_path), *given]) == 2
    assert "no .npz files there" in capsys.readouterr().err
    assert convert([str(tmp_path / "data"), *given, "--rows", "before"]) == 2
    line = capsys.readouterr().err
    assert "--rows is for LIBERO's HDF5 files" in line and "as folders of .npz episodes are; leave it out" in line
    assert not (tmp_path / "store").exists()
