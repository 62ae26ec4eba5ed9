"""The main job through its command, every stage for real: recording, latents, training, closed loop, verdict."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from flax import nnx

from tests import QUICK_FUSIONS
from wmjax.experiment.config import load
from wmjax.models.backbones.qwen2_5_vl import names, weights
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.policy.saved import find_policy
from wmjax.reporting.video import decision_strip as decided
from wmjax.reporting.video import imagination_strip as imagination
from wmjax.reporting.video.clips import CAPTION, MINIMUM_HEIGHT

pytestmark = [pytest.mark.sim, pytest.mark.slow]

RUN = "runs/{}-smoke-smoke-s0"
IN_ONE_PROCESS = (
    "e0_flow",
    "e2_mse",
    "e0plus_flow",
    "e1copy_mse",
    "e1_flow",
    "e1past_flow",
    "e1history_flow",
    "e2stop_mse",
    "e2only_mse",
    "oracle_mse",
    "e0state_mse",
    "e2aux_mse",
    "prior_e0_flow",
    "prior_e2_mse",
)
"""Run in one process, by ``variants.py``; ``e0_mse`` and ``e2_flow`` run as a user would run them."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def command(module: str, cache: Path, *arguments: str, status: int = 0, **variables: str) -> str:
    """Runs a command as a user would, with its own cache; returns what it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    flags = f"--xla_backend_optimization_level=1 {QUICK_FUSIONS}"  # most of the time is compilation
    environment |= {"WMJAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **variables}
    line = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def first(cache: Path) -> str:
    return command("wmjax.train", cache, "--config", "e2_flow", "--scale", "smoke")


def test_one_command_goes_from_nothing_to_a_success_rate(first: str, cache: Path) -> None:
    run = cache / RUN.format("e2_flow")
    assert "libero_spatial/2" in first and "95 % interval" in first and f"run: {run}" in first
    assert first.count("  python -m wmjax.") == 2 and "tensorboard --logdir" in first
    assert json.loads((run / "config.json").read_text())["recipe"] == "e2_flow"
    (evaluation,) = (run / "evaluations").glob("*/*")
    episodes = [json.loads(line) for line in (evaluation / "episodes.jsonl").read_text().splitlines()]
    assert [episode["outcome"] in ("success", "failure") for episode in episodes] == [True, True]
    assert {"memory/gate", "memory/ratio", "world/error", "world/copy_error"} <= episodes[0]["info"].keys()
    (video, *_) = (evaluation / "videos").glob("*.mp4")
    with av.open(str(video)) as container:  # cameras, caption, three rows of what was imagined, the chunk
        strips = imagination.LINE + 3 * (imagination.CELL + imagination.GAP) + decided.LINE + 7 * decided.CELL
        assert container.streams.video[0].height == MINIMUM_HEIGHT + CAPTION + strips
    assert list((run / "tensorboard").iterdir()) and list((cache / "xla").iterdir())


def test_why_says_how_it_failed_and_what_to_do(first: str, cache: Path) -> None:
    run = cache / RUN.format("e2_flow")
    shown = command("wmjax.why", cache, "--run", str(run), "--episodes", "1")
    assert shown.index("== Likely causes ==") < shown.index("== Closed loop: 0 of 2 episodes succeed")
    assert "has not learned its own training data" in shown and "1 of 1 succeed" in shown
    assert "no noise" in shown and "another sample's images" in shown
    written = json.loads((run / "why" / "00000030" / "why.json").read_text())
    assert sum(written["failures"].values()) == 1 and written["replay"]["pixels"] == 0.0
    page = (run / "why" / "00000030" / "why.txt").read_text(encoding="utf-8")
    assert written["causes"][0]["command"] in page and page.startswith("== Likely causes ==")


def test_the_metrics_are_those_that_cannot_mislead(first: str, cache: Path) -> None:
    lines = [json.loads(x) for x in (cache / RUN.format("e2_flow") / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [10, 20, 30]
    last = next(line for line in reversed(lines) if line["split"] == "val")
    expected = {*(f"r2/{i}" for i in range(7)), "r2_arm", "world/skill_1", "memory/gate", "memory/ratio"}
    assert expected <= last.keys()
    assert all(np.isfinite(value) for line in lines for value in line.values() if not isinstance(value, str))


def test_a_second_run_finds_everything_done(first: str, cache: Path) -> None:
    again = command("wmjax.train", cache, "--config", "e2_flow", "--scale", "smoke")
    assert "recording" not in again and "encoding" not in again and "step 10/30" not in again
    assert "libero_spatial/2" in again


PLAN = """
[cells.tiny]
config = "e0_mse"
scale = "smoke"
minutes = 3
protocols = ["smoke"]
episodes = 1
settings.train.steps = 2
settings.train.eval_every = 2
settings.train.checkpoint_every = 2
"""


def test_a_sweep_trains_the_baseline_on_the_same_data_and_is_resumed(first: str, cache: Path) -> None:
    plan = cache / "plan.toml"
    plan.write_text(PLAN)
    shown = command("wmjax.sweep", cache, str(plan))
    assert "1 of 1 cells to run, 3 min stated" in shown and "recording" not in shown
    path = cache / "plan" / "tiny-s0.json"
    found = json.loads(path.read_text())
    (evaluation,) = found["evaluations"].values()
    assert [outcome in ("success", "failure") for outcome, _ in evaluation["episodes"].values()] == [True]
    assert found["experiment"]["train"]["steps"] == 2 and len(found["specs"]["observation"]) == 16
    assert found["minutes"]["training"] > 0 and "r2_arm" in found["validation"] and found["commit"]
    before = path.read_bytes()
    assert "0 of 1 cells to run" in command("wmjax.sweep", cache, str(plan))
    assert path.read_bytes() == before
    assert "tables.md" in command("wmjax.sweep", cache, str(plan), "--tables")
    assert "| tiny | 0 |" in (cache / "plan" / "tables.md").read_text()


@pytest.mark.long
def test_two_policies_are_compared_until_no_episode_is_left(first: str, cache: Path) -> None:
    runs = [str(cache / "sweeps" / "plan" / "tiny-s0"), str(cache / RUN.format("e2_flow"))]
    shown = command("wmjax.compare", cache, *runs, "--until", "decided", "--protocol", "smoke")
    assert "2 pairs" in shown and "undecided" in shown and "0 of 2 episodes to run" in shown


@pytest.mark.long  # variants train in trainer/test_loop.py, and heads in e2e/test_heads.py
def test_every_variant_trains_and_acts(first: str, cache: Path) -> None:
    """Both heads of e0 and e2, one of each other variant; ``test_heads.py`` traces the rest."""
    flags = f"--xla_backend_optimization_level=0 {QUICK_FUSIONS}"
    shown = command("tests.e2e.variants", cache, *IN_ONE_PROCESS, XLA_FLAGS=flags)
    assert "recording" not in shown and "encoding" not in shown
    for recipe in IN_ONE_PROCESS:
        run = cache / "variants" / recipe
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2]
        assert all(np.isfinite(value) for line in lines for value in line.values() if not isinstance(value, str))
        (episode,) = (run / "evaluations/00000002/two_decisions/episodes.jsonl").read_text().splitlines()
        found = json.loads(episode)
        assert (found["outcome"], found["steps"], found["decisions"]) == ("failure", 16, 2)
        assert ("memory/ratio" in found["info"]) == load(recipe).model.memory.inject


def test_recorded_actions_succeed_through_the_evaluation_path(first: str, cache: Path) -> None:
    (store,) = (cache / "demos").iterdir()
    out = cache / "replayed"
    shown = command(
        "wmjax.evaluate", cache, "--policy", "replay", "--data", str(store), "--protocol", "smoke", "--out", str(out)
    )
    assert "2/2" in shown


FROZEN = ("--config", "e0_mse", "--scale", "mini_lora", "--dataset", "smoke", "--evaluation.protocol", "smoke",
          "--train.steps", "3", "--train.batch_size", "2", "--train.eval_batches", "1")  # fmt: skip


@pytest.mark.long  # frozen backbones train in trainer/test_loop.py, and are exported in test_export.py
def test_a_pretrained_backbone_stays_frozen_and_acts_and_a_random_one_is_the_control(first: str, cache: Path) -> None:
    exported = cache / "pretrained"
    pretrain = (
        "wmjax.pretrain",
        cache,
        "--config",
        "e2_flow",
        "--scale",
        "smoke",
        "--dataset",
        "smoke",
        "--out",
        str(exported),
    )
    shown = command(*pretrain)  # the policy is trained already
    assert "step 10/30" not in shown and "libero_spatial/2" not in shown and "as a Hugging Face checkpoint" in shown
    assert f"error: {exported} exists already" in command(*pretrain, status=2)
    shown = command("wmjax.train", cache, *FROZEN, "--train.backbone_weights", str(exported))
    assert "recording" not in shown and "libero_spatial/2" in shown
    command("wmjax.train", cache, *FROZEN, "--train.backbone_weights", "random", "--no-evaluation")
    published = arrays(names.base_leaves(weights.load_model(exported)))
    for name in ("pretrained", "random"):
        acts = find_policy(cache / f"runs/e0_mse-mini_lora-smoke-s0-{name}-r16").model().backbone
        assert isinstance(acts, Qwen2_5_VL)
        base, adapters = arrays(names.base_leaves(acts)), arrays(names.adapter_leaves(acts))
        assert {np.array_equal(base[path], value) for path, value in published.items()} == {name == "pretrained"}
        assert len(adapters) == 14 and all(value.any() for value in adapters.values())  # B starts at zero
    # Other weights in the same folder are another experiment.
    file = exported / weights.SINGLE_FILE
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    shown = command("wmjax.train", cache, *FROZEN, "--train.backbone_weights", str(exported), status=2)
    assert "was started with backbone_hash = " in shown


def arrays(leaves: dict[names.Path, nnx.Variable]) -> dict[names.Path, np.ndarray]:
    return {path: np.asarray(leaf.get_value()) for path, leaf in leaves.items()}


def test_another_experiment_in_the_same_folder_is_refused(first: str, cache: Path) -> None:
    shown = command("wmjax.train", cache, "--config", "e2_flow", "--scale", "smoke", "--train.seed", "3",
                    "--run", str(cache / RUN.format("e2_flow")), status=2)  # fmt: skip
    assert "was started with train.seed = 0, now it is 3" in shown and "Traceback" not in shown


def test_a_dry_run_touches_nothing(tmp_path: Path) -> None:
    shown = command("wmjax.train", tmp_path, "--config", "e2_flow", "--dry-run")
    assert "parameters: " in shown and "mesh: " in shown and not (tmp_path / "runs").exists()
    assert not (tmp_path / "demos").exists()
