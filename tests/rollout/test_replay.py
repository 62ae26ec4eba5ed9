"""Replay: recorded actions through the policy's action transform, from the recorded start."""

import dataclasses

import numpy as np
import pytest

from tests.rollout.fakes import SPEC
from wmjax.core.errors import UserError
from wmjax.data.episode import EpisodeData
from wmjax.data.statistics import action_spec
from wmjax.data.store import finalize, write_part
from wmjax.rollout.actors import Decision, Replay
from wmjax.rollout.protocol import load_protocol
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import ACTION_SPEC


def recorded(index: int, push: float, settled: float) -> EpisodeData:
    """A recording of the fake: 30 steps to the right from a start that only the recording knows."""
    steps = 30
    executed = np.zeros((steps, 7), np.float32)
    executed[:, 0], executed[:, 1] = push, np.linspace(-1, 1, steps)
    episode = EpisodeId("libero_spatial", 2, "random", index)
    meta = {"suite": episode.suite, "task_id": 2, "instruction": "x", "episode": episode.key, "settled_hash": "h"}
    frames = -(-steps // SPEC.frame_stride)
    return EpisodeData(
        images=np.zeros((frames, 2, 4, 4, 3), np.uint8),
        frame_step=np.arange(0, steps, SPEC.frame_stride, dtype=np.int32),
        state=np.random.default_rng(index).normal(size=(steps, 8)).astype(np.float32),
        action=np.clip(executed + 0.1, -1, 1),
        executed=executed,
        settled_state=np.array([settled]),
        meta=meta,
    )


@pytest.fixture
def actor(tmp_path) -> Replay:
    folder = tmp_path / "store"
    for index, push, settled in ((1_000_000, 0.5, -4.0), (1_000_001, 0.1, 0.0)):
        write_part(folder, str(index), recorded(index, push, settled), SPEC)
    store = finalize(folder, SPEC, ACTION_SPEC)
    return Replay(store, action_spec(store, np.arange(2), 8, "quantile"))


def test_recorded_actions_run_from_the_recorded_start(actor, run):
    episodes = actor.choose("libero_spatial", (2,), 5)
    longest = actor.as_recorded(load_protocol("spatial_dev"), episodes).max_steps
    records = run(actor, episodes=episodes, max_steps=longest)
    solved, failed = (records[episode.key] for episode in episodes)
    assert (solved.outcome, solved.steps) == ("success", 21)  # 10 / 0.5 steps reach the goal, one more passes it
    assert (failed.outcome, failed.steps) == ("failure", 30)


def test_actions_survive_the_transform_and_the_end_is_padded_with_holding_still(actor):
    actor.prepare(1, 8, ACTION_SPEC)
    (episode, _) = actor.episodes
    decision = Decision(0, episode, 3, 24, np.zeros((0, 2, 4, 4, 3), np.uint8), np.zeros(8, np.float32), "x")
    (plan,) = actor.act([decision])
    expected = np.c_[np.full(6, 0.5), np.linspace(-1, 1, 30)[24:]].astype(np.float32)
    np.testing.assert_array_equal(plan.actions[:6, :2], expected)
    np.testing.assert_array_equal(plan.actions[6:], np.tile(ACTION_SPEC.hold, (2, 1)))


def test_a_transform_that_changes_actions_by_more_than_a_rounding_shows(actor):
    spec = dataclasses.replace(actor._spec, high=(0.4999, *[1.0] * 6))
    changed = Replay(actor._store, spec)
    changed.prepare(1, 8, ACTION_SPEC)
    (episode, _) = changed.episodes
    decision = Decision(0, episode, 3, 24, np.zeros((0, 2, 4, 4, 3), np.uint8), np.zeros(8, np.float32), "x")
    (plan,) = changed.act([decision])
    np.testing.assert_array_equal(plan.actions[:6, 0], np.full(6, 0.4999, np.float32))


def test_a_replay_drifts_as_the_recording_did(tmp_path):
    for index, speed in ((1_000_000, 0.04), (1_000_001, 0.04), (1_000_002, 0.0)):
        data = recorded(index, 0.5, 0.0)
        data.meta.update({"target_velocity": speed} if speed else {})
        write_part(tmp_path, str(index), data, SPEC)
    store = finalize(tmp_path, SPEC, ACTION_SPEC)
    actor = Replay(store, action_spec(store, np.arange(3), 8, "quantile"))
    moving, _, still = actor.episodes
    protocol = load_protocol("spatial_dev")
    for episode, speed in ((moving, 0.04), (still, 0.0)):
        found = actor.as_recorded(protocol, [episode])
        assert (found.target_velocity, found.max_steps) == (speed, max(e["length"] for e in store.episodes))
    with pytest.raises(UserError, match=r"the targets of its episodes drifted at 0, 0\.04 m/s"):
        actor.as_recorded(protocol, actor.episodes)


def test_episodes_that_were_not_recorded_are_refused(actor):
    with pytest.raises(UserError, match="no episodes of libero_goal"):
        actor.choose("libero_goal", (2,), 1)
    with pytest.raises(UserError, match="is not in the store"):
        actor.settled_state(EpisodeId("libero_spatial", 2, "random", 7))


def test_a_watching_replay_says_how_far_it_sees_from_what_was_recorded(actor):
    store = actor._store
    watching = Replay(store, actor._spec, watch=True)
    watching.prepare(1, 8, ACTION_SPEC)
    episode, first = watching.episodes[1], store.episodes[1]
    frames = store.frames[first["frame_start"] + np.array([1, 2])]
    state = store.state[first["step_start"] + 8]

    def seen(**changes) -> dict:
        (plan,) = watching.act([dataclasses.replace(Decision(0, episode, 1, 8, frames, state, "x"), **changes)])
        return dict(plan.info)

    assert seen() == {"replay/pixels": 0.0, "replay/state": 0.0, "replay/instruction": 0.0}
    assert seen(frames=frames + np.uint8(3))["replay/pixels"] == 3.0
    assert seen(state=state + np.float32(0.5))["replay/state"] == pytest.approx(0.5)
    assert seen(instruction="y")["replay/instruction"] == 1.0
    assert seen(step=32) == {}  # the recording has ended


def test_a_delayed_replay_is_refused(actor, run):
    with pytest.raises(UserError, match="execution_delay is 3, which would execute a replay's actions late"):
        run(actor, episodes=actor.choose("libero_spatial", (2,), 5), execution_delay=3)
