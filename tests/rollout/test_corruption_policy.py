"""Corruptions of the world memory in closed loop: what the actions get, row by row, and what stays as it was."""

from pathlib import Path

import jax
import numpy as np
import pytest

from tests.data.synthetic import make_latents, make_store
from tests.rollout.fake_policy import FakePolicy
from tests.rollout.runs import parameters, plain_specs, tiny_experiment
from wmjax.core import specs
from wmjax.core.errors import UserError
from wmjax.data.observation import Observation
from wmjax.data.store import TrainingStore
from wmjax.policy.interventions import Donor, Donors
from wmjax.policy.policy import Policy
from wmjax.policy.policy_actor import PolicyActor
from wmjax.rollout.actors import Decision
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import ACTION_SPEC

STORE = TrainingStore(Path(__file__).parents[1] / "fixtures" / "two_episodes")
EPISODE = STORE.episode(0)


@pytest.fixture(scope="module")
def make():
    """``make(corruption)`` builds a policy of the same random parameters."""
    experiment = tiny_experiment("e2", "regression")
    params = parameters(experiment)
    plain = plain_specs(STORE.spec)

    def _make(corruption="none") -> Policy:
        return Policy(experiment, plain, params, batch_size=2, open_loop_horizon=8, corruption=corruption)

    return _make


def observation(policy: Policy, decision: int) -> Observation:
    """Both rows see the same."""
    frames = EPISODE.images[np.maximum(np.arange(2 * decision - 1, 2 * decision + 1), 0)]
    prompt = policy.prompt(STORE.episodes[0]["instruction"])
    both = jax.tree.map(lambda x: np.repeat(x, 2, 0), prompt)
    first = np.full(2, decision == 0)
    return Observation(np.stack([frames] * 2), EPISODE.state[[8 * decision] * 2], both, first)


def decide(policy: Policy, seeds: tuple[int, int] = (0, 1), donor: Donor | None = None):
    """Two decisions in a row; the last one's carry, chunk and numbers."""
    carry = policy.initial_carry()
    for decision in range(2):
        keys = jax.numpy.stack([jax.random.fold_in(jax.random.key(seed), decision) for seed in seeds])
        carry, chunk, info = policy(carry, observation(policy, decision), keys, donor=donor)
    return jax.tree.map(np.asarray, (carry, chunk, info))


@pytest.fixture(scope="module")
def ordinary(make):
    return decide(make())


def donor_of(policy: Policy, latents: np.ndarray) -> Donor:
    return Donor(latents, np.zeros((2, 8), np.float32), observation(policy, 0).prompt)


def test_closed_and_zero_replace_the_memory_and_not_the_prediction(make, ordinary):
    closed, zero = decide(make("closed")), decide(make("zero"))
    for carry, chunk, info in (closed, zero):
        assert np.abs(chunk - ordinary[1]).max() > 1e-3
        np.testing.assert_allclose(carry.prediction, ordinary[0].prediction, atol=1e-5)
        np.testing.assert_allclose(info["imagined"], ordinary[2]["imagined"], atol=1e-5)
    assert np.abs(closed[1] - zero[1]).max() > 1e-3
    assert (closed[2]["memory/ratio"] == 0.0).all() and (zero[2]["memory/ratio"] > 0.0).all()


def test_noise_depends_on_the_decision_and_not_on_the_row(make, ordinary):
    policy = make("noise")
    chunk, other = decide(policy, (0, 1))[1], decide(policy, (1, 0))[1]
    np.testing.assert_array_equal(chunk, other[::-1])
    assert min(np.abs(chunk[0] - chunk[1]).max(), np.abs(chunk - ordinary[1]).max()) > 1e-3


def test_shuffled_acts_only_on_the_donors_latents(make, ordinary):
    """With its own history for a donor's it is the ordinary policy; each row has its own donor."""
    policy, own = make("shuffled"), ordinary[0].latents
    np.testing.assert_allclose(decide(policy, donor=donor_of(policy, own))[1], ordinary[1], atol=1e-5)
    mixed = decide(policy, donor=donor_of(policy, np.stack([own[0], own[1] + 1.0])))
    np.testing.assert_allclose(mixed[1][0], ordinary[1][0], atol=1e-5)
    assert np.abs(mixed[1][1] - ordinary[1][1]).max() > 1e-3
    np.testing.assert_allclose(mixed[0].prediction, ordinary[0].prediction, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"corruption is 'shuffled'; donors belong to \('shuffled', 'shuffled_in_task'"
    ):
        decide(policy)
    plain, in_task = (decide(p, donor=donor_of(policy, own + 1.0))[1] for p in (policy, make("shuffled_in_task")))
    np.testing.assert_array_equal(in_task, plain)


def test_a_policy_without_a_memory_cannot_be_corrupted():
    plain = {"observation": specs.to_dict(STORE.spec), "encoder": None, "action": plain_specs(STORE.spec)["action"]}
    with pytest.raises(UserError, match=r"corruption is 'closed', but the policy acts without a world memory"):
        Policy(tiny_experiment("e0", "regression"), plain, {}, batch_size=1, open_loop_horizon=8, corruption="closed")


@pytest.fixture(scope="module")
def donors(tmp_path_factory: pytest.TempPathFactory) -> Donors:
    store = make_store(tmp_path_factory.mktemp("store"))
    table = {"task": np.arange(len(store.tasks))[:, None]}
    return Donors(store, make_latents(tmp_path_factory.mktemp("latents"), store, dim=8), 3, table)


def test_a_donor_shows_its_past_at_the_same_step_and_stays_at_its_end(donors: Donors):
    """By the synthetic data's own marks: state[0] is the episode, state[1] the control step."""
    store = donors.store
    found = donors.at(np.array([3, 3, 5]), np.array([0, 21, 10_000]))
    np.testing.assert_array_equal(found.state[:2, :2], [[3, 0], [3, 20]])
    entry, raw = store.episodes[5], donors.latents.latents[0]
    assert found.state[2, 0] == 5 and found.state[2, 1] == 4 * (entry["num_frames"] - 1)
    assert found.prompt["task"][:, 0].tolist() == [1, 1, 1]  # odd episodes are of the second task
    start = store.episodes[3]["frame_start"]
    np.testing.assert_array_equal(found.latents[0], raw[[start] * 3])
    np.testing.assert_array_equal(found.latents[1], raw[start + np.array([3, 4, 5])])
    chosen = {donors.choose(np.random.default_rng(seed), "shuffled", "libero_goal", 1, 3) for seed in range(200)}
    assert chosen == set(range(len(store.episodes))) - {3}
    chosen = {
        donors.choose(np.random.default_rng(seed), "shuffled_in_task", "libero_spatial", 1, 3) for seed in range(200)
    }
    assert chosen == {1, 5}  # the other odd ones
    with pytest.raises(UserError, match=r"has no other episode of libero_goal task 1; evaluate tasks"):
        donors.choose(np.random.default_rng(0), "shuffled_in_task", "libero_goal", 1)


class Shuffled(FakePolicy):
    """Remembers the donors that it is given."""

    def __init__(self, corruption="shuffled"):
        super().__init__()
        self.corruption = corruption

    def __call__(self, carry, observation, keys, future=None, donor=None):
        self.seen = donor
        return super().__call__(carry, observation, keys, future)


def test_an_episodes_donor_depends_on_the_episode_alone(donors: Donors):
    def decision(slot: int, index: int, number: int) -> Decision:
        frames = np.zeros((2, 2, 4, 4, 3), np.uint8)
        episode = EpisodeId("libero_spatial", 0, "random", index)
        return Decision(slot, episode, number, 8 * number, frames, np.zeros(8, np.float32), "a task of mine")

    def shown(seed: int, *decisions: Decision, corruption: str = "shuffled") -> np.ndarray:
        policy = Shuffled(corruption)
        actor = PolicyActor(policy, seed, donors)
        actor.prepare(3, 8, ACTION_SPEC)
        actor.act(decisions)
        return policy.seen.state[:, :2]

    both = shown(0, decision(0, 4, 1), decision(1, 9, 2))
    np.testing.assert_array_equal(both[:, 1], [8, 16])
    np.testing.assert_array_equal(shown(7, decision(2, 9, 2), decision(0, 4, 1)), both[::-1])
    assert len({float(shown(0, decision(0, index, 0))[0, 0]) for index in range(12)}) > 2
    of_task = {float(shown(0, decision(0, i, 0), corruption="shuffled_in_task")[0, 0]) for i in range(24)}
    assert of_task == {0.0, 2.0, 4.0}
    with pytest.raises(UserError, match="corruption is 'shuffled', which needs the demonstrations of the run"):
        PolicyActor(Shuffled())
