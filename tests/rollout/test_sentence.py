"""The instruction that a policy is given, and the goals that it reached."""

import dataclasses
import json

import numpy as np
import pytest

from tests.rollout.fakes import SPEC, FakeEnv
from tests.rollout.test_results import record
from wmjax.analysis.goal_table import count_goals
from wmjax.analysis.summary import summarize
from wmjax.core.errors import UserError
from wmjax.reporting.sections import tasks as tasks_section
from wmjax.rollout.actors import Noop, Plan
from wmjax.rollout.protocol import load_protocol
from wmjax.rollout.results import require_same_header
from wmjax.sim.episode import EpisodeId
from wmjax.sim.sentence import NEUTRAL, choose_instruction

ENV = "tests.rollout.test_sentence:GoalsEnv"


class GoalsEnv(FakeEnv):
    """Goal 1 is on the left, goal 2 on the right; goal 0 holds until the point is far on the right."""

    def sentences(self) -> list[str]:
        return [f"do the task number {task}" for task in range(5)]

    def goals_held(self) -> tuple[int, ...]:
        held = {0: self.position < 5, 1: self.position < -1, 2: self.position > 3}
        return tuple(task for task, holds in held.items() if holds)


class Listener:
    """Goes left for a sentence with an odd number, right for an even one, and nowhere for any other."""

    name, observation_spec, needs_frames, inside, future_frames, corruption = "listener", SPEC, False, False, 0, "none"
    realtime, pending_steps = "none", 0

    def prepare(self, slots, horizon, action_spec) -> None:
        self.horizon = horizon

    def settled_state(self, episode) -> None:
        return None

    def act(self, decisions) -> list[Plan]:
        actions = np.zeros((len(decisions), self.horizon, 7), np.float32)
        for row, decision in enumerate(decisions):
            last = decision.instruction[-1]
            actions[row, :, 0] = 0.3 * (1 if int(last) % 2 == 0 else -1) if last.isdigit() else 0
        return [Plan(rows) for rows in actions]


def evaluated(run, sentence: str):
    return run(Listener(), sentence, env=ENV, tasks=(1, 2), episodes_per_task=3, sentence=sentence)


def test_a_policy_is_given_the_sentence_of_its_task_and_reached_goals_are_recorded(run, tmp_path):
    for found in evaluated(run, "own").values():
        assert (found.given_instruction, found.given_task) == (found.instruction, found.task_id)
        assert found.reached == (found.task_id,)  # goal 0 held at the start
        assert found.success is (found.task_id == 2)
    summary = json.loads((tmp_path / "own" / "summary.json").read_text())
    assert [(row["given_task"], row["reached"]) for row in summary["goals"]] == [(1, {"1": 3}), (2, {"2": 3})]
    assert "Goals reached" in (tmp_path / "own" / "report.html").read_text()


def test_a_neutral_sentence_names_no_task(run):
    for found in evaluated(run, "neutral").values():
        assert (found.given_instruction, found.given_task, found.reached) == (NEUTRAL, None, ())
        assert found.instruction == f"do the task number {found.task_id}"


def test_a_wrong_sentence_is_drawn_by_the_episodes_identity(run):
    records = evaluated(run, "other")
    for found in records.values():
        assert found.given_instruction == f"do the task number {found.given_task}" and found.given_task != found.task_id
        assert found.reached == ((1,) if found.given_task % 2 else (2,))
    assert len({found.given_task for found in records.values()}) > 1
    again = run(Listener(), "again", workers=1, env=ENV, tasks=(2,), episodes_per_task=3, sentence="other")
    assert {key: found.given_instruction for key, found in again.items()}.items() <= {
        k: r.given_instruction for k, r in records.items()
    }.items()


def test_every_other_task_is_drawn_and_never_the_same_sentence():
    env = GoalsEnv("libero_spatial", 1, SPEC)
    drawn = [choose_instruction(env, EpisodeId("libero_spatial", 1, "random", i), "other").task_id for i in range(200)]
    assert set(drawn) == {0, 2, 3, 4} and min(map(drawn.count, set(drawn))) > 30
    env.sentences = lambda: [env.instruction] * 3
    with pytest.raises(UserError, match="all tasks of libero_spatial have the same"):
        choose_instruction(env, EpisodeId("libero_spatial", 1, "random", 0), "other")


def test_another_tasks_sentence_needs_an_environment_with_sentences():
    env = FakeEnv("libero_spatial", 1, SPEC)
    assert choose_instruction(env, EpisodeId("s", 1, "random", 0), "neutral") == (NEUTRAL, None)
    with pytest.raises(UserError, match=r"FakeEnv has no method sentences\(\) .*; set it to 'own' or 'neutral'"):
        choose_instruction(env, EpisodeId("s", 1, "random", 0), "other")


def test_an_actor_that_reads_no_sentence_is_refused(run):
    with pytest.raises(UserError, match="sentence is 'neutral', the noop reads none; set it to 'own'"):
        run(Noop(SPEC), sentence="neutral")


@pytest.mark.parametrize("suite", ["goal", "spatial"])
def test_the_protocols_differ_from_development_in_the_sentence_only(suite):
    for kind, sentence in (("deaf", "neutral"), ("wrong_sentence", "other")):
        name = f"{suite}_{kind}"
        assert load_protocol(name) == dataclasses.replace(load_protocol(f"{suite}_dev"), name=name, sentence=sentence)
    assert load_protocol(f"{suite}_dev").sentence == "own"


def test_an_earlier_evaluation_counts_as_one_with_its_own_sentence(tmp_path):
    old = {"protocol": {"name": "p"}}
    require_same_header(old, {"protocol": {"name": "p", "sentence": "own"}}, tmp_path)
    with pytest.raises(UserError, match=r"protocol.sentence = 'own', this one has 'other'"):
        require_same_header(old, {"protocol": {"name": "p", "sentence": "other"}}, tmp_path)


def test_the_table_counts_the_first_goal_of_finished_episodes():
    def episode(outcome: str, task: int | None, reached: tuple[int, ...] | None):
        return dataclasses.replace(
            record(0, 0, outcome), given_instruction=f"task {task}", given_task=task, reached=reached
        )

    records = [
        episode("success", 10, (10, 2)), episode("failure", 10, (2, 10)), episode("failure", 10, ()),
        episode("failure", 2, (10,)), episode("crash", 2, ()), episode("failure", 2, None),
        episode("failure", None, (2,)),
    ]  # fmt: skip
    assert [line.split() for line in count_goals(records).table().splitlines()[1:]] == [
        ["given", "2", "10", "none", "instruction"],
        ["-----", "-", "--", "----", "-----------"],
        ["-", "1", ".", ".", "task", "None"],
        ["2", ".", "1", ".", "task", "2"],
        ["10", "1", "1", "1", "task", "10"],
    ]
    assert "goal reached first" in summarize(records).table() and "Goals reached" in str(
        tasks_section(summarize(records))
    )
    alone = summarize([record(0, 0, "success")])
    assert alone.goals is None and "goals" not in alone.as_dict() and "Goals" not in str(tasks_section(alone))
