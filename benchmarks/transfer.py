"""From one robot to another: a policy of ten demonstrations, trained from scratch and from a policy of another robot.

    python -m wmjax.record --every-step --image-size 112 --suite libero_object --tasks 0 --episodes 14 --out RECORDING
    python benchmarks/transfer.py RECORDING --out FOLDER [--start mini] [--steps 300] [--seeds 0,1] [--held-out 4]

The recording is written again as the dataset of another robot, and goes the way of any other: ``wmjax.convert``,
``wmjax.train`` without and with ``--train.init_from``. That robot differs in

- cameras: the same pictures under other names;
- state, 10 values: the hand's position in a base frame that is turned by a right angle and moved, the first two columns
  of its rotation matrix, and the width of the gripper;
- action, 11 values: where the hand is to be (position and columns of the rotation) and a command of 0 or 1 for each of
  two fingers, instead of six deltas and one command.

Both trainings have the same settings, data, seeds and number of steps; only ``train.init_from`` differs. Scored are the
episodes that neither saw: the root mean square distance between the predicted and the demonstrated target of the hand
over all steps of all chunks (mm), of all episodes and of each, beside that of a hand that stays where it is; the same
of the rotation's columns; and the share of right finger commands.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.data.episode import EpisodeData
from wmjax.data.formats.lerobot.dataset import LeRobotDataset
from wmjax.data.formats.lerobot.writer import write_lerobot_v30
from wmjax.data.statistics import closing
from wmjax.diagnostics.passes import PLAIN, Network, batches, observe
from wmjax.diagnostics.samples import action_windows, rotation_columns
from wmjax.pipeline.diagnose import load
from wmjax.trainer import checkpoint

CAMERAS = ("front", "hand")
POSITION, COLUMNS = ("x", "y", "z"), ("r00", "r10", "r20", "r01", "r11", "r21")
OBSERVATION = ObservationSpec(CAMERAS, (*POSITION, *COLUMNS, "width"), ("m",) * 3 + ("",) * 6 + ("m",), 20.0)
ACTION = ActionSpec(
    (*(f"target_{name}" for name in (*POSITION, *COLUMNS)), "left_gripper", "right_gripper"),
    ("m",) * 3 + ("",) * 8,
    grippers=(9, 10),
    gripper_open=(1.0, 1.0),
    gripper_closed=(0.0, 0.0),
)
BASE, TURN = np.array([0.4, -0.3, 0.1]), np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""The other robot's base: where LIBERO's origin is in its frame (m), and how that frame is turned."""
METRES, RADIANS = 0.05, 0.5
"""What an action of 1 moves in LIBERO's operational-space controller."""


@dataclasses.dataclass(frozen=True)
class Score:
    """Errors on the held-out episodes: of the hand's target (mm), of the rotation's columns, right finger commands.

    ``episodes_mm`` is the error of the hand's target in each episode alone, by its number.
    """

    position_mm: float
    staying_mm: float
    rotation: float
    fingers: float
    episodes_mm: dict[int, float]


def matrices(vector: Float32[np.ndarray, "n 3"]) -> np.ndarray:
    """Rotation matrices ``[n, 3, 3]`` of rotation vectors."""
    columns = rotation_columns(vector).reshape(-1, 2, 3)
    return np.stack([columns[:, 0], columns[:, 1], np.cross(columns[:, 0], columns[:, 1])], axis=-1)


def pose(position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Position and two columns of the rotation in the other robot's frame, ``[n, 9]``."""
    turned = TURN @ rotation
    return np.concatenate([position @ TURN.T + BASE, turned[..., 0], turned[..., 1]], axis=-1)


def other_robot(dataset: LeRobotDataset) -> Iterator[EpisodeData]:
    """The episodes of a recording as the other robot would have recorded them."""
    for entry in dataset.episodes:
        found = dataset.columns(entry)
        task = int(found.task_index[0])
        here, now, action = found.state[:, :3], matrices(found.state[:, 3:6]), found.action
        state = np.concatenate([pose(here, now), found.state[:, 6:7] - found.state[:, 7:8]], axis=1)
        target = pose(here + METRES * action[:, :3], matrices(RADIANS * action[:, 3:6]) @ now)
        fingers = np.repeat(action[:, 6:] < 0, 2, axis=1)  # LIBERO opens with -1
        commands = np.concatenate([target, fingers], axis=1).astype(np.float32)
        yield EpisodeData(
            images=dataset.images(entry, np.arange(entry.length)),
            frame_step=np.arange(entry.length, dtype=np.int32),
            state=state.astype(np.float32),
            action=commands,
            executed=commands,
            settled_state=np.zeros(0),
            meta={"suite": "other", "task_id": task, "instruction": dataset.tasks[task]},
        )


def make_store(recording: Path, out: Path) -> Path:
    """The other robot's dataset, converted; nothing is written twice."""
    dataset, store = out / "dataset", out / "store"
    if not dataset.exists():
        source = LeRobotDataset(recording)
        spec = dataclasses.replace(OBSERVATION, image_size=source.image_size[0], frame_stride=1)
        write_lerobot_v30(dataset, other_robot(source), spec, ACTION, robot_type="other")
    if not (store / "manifest.json").exists():
        command("convert", str(dataset), "--out", str(store))
    return store


def command(name: str, *arguments: str) -> None:
    """Runs one of wmjax's commands, and says which."""
    print(f"python -m wmjax.{name}", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", f"wmjax.{name}", *arguments], check=True)


def train(store: Path, run: Path, start: str, seed: int, steps: int, held_out: int) -> Path:
    """Trains, or resumes a training that has not finished; returns its last checkpoint."""
    if (run / "checkpoints" / f"{steps:08d}" / "manifest.json").exists():
        return checkpoint.find(run)
    episodes = len(json.loads((store / "manifest.json").read_text(encoding="utf-8"))["episodes"])
    settings = {
        "data.path": store,
        "encoder.cameras": json.dumps(CAMERAS[:1]),
        "train.init_from": start,
        "train.seed": seed,
        "train.steps": steps,
        "train.validation_fraction": held_out / episodes,
        "train.ema_decay": 0.98,
        "train.eval_every": 50,
        "train.eval_batches": 5,
        "train.log_every": 25,
        "optimizer.warmup_steps": steps // 10,
    }
    flags = [f"--{name}={value}" for name, value in settings.items() if value != ""]
    command("train", "--config", "e2_flow", "--scale", "mini", "--run", str(run), "--no-evaluation", *flags)
    return checkpoint.find(run)


def score(folder: Path) -> Score:
    """The errors of a checkpoint's own samples on the episodes that it was not trained on."""
    experiment, model, inputs = load(folder)
    stream = batches(inputs, "val", 1_000, 32, seed=0)
    outcome = observe(Network(model, inputs, experiment.train.seed), stream, [])
    windows = action_windows(inputs, outcome.frames)
    chunk = outcome.raw_chunks(inputs)[PLAIN][windows.mask]
    actual = windows.action[windows.mask]
    state = inputs.store.state[inputs.store.frame_row[outcome.frames]]
    here = np.broadcast_to(state[:, None, :3], (*windows.mask.shape, 3))[windows.mask]
    right = closing(chunk, inputs.action_spec) == closing(actual, inputs.action_spec)
    episode = np.broadcast_to(inputs.store.frame_episode[outcome.frames][:, None], windows.mask.shape)[windows.mask]
    error = 1000 * (chunk[:, :3] - actual[:, :3])
    return Score(
        distance(error),
        1000 * distance(here - actual[:, :3]),
        distance(chunk[:, 3:9] - actual[:, 3:9]),
        float(right.mean()),
        {int(index): distance(error[episode == index]) for index in np.unique(episode)},
    )


def distance(difference: Float32[np.ndarray, "n values"]) -> float:
    """The root mean square of the rows' lengths."""
    return float(np.sqrt(np.square(difference.astype(np.float64)).sum(axis=1).mean()))


def curve(run: Path) -> dict[int, float]:
    """R² of the actions other than the grippers' at each validation."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["r2_arm"] for line in lines if line["split"] == "val"}


def main() -> None:
    """Trains, scores and prints every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, help="of LIBERO, by wmjax.record --every-step")
    parser.add_argument("--out", type=Path, required=True, help="folder of the data, the runs and results.json")
    parser.add_argument("--start", default="mini", help="what --train.init_from names")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--held-out", type=int, default=4, help="episodes that are scored and not trained on")
    options = parser.parse_args()
    store = make_store(options.recording, options.out)
    rows: list[dict[str, Any]] = []
    for seed in map(int, options.seeds.split(",")):
        for start in ("", options.start):
            run = options.out / "runs" / f"{'start' if start else 'scratch'}-s{seed}"
            found = score(train(store, run, start, seed, options.steps, options.held_out))
            row = {"start": start or "scratch", "seed": seed, **dataclasses.asdict(found), "r2_arm": curve(run)}
            rows.append(row)
            print(json.dumps(row), flush=True)
            (options.out / "results.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
