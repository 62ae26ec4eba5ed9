"""Masks, the masked forward pass against the reference, resuming, and what probes report."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from encoders_export import pretrain  # noqa: E402
from encoders_export.blocks import gather, patchify  # noqa: E402
from encoders_export.jepa import Jepa, PredictorConfig, spread_loss  # noqa: E402
from encoders_export.masks import LONG, SHORT, draw_masks  # noqa: E402
from encoders_export.pretrain import Clips, PretrainConfig, Pretrainer, main  # noqa: E402
from encoders_export.vjepa import preprocess  # noqa: E402
from wmjax.analysis.ridge import ridge_r2, token_rank  # noqa: E402
from wmjax.core.errors import UserError  # noqa: E402
from wmjax.data.store import EpisodeData, TrainingStore, finalize, write_part  # noqa: E402
from wmjax.diagnostics.probe import format_table, object_scores, objects_of, probe  # noqa: E402
from wmjax.encoders.vjepa2.config import VJEPA2Config  # noqa: E402
from wmjax.encoders.vjepa2.files import MINI_FOLDER, encoder_spec  # noqa: E402
from wmjax.recording.random_motion import SUITES, TASKS_PER_SUITE, choose_tasks  # noqa: E402

TINY = VJEPA2Config(
    image_size=112, resize=112, patch_size=14, frames_per_clip=4, hidden_size=64, num_layers=2, num_heads=1
)
PREDICTOR = PredictorConfig(hidden_size=32, num_layers=1, num_heads=1)
pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TrainingStore:
    """Episodes in which a bright square follows the end effector and an object lies still."""
    folder, spec = tmp_path_factory.mktemp("data"), OBSERVATION_SPEC
    for index in range(12):
        rng = np.random.default_rng(index)
        length, steps = 25, np.arange(0, 25, 4, dtype=np.int32)
        path = np.cumsum(rng.normal(0, 1.5, (length, 2)), axis=0) + rng.uniform(30, 80, 2)
        path = np.clip(path, 8, 100)
        images = np.full((len(steps), 2, 112, 112, 3), 60, np.uint8)
        for f, step in enumerate(steps):
            y, x = path[step].astype(int)
            images[f, :, y : y + 12, x : x + 12] = 220
        state = np.zeros((length, 8), np.float32)
        state[:, :2], state[:, 6] = path / 100, rng.uniform(0, 0.04)
        action = np.zeros((length, 7), np.float32)
        height = 0.0 if index == 0 else 0.9  # in the first episode it lies on the floor
        place = [*rng.uniform(0, 1, 2).round(3).tolist(), height]
        meta = {"suite": "s", "task_id": 0, "instruction": "do", "objects": {"cup_1": [place] * len(steps)}}
        episode = EpisodeData(images, steps, state, action, action, np.zeros(1), meta)
        write_part(folder, f"{index:03d}", episode, spec)
    return finalize(folder, spec, ACTION_SPEC)


@pytest.mark.parametrize("spec", [SHORT, LONG])
def test_masks_are_disjoint_rectangular_and_hide_blocks(spec):
    visible, hidden = draw_masks(spec, np.random.default_rng(0), 200, (2, 8, 8))
    assert visible.shape == (200, spec.visible) and hidden.shape == (200, spec.hidden)
    for v, h in zip(visible, hidden, strict=True):
        assert len({*v.tolist(), *h.tolist()}) == spec.visible + spec.hidden
    columns = [np.bincount(ids.ravel() % 64, minlength=64) for ids in (visible, hidden)]
    assert all(c.min() > 0 for c in columns)
    if spec.future:  # the whole present is hidden, the context is the past
        past_only = (visible < 64).all(axis=1)
        assert 0.15 < past_only.mean() < 0.4 and (hidden[past_only] >= 64).all()


def test_masked_forward_equals_the_reference_modules():
    """Dropping tokens with gathered rotary tables is the reference's layers with a position mask."""
    jepa = Jepa(TINY, PREDICTOR, seed=0, target_layers=1)
    clip = torch.randn(3, 4, 3, 112, 112)
    visible, hidden = (torch.from_numpy(np.ascontiguousarray(i)) for i in
                       draw_masks(SHORT, np.random.default_rng(0), 3, (2, 8, 8)))  # fmt: skip
    encoder, predictor = jepa.model.encoder, jepa.model.predictor
    with torch.no_grad():
        full = jepa.encode(encoder, patchify(clip, TINY), None)
        reference = encoder(clip).last_hidden_state
        torch.testing.assert_close(full[-1], reference, atol=2e-5, rtol=1e-4)
        x = gather(encoder.embeddings(clip), visible)
        for layer in encoder.layer:
            x = layer(x, visible)[0]
        context = encoder.layernorm(x)
        torch.testing.assert_close(
            jepa.encode(encoder, patchify(clip, TINY), visible)[-1], context, atol=2e-5, rtol=1e-4
        )
        guess = jepa.predict(context, visible, hidden, 1)
        scattered = torch.zeros_like(reference).scatter(1, visible[..., None].expand(-1, -1, 64), context)
        expected = predictor(scattered, [visible], [hidden]).last_hidden_state
        torch.testing.assert_close(guess, expected, atol=2e-5, rtol=1e-4)


def settings(**changes) -> PretrainConfig:
    return dataclasses.replace(PretrainConfig(batch=8, predictor=PREDICTOR, target_layers=2), **changes)


@pytest.mark.slow
def test_training_learns_and_a_resumed_run_repeats_it(store: TrainingStore, tmp_path: Path):
    clips = Clips([store], "agentview", TINY)
    whole = Pretrainer(clips, tmp_path / "whole", settings(steps=6), TINY)
    (tmp_path / "whole").mkdir()
    whole.run(log_every=3, save_every=3)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6] and rows[1]["loss"] < rows[0]["loss"]
    first = Pretrainer(clips, tmp_path / "part", settings(steps=6), TINY)
    for _ in range(3):
        first.train_step()
    first.save()
    second = Pretrainer(clips, tmp_path / "part", settings(steps=6), TINY)
    assert second.resume() and second.step == 3
    second.run(log_every=100)
    for a, b in zip(whole.jepa.target.parameters(), second.jepa.target.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    with pytest.raises(UserError, match="other settings"):
        Pretrainer(clips, tmp_path / "part", settings(seed=1), TINY).resume()
    other = copy.copy(clips)
    other.stores = ["another"]
    with pytest.raises(UserError, match="settings or frames"):
        Pretrainer(other, tmp_path / "part", settings(steps=6), TINY).resume()
    written = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert written["wmjax_stores"] == [store.hash]
    assert written["wmjax_scenes"] == {"s": [0]}


def test_scenes_leave_libero_spatial_to_those_who_ask_for_it():
    assert "libero_spatial" not in SUITES


def test_the_shipped_encoder_says_which_scenes_it_has_seen():
    """Those that the command records by default, and none of the suite that policies are judged on."""
    config = json.loads((MINI_FOLDER / "config.json").read_text(encoding="utf-8"))
    tasks = sorted(task for suite in SUITES for task in choose_tasks([suite], TASKS_PER_SUITE))
    assert config["wmjax_scenes"] == {suite: [number for other, number in tasks if other == suite] for suite in SUITES}
    assert encoder_spec("mini", ("agentview",)).parameters["revision"] == config["wmjax_revision"]


def test_the_target_gets_no_gradient_and_follows_the_online_encoder(store: TrainingStore, tmp_path: Path):
    run = Pretrainer(Clips([store], "agentview", TINY), tmp_path, settings(steps=10), TINY)
    before = [p.clone() for p in run.jepa.target.parameters()]
    run.train_step()
    assert all(p.grad is None for p in run.jepa.target.parameters())
    moved = [not torch.equal(a, b) for a, b in zip(before, run.jepa.target.parameters(), strict=True)]
    assert all(moved)


def test_effective_rank_shows_collapse():
    spread = np.random.default_rng(0).normal(size=(2000, 16)).astype(np.float32)
    assert token_rank(spread) > 15
    assert token_rank(spread[:, :1] * np.ones((1, 16)) + 1e-4 * spread) < 1.1


def test_objects_together_weigh_by_how_far_they_are_moved():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(400, 4)), np.repeat(np.arange(20), 20)
    rows, train = np.arange(400), groups < 15
    known, hidden = x[:, :2] * 0.2, rng.normal(0, 0.01, (400, 2))
    found = object_scores(x, {"known": (rows, known), "hidden": (rows, hidden)}, train, groups)
    assert found["xy known"] > 0.99 and found["xy hidden"] < 0.05
    assert found["objects xy"] > 0.98 and 0.4 < found["objects xy (median)"] < 0.6


def test_probes_find_a_planted_signal_and_no_other(store: TrainingStore):
    table = probe([store], 0, [])
    assert table["pixels 8x8"]["eef xyz"] > 0.5
    assert table["pixels 8x8"]["gripper"] < 0.3  # noise in this store
    assert "pixels 8x8" in format_table(table) and "xy cup_1" in format_table(table)
    rows, _ = objects_of([store])["cup_1"]
    assert set(store.frame_episode[rows]) == set(range(1, len(store.episodes)))  # not where it has fallen
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(400, 20)), np.repeat(np.arange(20), 20)
    train = groups < 15
    found = ridge_r2(x, {"linear": x[:, :2] * 3 + 1, "noise": rng.normal(size=(400, 1))}, train, groups)
    assert found["linear"] > 0.999 and found["noise"] < 0.05


def test_without_data_it_takes_the_scenes_of_the_suites(store: TrainingStore, tmp_path: Path, monkeypatch):
    asked = []
    monkeypatch.setattr(pretrain, "cached_scenes", lambda suites: asked.append(suites) or [store])
    line = ["--steps", "1", "--batch", "4", "--suites", "libero_goal", "libero_spatial"]
    assert main([*line, "--out", str(tmp_path / "out")]) == 0 and asked == [["libero_goal", "libero_spatial"]]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["wmjax_stores"] == [store.hash]


def test_the_command_refuses_wrong_frames(store: TrainingStore, tmp_path: Path, capsys):
    assert main(["--data", str(tmp_path / "nothing"), "--out", str(tmp_path / "out"), "--steps", "1"]) == 2
    assert "error:" in capsys.readouterr().err
    with pytest.raises(UserError, match="sideview"):
        Clips([store], "sideview", TINY)


def test_spread_loss_vanishes_only_for_decorrelated_unit_features():
    rng = torch.Generator().manual_seed(0)
    white = torch.randn(512, 8, generator=rng)
    white = torch.linalg.qr(white - white.mean(0))[0] * 511**0.5
    assert spread_loss(white) < 1e-3
    assert spread_loss(white * 0.1) > 0.8
    repeated = white[:, :1].expand(-1, 8)
    torch.testing.assert_close(spread_loss(repeated), torch.tensor(8 * 7 / (25 * 8.0)), atol=1e-2, rtol=0)


@pytest.mark.long  # trains twice
def test_training_with_spread_spreads_the_tokens_and_without_it_packs_them(store: TrainingStore, tmp_path: Path):
    clips, seen = Clips([store], "agentview", TINY), {}
    for spread in (0.0, 1.0):
        run = Pretrainer(clips, tmp_path, settings(steps=12, spread=spread, warmup_steps=2), TINY)
        seen[spread] = [tokens_spread(run)]
        for _ in range(12):
            run.train_step()
        seen[spread].append(tokens_spread(run))
    assert seen[0.0][0] == seen[1.0][0], "the same start"
    assert seen[0.0][1] > seen[0.0][0] and seen[1.0][1] < 0.97 * seen[1.0][0], seen


@torch.no_grad()
def tokens_spread(run: Pretrainer) -> float:
    """The spread loss of the online encoder's tokens of fixed clips."""
    patches = patchify(preprocess(run.probe[:16], TINY), TINY)
    return float(spread_loss(run.jepa.encode(run.jepa.model.encoder, patches, None)[-1].flatten(0, 1)))
