"""A robot other than LIBERO's passes all stages: LeRobot dataset, training store, training, diagnosis, acting.

Two arms of six joints with a gripper each, in the middle and at the end of the action; three cameras, 50 Hz.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from wmjax import convert, diagnose, train
from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.data.episode import EpisodeData
from wmjax.data.formats.lerobot.writer import write_lerobot_v30
from wmjax.data.observation import Observation
from wmjax.data.statistics import closing, normalise_action
from wmjax.data.store import TrainingStore
from wmjax.policy.policy import Policy, load_policy

CAMERAS = ("top", "left_wrist", "right_wrist")
JOINTS = tuple(f"{side}_{name}" for side in ("left", "right") for name in (*(f"joint{i}" for i in range(6)), "gripper"))
OBSERVATION = ObservationSpec(CAMERAS, JOINTS, ("rad",) * 14, control_hz=50.0, frame_stride=1)
ACTION = ActionSpec(JOINTS, ("rad",) * 14, grippers=(6, 13), gripper_open=(1.0, 1.0), gripper_closed=(0.0, 0.0))
INSTRUCTION = "hand the cube over"
SETTINGS = {
    "encoder.views": 2,
    "prompt.length": 112,
    "model.backbone.vision.depth": 1,
    "model.backbone.vision.full_attention": [0],
    "model.backbone.text.depth": 1,
    "model.prophet.layers": 1,
    "model.head_sizes.layers": 1,
    "train.steps": 2,
    "train.batch_size": 2,
    "train.eval_batches": 1,
    "train.eval_every": 2,
    "train.log_every": 1,
}


def episodes(count: int = 4, length: int = 24) -> Iterator[EpisodeData]:
    """Joints that swing, grippers that close halfway (the left one) and at a third (the right one) of the episode."""
    for index in range(count):
        time = np.arange(length)[:, None] / 50.0
        joints = 2.0 * np.sin(time * np.arange(1, 15) + index).astype(np.float32)
        joints[:, 6] = time[:, 0] < length / 100
        joints[:, 13] = 0.9 * (time[:, 0] < length / 150) + 0.05
        shade = (np.abs(joints[:, :3, None, None, None]) * 60).astype(np.uint8)
        yield EpisodeData(
            images=np.broadcast_to(shade, (length, 3, 112, 112, 3)).copy(),
            frame_step=np.arange(length, dtype=np.int32),
            state=joints,
            action=np.roll(joints, -1, axis=0),
            executed=np.roll(joints, -1, axis=0),
            settled_state=np.zeros(0),
            meta={"suite": "handover", "task_id": 0, "instruction": INSTRUCTION},
        )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrainingStore:
    folder = tmp_path_factory.mktemp("robot")
    write_lerobot_v30(folder / "lerobot", episodes(), OBSERVATION, ACTION)
    assert convert.main([str(folder / "lerobot"), "--out", str(folder / "store")]) == 0
    return TrainingStore(folder / "store")


def test_the_store_knows_the_robot_from_its_metadata(store: TrainingStore) -> None:
    assert (store.spec.cameras, store.spec.state, store.spec.control_hz) == (CAMERAS, JOINTS, 50.0)
    spec = store.action_spec
    assert (spec.names, spec.grippers, spec.low, spec.hold) == (JOINTS, (6, 13), (), ())
    np.testing.assert_allclose([spec.gripper_open, spec.gripper_closed], [[1.0, 0.95], [0.0, 0.05]], atol=1e-6)
    assert store.state.shape == store.action.shape == (96, 14) and store.frames.shape == (24, 3, 112, 112, 3)
    assert np.abs(store.action).max() > 1.5  # joint positions, in no bounds
    np.testing.assert_array_equal(closing(store.action, spec)[:, 0], store.action[:, 6] < 0.5)


@pytest.mark.parametrize(("option", "grippers"), [("none", ()), ("13", (13,)), ("0,6", (0, 6))])
def test_grippers_can_be_named(store: TrainingStore, tmp_path: Path, option: str, grippers: tuple[int, ...]) -> None:
    source = str(Path(store.folder).parent / "lerobot")
    assert convert.main([source, "--out", str(tmp_path / "store"), "--grippers", option, "--max-episodes", "1"]) == 0
    assert TrainingStore(tmp_path / "store").action_spec.grippers == grippers


@pytest.mark.parametrize(
    ("option", "message"),
    [("3,14", r"--grippers names dimension 14; the actions have 0 to 13, leave it out"), ("6,3", "in order")],
)
def test_wrong_grippers_are_refused(
    store: TrainingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    source = str(Path(store.folder).parent / "lerobot")
    assert convert.main([source, "--out", str(tmp_path / "store"), "--grippers", option]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_layout_file_says_what_the_metadata_does_not(store: TrainingStore, tmp_path: Path) -> None:
    layout = tmp_path / "mine.toml"
    layout.write_text(
        'state = "observation.state"\naction = "action"\ncontrol_hz = 25\nfps_label = 50\n'
        'grippers = [6]\ngripper_open = [0.0]\ngripper_closed = [1.0]\n[cameras]\nfront = "observation.images.top"\n'
    )
    arguments = [str(Path(store.folder).parent / "lerobot"), "--out", str(tmp_path / "store"), "--layout", str(layout)]
    assert convert.main([*arguments, "--max-episodes", "1"]) == 0
    made = TrainingStore(tmp_path / "store")
    assert (made.spec.cameras, made.spec.control_hz, made.action_spec.gripper_closed) == (("front",), 25.0, (1.0,))


def converted(source: Path, out: Path, *words: str) -> TrainingStore:
    assert convert.main([str(source), "--out", str(out), *words]) == 0
    return TrainingStore(out)


def test_some_cameras_and_episodes_can_be_selected(store: TrainingStore, tmp_path: Path) -> None:
    source = Path(store.folder).parent / "lerobot"
    made = converted(source, tmp_path / "store", "--select", "cameras=right_wrist,top", "episodes=1:3")
    assert made.spec.cameras == ("right_wrist", "top") and made.action_spec.dim == 14
    assert [entry["source_episode"] for entry in made.episodes] == [1, 2]
    np.testing.assert_array_equal(made.frames, store.frames[6:18][:, [2, 0]])
    np.testing.assert_array_equal(made.state, store.state[24:72])


def test_some_tasks_can_be_selected(tmp_path: Path) -> None:
    def of_three_tasks() -> Iterator[EpisodeData]:
        for index, episode in enumerate(episodes()):
            yield dataclasses.replace(episode, meta={**episode.meta, "instruction": f"task {index % 3}"})

    write_lerobot_v30(tmp_path / "lerobot", of_three_tasks(), OBSERVATION, ACTION)
    made = converted(tmp_path / "lerobot", tmp_path / "store", "--select", "tasks=0,2", "--max-episodes", "2")
    assert [entry["source_episode"] for entry in made.episodes] == [0, 2]
    assert [task.instruction for task in made.tasks] == ["task 0", "task 2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cameras=front"], "camera of --select 'front'"),
        (["cameras=top,top"], "--select cameras=top,top names a camera twice"),
        (["episodes=2:5"], "--select episodes: .* has no 4, but 0 to 3; choose of these"),
        (["tasks=1"], "--select tasks: .* has no 1, but 0 to 0; choose of these"),
        (["episodes=3:3"], "'3:3' is neither a number nor a range such as 0:20"),
        (["episodes=-1"], "'-1' is neither a number nor a range"),
        (["tasks=0", "tasks=0"], "--select has 'tasks=0'; write --select .*, each once"),
        (["length=3"], "--select has 'length=3'; write --select cameras=NAME"),
    ],
)
def test_what_cannot_be_selected_is_refused(
    store: TrainingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    source = str(Path(store.folder).parent / "lerobot")
    assert convert.main([source, "--out", str(tmp_path / "store"), "--select", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_a_depth_camera_is_left_out_and_named(
    store: TrainingStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "lerobot"
    shutil.copytree(Path(store.folder).parent / "lerobot", source)
    info = json.loads((source / "meta/info.json").read_text())
    info["features"]["observation.images.left_wrist"]["info"] = {"video.is_depth_map": True}
    info["features"]["observation.images.right_wrist"]["shape"] = [112, 112, 1]
    (source / "meta/info.json").write_text(json.dumps(info))
    made = converted(source, tmp_path / "store", "--max-episodes", "1")
    assert made.spec.cameras == ("top",)
    (said,) = (line for line in caplog.messages if "depth" in line)
    assert "observation.images.left_wrist, observation.images.right_wrist: no colour images (depth), left out" in said


def arguments(store: TrainingStore, run: Path | str, recipe: str = "e2_flow", **more: object) -> list[str]:
    """Of the train command, with everything tiny."""
    settings = {**SETTINGS, "data.path": store.folder, **{k.replace("__", "."): v for k, v in more.items()}}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return ["--config", recipe, "--scale", "smoke", "--run", str(run), "--no-evaluation", *flags]


@pytest.mark.parametrize("name", ["action_dim", "state_dim"])
def test_another_size_than_the_stores_is_refused_with_both(
    store: TrainingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert train.main(arguments(store, tmp_path, **{f"model__{name}": 7})) == 2
    assert f"model.{name} is 7, but data.path {store.folder} has 14" in capsys.readouterr().err


@pytest.mark.slow
def test_it_trains_is_diagnosed_and_acts(
    store: TrainingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    assert train.main(arguments(store, run, train__init_from="mini", train__delta_actions="all")) == 0
    log = (run / "log.txt").read_text()
    assert "another robot than that of" in log and "states of 14 values (there 8), actions of 14 (there 7)" in log
    assert re.search(r" \d+ new: .*head/action_in/kernel/value, .*state_in/up/kernel/value", log)
    model = json.loads((run / "config.json").read_text())["model"]
    assert (model["action_dim"], model["grippers"], model["state_dim"]) == (14, 2, 14)
    measured = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(value) for line in measured for value in line.values() if not isinstance(value, str))
    capsys.readouterr()
    assert diagnose.main(["--run", str(run), "--batches", "1"]) == 0
    report = capsys.readouterr().out
    assert all(name in report for name in JOINTS) and "gripper accuracy" in report
    assert "skipped: the state names no position of the end effector" in report
    acts(store, run)


def acts(store: TrainingStore, run: Path) -> None:
    """The policy's chunk is raw: joints about where they were seen, grippers at their open or closed value."""
    policy = load_policy(run, batch_size=1)
    episode = store.episode(0)
    observation = Observation(
        np.asarray(episode.images)[None, [0, 0]], episode.state[:1], policy.prompt(INSTRUCTION), np.ones(1, bool)
    )
    _, chunk, _ = policy(policy.initial_carry(), observation, jax.random.split(jax.random.key(0), 1))
    chunk = np.asarray(chunk)
    assert chunk.shape == (1, 8, 14) and np.isfinite(chunk).all()
    spec = policy.action_spec
    assert spec.grippers == (6, 13)
    assert spec.relative_to == (*range(6), -1, *range(7, 13), -1)
    for place, dimension in enumerate(spec.grippers):
        values = (spec.gripper_open[place], spec.gripper_closed[place])
        assert np.isclose(chunk[0, :, dimension, None], values, atol=1e-5).any(-1).all()
    normal = normalise_action(chunk, spec, observation.state)
    np.testing.assert_allclose(np.abs(normal[..., 12:]), 1.0, rtol=1e-4)
    assert np.abs(normal[..., :12]).max() < 6.0
    with pytest.raises(UserError, match="open_loop_horizon"):
        load_policy(run, open_loop_horizon=6)


@pytest.mark.slow
@pytest.mark.long
def test_seeds_side_by_side_have_the_sizes_of_the_robot(
    store: TrainingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path / "cache"))
    assert train.main(arguments(store, tmp_path / "run", "e0_l1", train__seeds=2, train__delta_actions="all")) == 0
    for seed in range(2):
        spec = load_policy(tmp_path / f"run-s{seed}", batch_size=1).action_spec
        assert spec.dim == 14 and spec.relative_to == (*range(6), -1, *range(7, 13), -1)


@pytest.mark.slow
def test_a_run_at_a_url_is_trained_resumed_and_acts(
    store: TrainingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second machine has neither the cache nor the run's folder of the first one."""
    url = f"file://{tmp_path / 'bucket'}/run"
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path / "first"))
    assert train.main(arguments(store, url, "e0_l1")) == 0
    shutil.rmtree(tmp_path / "first")
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path / "second"))
    assert train.main(arguments(store, url, "e0_l1", train__seed=1)) == 2
    assert "was started with train.seed = 0, now it is 1" in capsys.readouterr().err
    assert train.main(arguments(store, url, "e0_l1")) == 0
    (run,) = (tmp_path / "second/mirrored").iterdir()
    assert "resumed at step 2" in (run / "log.txt").read_text()
    shutil.rmtree(tmp_path / "second")
    acts_alike(store, load_policy(url, batch_size=1), load_policy(tmp_path / "bucket/run", batch_size=1))
    fetched = [path.name for path in (tmp_path / "second/fetched").rglob("*") if path.is_dir()]
    assert "ema" in fetched and "state" not in fetched
    assert diagnose.main(["--run", url, "--batches", "1", "--data", str(store.folder)]) == 0


def acts_alike(store: TrainingStore, one: Policy, other: Policy) -> None:
    """Two policies give the same chunk, bit for bit."""
    episode, chunks = store.episode(0), []
    for policy in (one, other):
        images = np.asarray(episode.images)[None, [0] * policy.frames_per_decision]
        observation = Observation(images, episode.state[:1], policy.prompt(INSTRUCTION), np.ones(1, bool))
        chunks.append(policy(policy.initial_carry(), observation, jax.random.split(jax.random.key(0), 1))[1])
    np.testing.assert_array_equal(*chunks)
