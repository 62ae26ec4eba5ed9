"""DAgger in the simulator: the labels are the recorder's, and an episode continues as without them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tests.sim.conftest import SUITE, TASK
from wmjax.core.errors import UserError
from wmjax.data.store import TrainingStore
from wmjax.pipeline.record_policy import require_specs
from wmjax.policy.policy import load_policy
from wmjax.record import main
from wmjax.recording.aggregation import Aggregation, to_episode
from wmjax.recording.demonstration import DemonstrationConfig, demonstration_id
from wmjax.recording.expert import Expert
from wmjax.recording.labeller import Labeller
from wmjax.sim.env import LiberoEnv
from wmjax.sim.libero import OBSERVATION_SPEC

pytestmark = pytest.mark.sim
EPISODE = demonstration_id(SUITE, TASK, 3, 7, 0)
STEPS, LABELS = 10, 4


def follow(env: LiberoEnv, actions: np.ndarray | None, *, labelled: bool) -> tuple[list, list[np.ndarray]]:
    """Executes actions, or the expert's, and returns what was labelled and the states that came."""
    env.reset(EPISODE)
    labeller, expert = (Labeller(env, LABELS) if labelled else None), Expert(env)
    moments = [labeller.observe(None, None)] if labeller else []
    states = [env.sim_state()]
    for step in range(STEPS):
        action = expert.act().astype(np.float32) if actions is None else actions[step]
        env.step(action)
        states.append(env.sim_state())
        moments += [labeller.observe(action, None)] if labeller else []
    return moments, states


@pytest.fixture(scope="module")
def wrong() -> np.ndarray:
    actions = np.random.default_rng(0).uniform(-0.6, 0.6, (STEPS, 7)).astype(np.float32)
    actions[:, 6] = -1
    return actions


def test_labelling_does_not_change_an_episode(env: LiberoEnv, wrong: np.ndarray) -> None:
    labelled, plain = (follow(env, wrong, labelled=flag)[1] for flag in (True, False))
    assert all(np.array_equal(a, b) for a, b in zip(labelled, plain, strict=True))


def test_where_the_expert_acts_its_chunks_are_what_comes(env: LiberoEnv) -> None:
    moments, _ = follow(env, None, labelled=True)
    labels = np.stack([moment.label for moment in moments])
    executed = np.stack([moment.action for moment in moments[1:]])
    assert np.array_equal(labels[:-1], executed)
    for step in (0, 4):
        assert np.array_equal(moments[step].chunk, labels[step : step + LABELS])


def test_elsewhere_a_chunk_is_what_the_expert_does_from_there(env: LiberoEnv, wrong: np.ndarray) -> None:
    moments, states = follow(env, wrong, labelled=True)
    env.restore(states[8])
    expert, expected = Expert(env), []
    for _ in range(LABELS):
        expected.append(expert.act().astype(np.float32))
        env.step(expected[-1])
    assert np.array_equal(moments[8].chunk, np.stack(expected))
    assert not np.array_equal(moments[8].label, wrong[8])


def test_an_episode_becomes_part_of_a_store(env: LiberoEnv, wrong: np.ndarray, tmp_path: Path) -> None:
    moments, states = follow(env, wrong, labelled=True)
    data = to_episode(EPISODE, moments, success=False, meta={"policy": "abc", "outcome": "failure"})
    assert data.length == STEPS and data.frame_step.tolist() == [0, 4, 8]
    assert np.array_equal(data.executed, wrong) and np.array_equal(data.settled_state, states[0])
    aggregation = Aggregation(
        tmp_path / "store", env.spec, {"step": 1, "hash": "abc"}, DemonstrationConfig(label_steps=LABELS)
    )
    assert EPISODE in aggregation.missing(SUITE, [TASK], 5)
    aggregation.add(EPISODE, "failure", moments)
    aggregation.add(demonstration_id(SUITE, TASK, 4, 7, 0), "crash", [])
    assert EPISODE not in aggregation.missing(SUITE, [TASK], 5)
    assert len(aggregation.missing(SUITE, [TASK], 5)) == 4
    store = aggregation.finish()
    assert store.manifest["recording"] == {"policy": {"step": 1, "hash": "abc"}, "outcomes": {"failure": 1}}
    assert store.action_chunk is not None and store.action_chunk.shape == (3, LABELS, 7)
    assert store.injected is not None and not store.injected.any()
    with pytest.raises(UserError, match="holds episodes of another policy"):
        Aggregation(tmp_path / "store", env.spec, {"step": 2, "hash": "def"}, DemonstrationConfig(label_steps=LABELS))


def test_a_policy_of_other_specs_is_one_line() -> None:
    policy = load_policy("mini", open_loop_horizon=4)
    require_specs(policy, OBSERVATION_SPEC, 8)
    with pytest.raises(UserError, match=r"ObservationSpec\.image_size differs: 112 in the policy, 64"):
        require_specs(policy, dataclasses.replace(OBSERVATION_SPEC, image_size=64), 8)
    with pytest.raises(UserError, match="label-steps is 4, the policy predicts 8"):
        require_specs(policy, OBSERVATION_SPEC, 4)
    policy.action_spec = dataclasses.replace(policy.action_spec, definition="joint positions")
    with pytest.raises(UserError, match=r"ActionSpec\.definition is 'joint positions' for the policy"):
        require_specs(policy, OBSERVATION_SPEC, 8)


@pytest.mark.slow
def test_the_command_records_the_shipped_policy_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "store"
    arguments = ["--run", "mini", "--tasks", str(TASK), "--episodes", "1", "--workers", "1", "--out", str(out)]
    assert main(arguments) == 0
    store = TrainingStore(out)
    (entry,) = store.episodes
    assert entry["outcome"] in ("success", "failure") and entry["init_index"] == 1_700_000
    assert store.spec.image_size == 112 and store.action_chunk is not None and store.action_chunk.shape[1] == 8
    assert (store.action != store.executed).any()
    before = (out / "manifest.json").read_bytes()
    assert main(arguments) == 0 and (out / "manifest.json").read_bytes() == before
    assert json.loads(before)["recording"]["policy"]["step"] == 3000
    assert main([*arguments, "--image-size", "64"]) == 2
    assert "ObservationSpec.image_size differs" in capsys.readouterr().err
