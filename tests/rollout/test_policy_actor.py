"""Batching, carries and keys of a policy, without a simulator."""

import dataclasses

import numpy as np
import pytest

from tests.rollout.fake_policy import Continuing, FakePolicy
from tests.rollout.fakes import SPEC
from wmjax.core.errors import UserError
from wmjax.core.rng import named_key
from wmjax.policy.policy_actor import PolicyActor
from wmjax.rollout.actors import Decision
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import ACTION_SPEC


def decision(slot: int, index: int, number: int) -> Decision:
    random = np.random.default_rng([index, number])
    frames = random.integers(0, 255, (2, 2, 4, 4, 3), np.uint8)
    state = random.normal(size=8).astype(np.float32)
    return Decision(slot, EpisodeId("s", 0, "random", index), number, 8 * number, frames, state, "a task of mine")


def actor(slots: int, batch_size: int = 2) -> PolicyActor:
    made = PolicyActor(FakePolicy(batch_size), seed=1)
    made.prepare(slots, 8, ACTION_SPEC)
    return made


def alone(index: int, numbers: int) -> list[np.ndarray]:
    """The actions of one episode that has the policy to itself."""
    single = actor(1)
    return [single.act([decision(0, index, number)])[0].actions for number in range(numbers)]


def test_an_episode_is_untouched_by_its_neighbours_slot_and_batch_row():
    shared = actor(3)
    expected = {index: alone(index, 5) for index in (0, 1, 2)}
    slots, numbers = {0: 2, 1: 0, 2: 1}, {0: 0, 1: 0, 2: 0}
    for ready in ([0], [1, 2], [0, 1, 2], [2], [1], [2, 0], [1, 0], [2]):
        plans = shared.act([decision(slots[i], i, numbers[i]) for i in ready])
        for index, plan in zip(ready, plans, strict=True):
            assert np.array_equal(plan.actions, expected[index][numbers[index]]), (index, numbers[index])
            assert plan.info["decisions"] == numbers[index] + 1
            numbers[index] += 1


def test_a_new_episode_in_a_slot_starts_from_nothing():
    reused = actor(1)
    for number in range(3):
        reused.act([decision(0, 5, number)])
    assert np.array_equal(reused.act([decision(0, 6, 0)])[0].actions, alone(6, 1)[0])


def test_keys_depend_on_seed_episode_and_decision_only():
    one = actor(4)

    def key(slot, index, number):
        return one._key(decision(slot, index, number))

    assert key(0, 3, 2) == key(3, 3, 2) == named_key(1, "rollout/s/0/random/3", 2)
    assert len({str(key(0, index, number)) for index in range(4) for number in range(4)}) == 16


def test_a_horizon_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="open_loop_horizon is 12, the policy predicts 8"):
        PolicyActor(FakePolicy()).prepare(1, 12, ACTION_SPEC)
    with pytest.raises(UserError, match="takes 2 frames per decision"):
        PolicyActor(FakePolicy()).prepare(1, 4, ACTION_SPEC)


def test_actions_that_are_not_finite_are_refused():
    broken = actor(1)
    nan = dataclasses.replace(decision(0, 0, 0), state=np.full(SPEC.state_dim, np.nan, np.float32))
    with pytest.raises(UserError, match="not finite"):
        broken.act([nan])


def test_first_decisions_share_no_batch_with_those_that_know_pending_actions():
    policy = Continuing(2)
    made = PolicyActor(policy, seed=1)
    made.prepare(4, 4, ACTION_SPEC)
    assert [pending is None for pending in policy.calls] == [True, False]  # both are compiled before any episode
    policy.calls.clear()
    pending = np.random.default_rng(0).normal(size=(4, 4, 7)).astype(np.float32)
    ready = [decision(slot, slot, slot % 2) for slot in range(4)]
    ready = [dataclasses.replace(d, frames=d.frames[-1:], pending=pending[d.slot] if d.number else None) for d in ready]
    plans = made.act(ready)
    assert len(policy.calls) == 2 and policy.calls[0] is None
    np.testing.assert_array_equal(policy.calls[1], pending[[1, 3]])
    for slot, plan in enumerate(plans):
        assert plan.actions.shape == (5, 7)  # what is committed is left out
        known = np.concatenate([pending[slot, 3:], np.tile(pending[slot, -1:], (4, 1))])
        assert np.array_equal(plan.actions, known) == (slot % 2 == 1)
