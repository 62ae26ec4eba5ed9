"""The evaluation path in the real simulator, without a model: what training saw is what a policy will see."""

from pathlib import Path

import numpy as np
import pytest

from wmjax.data.statistics import action_spec
from wmjax.data.store import TrainingStore
from wmjax.rollout.actors import Replay
from wmjax.rollout.evaluation import evaluate
from wmjax.rollout.protocol import load_protocol
from wmjax.rollout.results import read_records
from wmjax.specs import ActionSpec

FIXTURE = Path("/work/cache/rollout_try/store")

pytestmark = [
    pytest.mark.sim,
    pytest.mark.skipif(not FIXTURE.is_dir(), reason="the two-episode fixture is not recorded yet"),
]


class Watching(Replay):
    """A replay that looks at what a policy would have seen."""

    needs_frames = True

    def __init__(self, store: TrainingStore, spec: ActionSpec) -> None:
        super().__init__(store, spec)
        self.seen = []

    def chunk(self, decision):
        self.seen.append(decision)
        return super().chunk(decision)


def replay(actor: Replay, folder: Path) -> None:
    """Runs all recordings; they succeed from the recorded start at the recorded step."""
    protocol = load_protocol("spatial_dev", max_steps=actor.longest)
    evaluate(actor, protocol, folder, workers=2, episodes=actor.episodes)
    records = {record.key: record for record in read_records(folder)}
    store = TrainingStore(FIXTURE)
    assert len(records) == len(store.episodes)
    for entry in store.episodes:
        record = records[entry["episode"]]
        expected = ("success", entry["settled_hash"], entry["success_step"])
        assert (record.outcome, record.settled_hash, record.steps) == expected


def test_a_policy_sees_the_recorded_observations_bit_for_bit(tmp_path):
    store = TrainingStore(FIXTURE)
    actor = Watching(store, ActionSpec())
    replay(actor, tmp_path)
    stride, checked = store.spec.frame_stride, 0
    for decision in actor.seen:
        entry = next(e for e in store.episodes if e["episode"] == decision.episode.key)
        recorded = store.episode(entry["index"])
        newest = decision.step // stride
        expected = recorded.images[[max(newest - 1, 0), newest]]
        assert np.array_equal(decision.frames, expected), (decision.episode.key, decision.step)
        assert np.array_equal(decision.state, recorded.state[decision.step])
        assert decision.instruction == entry["instruction"]
        checked += 1
    assert checked >= sum(entry["success_step"] // 8 for entry in store.episodes)


def test_replay_succeeds_through_a_policys_action_transform(tmp_path):
    store = TrainingStore(FIXTURE)
    replay(Replay(store, action_spec(store, np.arange(len(store.episodes)), 8, "quantile")), tmp_path)
