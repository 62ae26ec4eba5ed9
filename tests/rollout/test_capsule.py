"""Evidence: what is committed can be replayed, and no byte of it can change unnoticed."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from tests.rollout.fakes import ENV, PROTOCOL, SPEC
from wmjax.core.errors import UserError
from wmjax.pipeline.evaluate import evaluate
from wmjax.pipeline.verify import (
    DOCUMENTS,
    add_evidence,
    evidence_folder,
    read_capsules,
    replay,
    rewrite,
    verify,
)
from wmjax.reporting.evidence_blocks import table
from wmjax.rollout.actors import Random
from wmjax.rollout.capsule import Capsule, Outcome, chosen, outcomes_of, read_capsule
from wmjax.rollout.evaluation_shards import read_actions
from wmjax.rollout.results import read_header, read_records
from wmjax.rollout.settings import EvaluateSettings

EPISODES = 12
NAME = "random-fake"


class Right(Random):
    """Random actions that move right on average, so that some episodes succeed."""

    def chunk(self, decision):
        return np.abs(super().chunk(decision)) - np.float32(0.3)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """A finished evaluation of two tasks, in the fake simulator, with a drift."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    protocol = dataclasses.replace(
        PROTOCOL, tasks=(0, 2), episodes_per_task=EPISODES, max_steps=28, target_velocity=0.02, execution_delay=4
    )
    evaluate(Right(SPEC), protocol, out, EvaluateSettings(videos=0))
    assert 2 < sum(record.success for record in read_records(out)) < 2 * EPISODES - 2
    return out


@pytest.fixture(scope="module")
def root(evaluation, tmp_path_factory):
    root = tmp_path_factory.mktemp("evidence")
    add_evidence(root, evaluation, NAME)
    return root


def test_an_evaluation_keeps_what_was_executed(evaluation):
    for record in read_records(evaluation):
        actions = read_actions(evaluation, record.key)
        assert actions.shape == (record.steps, 7) and actions.dtype == np.float32
        np.testing.assert_array_equal(actions[:4, :6], 0.0)  # the delay, in which it holds still
    with pytest.raises(UserError, match="the actions of libero_spatial/7/random/0 are missing"):
        read_actions(evaluation, "libero_spatial/7/random/0")


def test_what_is_recorded_is_read_back_and_replays(evaluation, root):
    capsule = read_capsule(root / NAME)
    records = {record.key: record for record in read_records(evaluation)}
    assert {o.key: (o.success, o.steps) for o in capsule.outcomes} == {
        key: (record.success, record.steps) for key, record in records.items()
    }
    assert capsule.header == read_header(evaluation)
    assert len(capsule.replays) == 20 and {one.outcome.key for one in capsule.replays} == set(chosen(list(records)))
    assert verify(root, []) == []


def test_a_replay_that_ends_otherwise_is_found(root):
    capsule = read_capsule(root / NAME)
    solved = next(one for one in capsule.replays if one.outcome.success)
    failed = next(one for one in capsule.replays if not one.outcome.success)
    slower = dataclasses.replace(solved, actions=np.where(np.arange(7) == 0, 0.9 * solved.actions, solved.actions))
    moved = dataclasses.replace(failed, final=failed.final + 1e-4)
    early = dataclasses.replace(solved, outcome=dataclasses.replace(solved.outcome, success=False))
    displaced = dataclasses.replace(failed, settled=failed.settled + 0.01)
    messages = (
        "no success|has success at step|was recorded with",
        "differs by 0.0001",
        "no success",
        "begins in a state",
    )
    for wrong, message in zip((slower, moved, early, displaced), messages, strict=True):
        (line,) = replay(capsule.protocol, SPEC, [wrong])
        assert wrong.outcome.key in line
        assert any(part in line for part in message.split("|")), line
    nearly = dataclasses.replace(failed, final=failed.final + 1e-8)  # another processor
    assert replay(capsule.protocol, SPEC, [nearly]) == []


def test_every_flipped_bit_is_found(root, tmp_path):
    random = np.random.default_rng(0)
    for name in ("capsule.json", "replays.npz"):
        whole = (root / NAME / name).read_bytes()
        for place in random.choice(len(whole), 40, replace=False):
            copy = shutil.copytree(root / NAME, tmp_path / f"{name}-{place}" / NAME)
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(random.integers(8))
            (copy / name).write_bytes(damaged)
            try:
                found = read_capsule(copy)
            except UserError as error:
                assert name in str(error) or "capsule" in str(error)
                assert "\n" not in str(error)
            else:  # white space of JSON, or the case of an escaped character
                assert json.loads(damaged) == json.loads(whole) and found.outcomes


def test_evidence_is_neither_replaced_nor_made_of_half_an_evaluation(evaluation, root, tmp_path):
    with pytest.raises(UserError, match="evidence is not replaced"):
        add_evidence(root, evaluation, NAME)
    half = shutil.copytree(evaluation, tmp_path / "half")
    lines = (half / "episodes.jsonl").read_text().splitlines(keepends=True)
    (half / "episodes.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="is missing; repeat the evaluation's command"):
        add_evidence(tmp_path / "evidence", half, "half")
    assert not (tmp_path / "evidence").exists()


def test_actions_that_do_not_reproduce_the_outcome_are_refused(evaluation, tmp_path):
    other = shutil.copytree(evaluation, tmp_path / "other")
    for path in (other / "actions").iterdir():
        np.save(path, 0 * np.load(path))
    with pytest.raises(UserError, match=r"was recorded with .*evaluate again"):
        add_evidence(tmp_path / "evidence", other, "other")


def test_an_evaluation_without_actions_is_refused(evaluation, tmp_path):
    other = shutil.copytree(evaluation, tmp_path / "other")
    shutil.rmtree(other / "actions")
    with pytest.raises(UserError, match=r"the actions of .* are missing; evaluate again"):
        add_evidence(tmp_path / "evidence", other, "other")
    assert not (tmp_path / "evidence").exists()


def _capsule(name: str, solved: tuple[int, int], **experiment: object) -> Capsule:
    outcomes = [
        Outcome(f"libero_spatial/{task}/random/{index}", index < count, 100)
        for task, count in zip((0, 2), solved, strict=True)
        for index in range(20)
    ]
    protocol = json.loads(json.dumps(dataclasses.asdict(PROTOCOL))) | {"env": ENV, "tasks": [0, 2]}
    texts = {task: f"put the bowl {where} on the plate" for task, where in ((0, "at the left"), (2, "here"))}
    return Capsule(name, {}, {"protocol": protocol, "experiment": experiment}, texts, tuple(outcomes))


def test_a_table_is_what_the_capsules_say():
    assert table([_capsule("a", (20, 19), seed=0), _capsule("b", (10, 20), seed=1)]) == (
        f"| task of libero_spatial | seed 0, `{PROTOCOL.name}` | seed 1, `{PROTOCOL.name}` |\n"
        "|---|---|---|\n"
        "| 0 at the left | 20/20 | 10/20 |\n"
        "| 2 here | 19/20 | 20/20 |\n"
        "| **all** (Wilson 95 %) | **39/40 = 97.5 %** (87-100 %) | **30/40 = 75.0 %** (60-86 %) |\n"
    )


def test_a_block_that_says_something_else_is_found_and_written_anew(root, tmp_path):
    path = tmp_path / "results.md"
    path.write_text(f"Before.\n\n<!-- evidence: {NAME} -->\n| 99 % |\n<!-- end of evidence -->\n\nBehind.\n")
    (line,) = verify(root, [path], replays=0)
    assert "results.md: the block 'random-fake' is not what the evidence says" in line
    assert rewrite(root, [path]) == [path] and verify(root, [path], replays=0) == []
    text = path.read_text()
    assert table(read_capsules(root)) in text and text.startswith("Before.\n\n<!--") and text.endswith("\nBehind.\n")
    assert rewrite(root, [path]) == []
    path.write_text(text.replace(NAME, "random-flake"))
    with pytest.raises(UserError, match=r"unknown capsule in .* 'random-flake'; did you mean random-fake"):
        verify(root, [path], replays=0)
    path.write_text(text.replace("<!-- end of evidence -->", ""))
    with pytest.raises(UserError, match="is not closed"):
        verify(root, [path], replays=0)


def test_an_episode_that_crashed_has_no_outcome(evaluation):
    records = read_records(evaluation)
    protocol = dataclasses.replace(PROTOCOL, tasks=(0, 2), episodes_per_task=EPISODES)
    crashed = [dataclasses.replace(records[0], outcome="crash", success=False), *records[1:]]
    with pytest.raises(UserError, match="is a crash; repeat"):
        outcomes_of(crashed, protocol)


@pytest.mark.sim
def test_the_published_tables_are_those_of_the_committed_evidence():
    """And one episode of each evaluation is replayed; ``python -m wmjax.verify`` replays all that are recorded."""
    root = evidence_folder()
    documents = [root.parents[1] / name for name in DOCUMENTS]
    assert sum("<!-- evidence:" in path.read_text() for path in documents) == len(documents)
    assert verify(root, documents, replays=1) == []
