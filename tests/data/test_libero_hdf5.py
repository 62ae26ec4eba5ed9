"""LIBERO's HDF5 demonstrations, in files written as its ``create_dataset.py`` writes them."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from wmjax.convert import main
from wmjax.core.errors import UserError
from wmjax.data.formats.libero_hdf5 import convert
from wmjax.data.observation import axis_angle, build_state

SIZE, LENGTHS = 16, (9, 14)
BOWL = "pick up the black bowl next to the plate and place it on the plate"
QUATERNION = np.array([0.9, -0.2, 0.1, -0.3], np.float32) / np.float32(np.sqrt(0.95))


def raw_image(demo: int, row: int, camera: int) -> np.ndarray:
    """What MuJoCo renders: distinct in every pixel, so that a wrong flip shows."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.stack([x * 8 + demo, y * 8 + row, np.full_like(x, 100 * camera + row)], -1).astype(np.uint8)


def write_file(path: Path, instruction: Any = BOWL, lengths: tuple[int, ...] = LENGTHS, **attributes: Any) -> Path:
    """A task's file; row j of the observations says j, and action j says j: the observation after that action."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_name"] = "Libero_Tabletop_Manipulation"
        data.attrs["problem_info"] = json.dumps({"language_instruction": instruction, "domain_name": "robosuite"})
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["bddl_file_name"] = f"libero/libero/bddl_files/libero_spatial/{path.stem}.bddl"
        data.attrs["env_args"] = json.dumps({"type": 1, "env_kwargs": {"control_freq": 20, "camera_heights": SIZE}})
        data.attrs["num_demos"], data.attrs["total"] = len(lengths), sum(lengths)
        for name, value in attributes.items():
            data.attrs[name] = value
        for demo, length in enumerate(lengths):
            write_demo(data.create_group(f"demo_{demo}"), demo, length)
    return path


def write_demo(group: h5py.Group, demo: int, length: int) -> None:
    rows, obs = np.arange(length), group.create_group("obs")
    obs["ee_pos"] = np.stack([np.full(length, demo), rows, rows / 7], 1).astype(np.float64)
    obs["ee_ori"] = np.tile(axis_angle(QUATERNION).astype(np.float64), (length, 1))
    obs["ee_states"] = np.concatenate([obs["ee_pos"][()], obs["ee_ori"][()]], 1)
    obs["gripper_states"] = np.tile([0.04, -0.04], (length, 1))
    obs["joint_states"] = np.zeros((length, 7))
    for camera, name in enumerate(("agentview_rgb", "eye_in_hand_rgb")):
        obs[name] = np.stack([raw_image(demo, row, camera) for row in rows])
    actions = np.zeros((length, 7))
    actions[:, 0], actions[:, 6] = rows / 100, np.where(rows < 5, -1.0, 1.0)
    group["actions"], group["states"] = actions, np.zeros((length, 20))
    group["robot_states"] = np.zeros((length, 9))
    group["rewards"], group["dones"] = (np.eye(1, length, length - 1, dtype=np.uint8)[0] for _ in range(2))
    group.attrs["num_samples"], group.attrs["init_state"] = length, np.zeros(20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_file(tmp_path / "libero_spatial" / "pick_up_the_bowl_demo.hdf5")
    write_file(tmp_path / "libero_spatial" / "open_the_drawer_demo.hdf5", list('"open the drawer"'), (5,))
    return tmp_path / "libero_spatial"


def test_an_observation_goes_with_the_action_that_follows_it(folder: Path, tmp_path: Path) -> None:
    store = convert(folder, tmp_path / "out", image_size=SIZE, frame_stride=4)
    assert [(task.task_id, task.instruction) for task in store.tasks] == [(0, "open the drawer"), (1, BOWL)]
    assert {task.suite for task in store.tasks} == {"libero_spatial (HDF5)"}
    assert [entry["length"] for entry in store.episodes] == [4, 8, 13]
    for index, demo in ((1, 0), (2, 1)):
        episode = store.episode(index)
        np.testing.assert_array_equal(episode.state[:, 1], np.arange(episode.length))
        np.testing.assert_allclose(episode.action[:, 0], np.arange(1, episode.length + 1) / 100, rtol=1e-6)
        np.testing.assert_array_equal(episode.action[:, 6], np.where(np.arange(episode.length) < 4, -1, 1))
        np.testing.assert_array_equal(episode.executed, episode.action)
        np.testing.assert_array_equal(episode.frame_step, np.arange(0, episode.length, 4))
        for number, row in enumerate(episode.frame_step):
            for camera in range(2):
                expected = raw_image(demo, row, camera)[::-1, ::-1]
                np.testing.assert_array_equal(episode.images[number, camera], expected)
    assert store.spec.cameras == ("agentview", "robot0_eye_in_hand")
    assert (store.spec.rotation, store.spec.control_hz, store.spec.resize_filter) == (180, 20, "none")


def test_the_state_is_the_one_that_a_rollout_builds(folder: Path, tmp_path: Path) -> None:
    store = convert(folder, tmp_path / "out", image_size=8)
    expected = build_state(np.array([0, 3, 3 / 7], np.float32), QUATERNION, np.array([0.04, -0.04], np.float32))
    np.testing.assert_allclose(store.episode(1).state[3], expected, rtol=1e-6)
    assert store.spec.resize_filter == "bilinear" and store.frames.shape[1:] == (2, 8, 8, 3)
    assert store.spec.drawn_size > 8


def test_an_interrupted_conversion_resumes(folder: Path, tmp_path: Path) -> None:
    whole = convert(folder, tmp_path / "a", image_size=SIZE)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(folder, tmp_path / "b", image_size=SIZE, progress=stop)
    seen: list[int] = []
    assert (
        convert(folder, tmp_path / "b", image_size=SIZE, progress=lambda done, _: seen.append(done)).hash == whole.hash
    )
    assert seen == [1, 2, 3]
    with pytest.raises(UserError, match="holds a finished store already"):
        convert(folder, tmp_path / "b", image_size=SIZE)


def test_the_command_takes_a_folder_or_one_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "one"), "--image-size", "16", "--max-episodes", "1"]
    assert main([str(folder / "pick_up_the_bowl_demo.hdf5"), *out]) == 0
    assert "1 episodes, 1 tasks, 2 frames" in capsys.readouterr().out
    assert main([str(folder), "--out", str(tmp_path / "all")]) == 0
    assert main([str(folder), "--out", str(tmp_path / "other"), "--layout", "lerobot/libero"]) == 2
    assert "--layout is for LeRobot datasets" in capsys.readouterr().err


def damage(name: str, path: Path) -> None:
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:-3000])
        return
    if name == "text":
        path.write_text("hello", encoding="utf-8")
        return
    with h5py.File(path, "a") as file:
        demo = file["data/demo_1"]
        if name == "no state":
            del demo["obs/ee_ori"]
        elif name == "short state":
            for key in ("ee_pos", "ee_ori", "gripper_states"):
                values = demo[f"obs/{key}"][()]
                del demo[f"obs/{key}"]
                demo[f"obs/{key}"] = values[:-1]
        elif name == "short images":
            images = demo["obs/eye_in_hand_rgb"][()]
            del demo["obs/eye_in_hand_rgb"]
            demo["obs/eye_in_hand_rgb"] = images[:-1]
        elif name == "large action":
            demo["actions"][3, 1] = 1.5
        elif name == "nan":
            demo["obs/ee_pos"][2, 0] = np.nan
        elif name == "no instruction":
            del file["data"].attrs["problem_info"]
        elif name == "empty instruction":
            file["data"].attrs["problem_info"] = json.dumps({"language_instruction": '""'})
        elif name == "opencv":
            file["data"].attrs["macros_image_convention"] = "opencv"
        elif name == "10 Hz":
            file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 10}})
        elif name == "no demos":
            del file["data/demo_0"], file["data/demo_1"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("truncated", r"truncated or damaged \(.*truncated file"),
        ("text", "file signature not found"),
        ("no state", "the array 'ee_ori' is missing"),
        ("short state", "demo_1 has 14 actions and 13 states"),
        ("short images", r"demo_1/eye_in_hand_rgb is uint8 \(13, 16, 16, 3\), expected uint8 \(14, 16, 16, 3\)"),
        ("large action", r"action\[2, 1\] is 1.5, outside \[-1, 1\]"),
        ("nan", r"state\[2, 0\] is nan"),
        ("no instruction", "lacks LIBERO's attributes problem_info, .* give --rows before"),
        ("empty instruction", "instruction is ''"),
        ("opencv", "macros_image_convention is 'opencv', but must be 'opengl'"),
        ("10 Hz", "control_freq is 10, but must be 20"),
        ("no demos", "no demonstrations in the group 'data'"),
    ],
)
def test_bad_files_are_named_in_one_line(name: str, message: str, tmp_path: Path) -> None:
    path = write_file(tmp_path / "task_demo.hdf5")
    damage(name, path)
    with pytest.raises(UserError, match=message) as error:
        convert(path, tmp_path / "out", image_size=SIZE)
    assert "\n" not in str(error.value) and not (tmp_path / "out" / "manifest.json").exists()
