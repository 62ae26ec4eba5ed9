"""A policy gets the observations of its training in a rollout, and each row decides independently."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rollout.runs import parameters
from tests.tiny import tiny_config
from wmjax.core import specs
from wmjax.core.errors import UserError
from wmjax.data.latents import LatentStore
from wmjax.data.observation import Observation
from wmjax.data.statistics import action_spec
from wmjax.data.store import TrainingStore
from wmjax.encoders.encode import LATENT_BOUNDS, encode_store
from wmjax.encoders.vjepa2.encoder import VJEPA2, VJEPA2Settings
from wmjax.encoders.vjepa2.files import MINI_FOLDER
from wmjax.experiment.config import Experiment, load
from wmjax.models.prompts import join_prompts
from wmjax.models.world.prophet import ProphetConfig
from wmjax.policy.carry import Carry
from wmjax.policy.interventions import Errors
from wmjax.policy.policy import Policy

STORE = TrainingStore(Path(__file__).parent / "fixtures" / "two_episodes")
AHEAD = 2
"""Frames between two decisions."""


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    encoder = VJEPA2(VJEPA2Settings(cameras=("agentview",)))
    store = encode_store(STORE, tmp_path_factory.mktemp("latents"), encoder, views=1)
    assert store is not None
    return store


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    small = dataclasses.replace(tiny_config(), prophet=ProphetConfig(width=24, heads=2, layers=1))
    return dataclasses.replace(load("e2_flow"), model=small)


@pytest.fixture(scope="module")
def artefacts(experiment: Experiment, latents: LatentStore) -> tuple[dict, dict]:
    """The specs and the parameters that a checkpoint would hold."""
    found = {
        "observation": STORE.spec,
        "encoder": latents.spec,
        "action": action_spec(STORE, np.arange(2), 8, "mean_std"),
    }
    return {name: specs.to_dict(spec) for name, spec in found.items()}, parameters(experiment)


def make_policy(experiment: Experiment, artefacts: tuple[dict, dict], **options: int) -> Policy:
    return Policy(experiment, *artefacts, **{"batch_size": 2, "open_loop_horizon": 8, **options})


@pytest.fixture(scope="module")
def policy(experiment: Experiment, artefacts: tuple[dict, dict]) -> Policy:
    return make_policy(experiment, artefacts)


def observation(policy: Policy, episodes: tuple[int, ...], decision: int) -> Observation:
    """What a rollout of recorded episodes shows at a decision: the frames due since the last one."""
    images, states = [], []
    for index in episodes:
        episode = STORE.episode(index)
        last = len(episode.images) - 1
        due = np.clip(np.arange(-AHEAD + 1, 1) + AHEAD * decision, 0, last)  # an ended episode shows its last frame
        images.append(episode.images[due])
        states.append(episode.state[episode.frame_step[due[-1]]])
    prompts = [policy.prompt(STORE.episodes[index]["instruction"]) for index in episodes]
    prompt = join_prompts(prompts)
    return Observation(np.stack(images), np.stack(states), prompt, np.full(len(episodes), decision == 0))


def rollout(policy: Policy, episodes: tuple[int, ...], decisions: int) -> list[tuple[Carry, np.ndarray, dict]]:
    carry, seen = policy.initial_carry(), []
    for decision in range(decisions):
        keys = jax.random.split(jax.random.key(decision), 2)[: len(episodes)]
        carry, chunk, info = policy(carry, observation(policy, episodes, decision), keys)
        kept = jax.tree.map(np.asarray, carry)  # the next call donates it
        seen.append((kept, np.asarray(chunk), {k: np.asarray(v) for k, v in info.items()}))
    return seen


TORCH = pytest.mark.torch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "resize"),
    [("jax", 112), pytest.param("torch", 112, marks=TORCH), pytest.param("torch", 128, marks=TORCH)],
)
def test_latents_of_a_rollout_are_the_stored_ones_from_first_frame_to_last(
    experiment: Experiment, artefacts: tuple[dict, dict], backend: str, resize: int, tmp_path: Path
) -> None:
    """Whichever framework stored them, and with an encoder that enlarges the pictures and crops them."""
    folder = Path(shutil.copytree(MINI_FOLDER, tmp_path / "encoder"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "resize": resize}))
    if backend == "torch":
        from encoders_export.vjepa import TorchEncoder as Encoder
    else:
        Encoder = VJEPA2
    encoder = Encoder(VJEPA2Settings(cameras=("agentview",), model=str(folder)))
    latents = encode_store(STORE, tmp_path / "latents", encoder, views=1)
    assert latents is not None and latents.backend == backend and latents.spec.parameters["resize"] == resize
    chosen = dataclasses.replace(experiment, encoder=dataclasses.replace(experiment.encoder, model=str(folder)))
    policy = make_policy(chosen, ({**artefacts[0], "encoder": specs.to_dict(latents.spec)}, artefacts[1]))
    stored, history = latents.latents[0].astype(np.float32), policy.experiment.model.prophet.history
    scale, seen = np.sqrt((stored**2).mean()), np.zeros(len(stored), bool)
    longest = max(entry["num_frames"] for entry in STORE.episodes)
    for decision, (carry, _, _) in enumerate(rollout(policy, (0, 1), longest // AHEAD + 1)):
        for row, entry in enumerate(STORE.episodes):
            past = np.maximum(np.arange(AHEAD * decision - history + 1, AHEAD * decision + 1), 0)
            there = past < entry["num_frames"]
            frames = entry["frame_start"] + past[there]
            assert (
                there.sum() == 0
                or np.abs(carry.latents[row][there] - stored[frames]).max() / scale < LATENT_BOUNDS["float32"]
            )
            seen[frames] = True
    assert seen.all()


def test_rows_do_not_depend_on_each_other(policy: Policy, experiment: Experiment, artefacts: tuple[dict, dict]) -> None:
    alone = rollout(make_policy(experiment, artefacts, batch_size=1), (0,), 3)
    for (_, one, _), (_, both, _), (_, other, _) in zip(
        alone, rollout(policy, (0, 1), 3), rollout(policy, (0, 0), 3), strict=True
    ):
        np.testing.assert_allclose(one[0], both[0], atol=1e-4)
        np.testing.assert_array_equal(both[0], other[0])
        assert np.abs(both[0] - both[1]).max() > 1e-3


def test_actions_are_raw_and_the_numbers_are_those_of_each_row(policy: Policy) -> None:
    for decision, (_, chunk, info) in enumerate(rollout(policy, (0, 1), 3)):
        assert chunk.shape == (2, 8, 7) and np.abs(chunk).max() <= 1.0
        assert set(np.unique(chunk[..., -1])) <= {-1.0, 1.0}
        np.testing.assert_allclose(info["memory/gate"], np.tanh(1.0), rtol=1e-6)
        assert (info["memory/ratio"] > 0).all()
        for name in ("world/error", "world/copy_error"):
            assert np.isnan(info[name]).all() == (decision == 0)


def test_what_is_imagined_is_what_its_errors_are_of(policy: Policy) -> None:
    seen = rollout(policy, (0, 1), 3)
    for (carry, _, before), (_, _, now) in itertools.pairwise(seen):
        np.testing.assert_array_equal(before["imagined"], carry.prediction)
        came = now["observed"][:, -1]
        for name, guess in (("error", before["imagined"][:, AHEAD - 1]), ("copy_error", before["observed"][:, -1])):
            expected = np.square(guess - came).mean(axis=(1, 2))
            np.testing.assert_allclose(now[f"world/{name}"], expected, rtol=1e-4)


def test_an_episodes_first_decision_forgets_the_one_before(policy: Policy) -> None:
    fresh = rollout(policy, (0, 1), 1)[0]
    carry = jax.tree.map(jnp.asarray, rollout(policy, (1, 0), 3)[-1][0])
    again, chunk, _ = policy(carry, observation(policy, (0, 1), 0), jax.random.split(jax.random.key(0), 2))
    np.testing.assert_array_equal(chunk, fresh[1])
    np.testing.assert_array_equal(again.latents, fresh[0].latents)


def test_a_prophecy_has_no_error_and_a_copy_that_of_copying() -> None:
    before, now = (np.random.default_rng(i).normal(size=(2, 4, 3)).astype(np.float32) for i in (0, 1))
    prophecy, copied = Errors.of(now, before, now), Errors.of(before, before, now)
    np.testing.assert_array_equal(prophecy.prediction, 0.0)
    np.testing.assert_array_equal(copied.prediction, copied.copy)
    np.testing.assert_allclose(copied.copy, np.square(before - now).mean(axis=(1, 2)), rtol=1e-6)


def test_a_constant_memory_needs_no_encoder_and_is_not_a_prediction(artefacts: tuple[dict, dict]) -> None:
    """Nor must its Prophet fit the encoder that an older checkpoint names."""
    small = dataclasses.replace(
        tiny_config("e0plus"), prophet=ProphetConfig(width=24, heads=2, layers=1, latent_dim=24)
    )
    experiment = dataclasses.replace(load("e0plus_flow"), model=small)
    policy = make_policy(experiment, (artefacts[0], parameters(experiment)))
    assert artefacts[0]["encoder"] and policy.encoder_spec is None and not policy.predicts
    for _, chunk, info in rollout(policy, (0, 1), 2):
        assert np.isfinite(chunk).all() and set(info) == {"memory/gate", "memory/ratio"}


@pytest.mark.parametrize("horizon", [0, 6, 12])
def test_a_horizon_that_does_not_fit_is_refused(horizon: int, experiment: Experiment, artefacts: tuple) -> None:
    with pytest.raises(UserError, match=f"open_loop_horizon is {horizon}; it must be a multiple of frame_stride"):
        make_policy(experiment, artefacts, open_loop_horizon=horizon)


def test_another_encoder_is_refused(experiment: Experiment, artefacts: tuple[dict, dict]) -> None:
    found, params = artefacts
    other = {**found, "encoder": {**found["encoder"], "weights_hash": "0" * 16}}
    with pytest.raises(UserError, match=r"EncoderSpec\.weights_hash is 0000000000000000 in the checkpoint"):
        make_policy(experiment, (other, params))


def test_another_tokenizer_or_template_is_refused(policy: Policy) -> None:
    hashes = policy._prepare.hashes
    policy.require_prompts(hashes)
    policy.require_prompts({})
    for name in ("tokenizer", "template"):
        with pytest.raises(
            UserError, match=f"the prompt's {name} has the hash {hashes[name]}, the checkpoint was .* 00"
        ):
            policy.require_prompts({**hashes, name: "00"})
