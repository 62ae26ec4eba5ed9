"""The evaluation path in the real simulator, without a model: a policy gets the observations of the training data."""

from pathlib import Path

import numpy as np
import pytest

from wmjax.core.specs import ActionSpec
from wmjax.data.statistics import action_spec
from wmjax.data.store import TrainingStore
from wmjax.pipeline.evaluate import evaluate
from wmjax.rollout.actors import Replay
from wmjax.rollout.protocol import load_protocol
from wmjax.rollout.results import read_records
from wmjax.rollout.settings import EvaluateSettings
from wmjax.sim.libero import ACTION_SPEC

pytestmark = pytest.mark.sim


class Watching(Replay):
    """A replay that keeps what a policy would have seen."""

    def __init__(self, store: TrainingStore, spec: ActionSpec) -> None:
        super().__init__(store, spec, watch=True)
        self.seen = []

    def chunk(self, decision):
        self.seen.append(decision)
        return super().chunk(decision)


def replay(actor: Replay, store: TrainingStore, folder: Path) -> None:
    """Runs all recordings; they succeed from the recorded start at the recorded step."""
    protocol = actor.as_recorded(load_protocol("spatial_dev", open_loop_horizon=8), actor.episodes)
    evaluate(actor, protocol, folder, EvaluateSettings(videos=0), episodes=actor.episodes)
    records = {record.key: record for record in read_records(folder)}
    assert len(records) == len(store.episodes)
    for entry in store.episodes:
        record = records[entry["episode"]]
        expected = ("success", entry["settled_hash"], entry["success_step"])
        assert (record.outcome, record.settled_hash, record.steps) == expected


def test_a_policy_sees_the_recorded_observations_bit_for_bit(recorded, tmp_path):
    store = recorded
    actor = Watching(store, ACTION_SPEC)
    replay(actor, store, tmp_path)
    for record in read_records(tmp_path):
        assert record.info == {"replay/pixels": 0.0, "replay/state": 0.0, "replay/instruction": 0.0}
    stride, checked = store.spec.frame_stride, 0
    for decision in actor.seen:
        entry = next(e for e in store.episodes if e["episode"] == decision.episode.key)
        episode = store.episode(entry["index"])
        newest = decision.step // stride
        expected = episode.images[[max(newest - 1, 0), newest]]
        assert np.array_equal(decision.frames, expected), (decision.episode.key, decision.step)
        assert np.array_equal(decision.state, episode.state[decision.step])
        assert decision.instruction == entry["instruction"]
        checked += 1
    assert checked >= sum(entry["success_step"] // 8 for entry in store.episodes)


def test_replay_succeeds_through_a_policys_action_transform(recorded, tmp_path):
    spec = action_spec(recorded, np.arange(len(recorded.episodes)), 8, "quantile")
    replay(Replay(recorded, spec), recorded, tmp_path)
