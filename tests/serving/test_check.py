"""``--check`` against a server whose policy is known: it names the preset and the dimension that does not fit."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import wmjax.evaluate as command
from tests.rollout.fakes import SPEC
from tests.rollout.test_replay import recorded
from tests.serving.peers import packed_server
from tests.serving.servers import running
from wmjax.data.store import TrainingStore, finalize, write_part
from wmjax.serving.clients.check import Check, fitted
from wmjax.sim.libero import ACTION_SPEC


def acts(image: np.ndarray, wrist: np.ndarray, state: np.ndarray) -> np.ndarray:
    """A policy that looks at two corners and at the orientation's first value; raw, the gripper last."""
    corner, other = float(image[0, 0, 0]) / 255, float(wrist[-1, 0, 1]) / 255
    values = [corner, other, state[0], np.tanh(state[3]), corner - other, -state[7], np.sign(state[1])]
    return np.clip(np.array(values, np.float32), -1, 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrainingStore:
    """Recordings in which that policy acted, with rotations beyond half a turn."""
    folder, random = tmp_path_factory.mktemp("store") / "store", np.random.default_rng(0)
    for index in range(3):
        episode = recorded(1_000_000 + index, 0.0, 0.0)
        images = random.integers(0, 256, episode.images.shape, np.uint8)
        state = random.uniform(-0.9, 0.9, episode.state.shape).astype(np.float32)
        turn = random.uniform(2.5, 3.9, len(state))
        state[:, 3], state[:, 4:6] = turn, 0
        frame = np.arange(len(state)) // SPEC.frame_stride
        state = state[frame * SPEC.frame_stride]  # the same actions until the next frame
        action = np.stack([acts(*images[f], s) for f, s in zip(frame, state, strict=True)])
        part = dataclasses.replace(episode, images=images, state=state, action=action, executed=action)
        write_part(folder, str(index), part, SPEC)
    return finalize(folder, SPEC, ACTION_SPEC)


def openpi_server(dimension: int = 0, sign: float = 1.0):
    """openpi's protocol with that policy, one of whose dimensions may have the other sign."""

    def infer(message):
        action = acts(message["observation/image"], message["observation/wrist_image"], message["observation/state"])
        action[dimension] *= sign
        return {"actions": np.tile(action, (5, 1))}

    return packed_server({}, lambda: infer)


def checked(url: str, store: TrainingStore, capsys, *more: str) -> str:
    assert command.main(["--policy", url, "--check", "40", "--data", str(store.folder), *more]) == 0
    return capsys.readouterr().out


def row(table: str, name: str) -> dict[str, float]:
    line = next(line for line in table.splitlines() if re.match(rf"{re.escape(name)}\s\s", line))
    numbers = [float(word) for word in line.removeprefix(name).split()]
    return dict(zip([*ACTION_SPEC.names, "mean"], numbers, strict=True))


def test_the_preset_that_fits_is_named_and_every_wrong_convention_scores_less(store, capsys) -> None:
    with openpi_server() as url:
        table = checked(url, store, capsys)
    fits = row(table, "openpi")
    assert all(fits[name] > 0.3 for name in ACTION_SPEC.names), table
    assert "\nopenpi fits" in table and "does not fit" not in table
    assert row(table, "openpi, rotation shortest")["drx"] < fits["drx"] - 0.5
    for turned in ("openpi, orientation turned", "openpi, orientation mirrored"):
        assert row(table, turned)["dx"] < 0 < fits["dx"] and row(table, turned)["dz"] == fits["dz"]
    assert row(table, "openvla")["gripper"] < 0
    assert re.search(r"starvla +refused: .*KeyError: 'observation/state'", table)
    assert "the recorded images have 4 pixels a side and were enlarged" in table


def test_a_dimension_of_the_other_sign_is_named(store, capsys) -> None:
    with openpi_server(0, -1.0) as url:
        table = checked(url, store, capsys)
    assert "\nopenpi fits" in table and row(table, "openpi")["gripper"] == 1.0
    assert re.search(r"\ndx does not fit \(R² -\d+\.\d+, correlation -1\.00\): its sign is opposite\n", table)


def test_a_gripper_of_the_other_sign_is_that_of_another_preset_or_set(store, capsys) -> None:
    with openpi_server(6, -1.0) as url:
        table = checked(url, store, capsys)
        mended = checked(url, store, capsys, "--foreign.gripper_open", "1", "--foreign.gripper_closed", "-1")
    assert "\nopenvla fits" in table and row(table, "openpi")["gripper"] < -1
    assert "\nopenpi fits" in mended and row(mended, "openpi")["gripper"] == 1.0


def test_a_server_of_ours_is_checked_with_its_own_spec(store, capsys) -> None:
    with running(max_sessions=2) as served:
        table = checked(served.url, store, capsys)
    assert "nothing fits; the nearest is wmjax" in table  # a fake that acts on noise
    assert "openpi" not in table and "wmjax, orientation turned" in table


def test_scale_and_noise_are_told_apart() -> None:
    random = np.random.default_rng(1)
    truth = random.normal(size=(200, 3))
    truth[:, 2] = 1.0
    guess = np.stack([0.1 * truth[:, 0], random.normal(size=200), random.normal(size=200)], 1)
    truth, guess = np.c_[truth, truth[:, 0]], np.c_[guess, -truth[:, 0]]
    check = Check([fitted("p", guess, truth)], ("a", "b", "c", "d"), (3,), 200)
    first, scaled, noise, turned = check.verdict()
    assert first == "nothing fits; the nearest is p" and np.isnan(check.best.r2[2])
    assert "a does not fit" in scaled and "10 recorded per answered unit" in scaled
    assert "b does not fit" in noise and "does not follow the recordings" in noise
    assert turned.endswith("its sign is opposite; exchange --foreign.gripper_open and --foreign.gripper_closed")


def test_too_few_observations_are_one_line(store: TrainingStore, capsys) -> None:
    with openpi_server() as url:
        assert command.main(["--policy", url, "--check", "1", "--data", str(store.folder)]) == 2
    assert "--check is 1" in capsys.readouterr().err
    assert isinstance(store.folder, Path)
