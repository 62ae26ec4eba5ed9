"""Trains an experiment for a few steps through the real loop, and acts with it through ``wmjax.load_policy``."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import wmjax
from tests.tiny import tiny_config
from wmjax.core.settings import merge
from wmjax.data.latents import LatentStore
from wmjax.data.observation import Observation
from wmjax.data.store import TrainingStore
from wmjax.experiment.config import Experiment, load, to_dict
from wmjax.models.prompts import PromptConfig
from wmjax.models.vla import VLA
from wmjax.policy.carry import Carry
from wmjax.policy.policy import Policy
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.loop import train

STEPS = 20
SHORT = {
    "train": {"steps": STEPS, "batch_size": 8, "validation_fraction": 0.2, "log_every": 1, "eval_every": STEPS},
    "optimizer": {"learning_rate": 5e-2, "warmup_steps": 1},
}


def small(recipe: str, settings: dict[str, Any], *parts: str) -> Experiment:
    """A recipe with settings, as the command would load them, at the sizes of the tests.

    Args:
        recipe: a name of ``train/recipes``.
        settings: nested, as of the command line.
        parts: fields of ``model`` that stay as loaded; the others become those of :func:`tests.tiny.tiny_config`.

    """
    loaded = load(recipe, overrides=merge(SHORT, settings))
    kept = {name: getattr(loaded.model, name) for name in (*parts, "memory")}
    return dataclasses.replace(loaded, model=dataclasses.replace(tiny_config(), **kept), prompt=PromptConfig(length=56))


def train_and_load(experiment: Experiment, store: TrainingStore, latents: LatentStore | None, run: Path) -> Policy:
    """The policy of the last checkpoint."""
    inputs = make_inputs(store, latents, experiment.prompt, experiment.model, experiment.train)
    train(
        lambda rngs: VLA(experiment.model, rngs=nnx.Rngs(rngs.params())),
        inputs,
        run,
        experiment.train,
        experiment.optimizer,
        experiment.mesh,
        max_shift=0,
        meta={"experiment": to_dict(experiment), "backbone_hash": None},
    )
    return wmjax.load_policy(run, batch_size=1)


def losses(run: Path) -> list[float]:
    """The training loss of every step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]


def decide(
    policy: Policy, store: TrainingStore, carry: Carry, frame: int, *, seed: int = 0, task: int = 0
) -> tuple[Carry, np.ndarray]:
    """What a policy of batch 1 remembers and the raw actions ``[chunk, dim]`` that it decides on at a frame."""
    episode = store.episode(0)
    due = np.maximum(np.arange(frame - policy.frames_per_decision + 1, frame + 1), 0)
    prompt = policy.prompt(store.tasks[task].instruction)
    state = episode.state[episode.frame_step[frame]]
    observation = Observation(episode.images[due][None], state[None], prompt, np.array([frame == 0]))
    carry, chunk, _ = policy(carry, observation, jax.random.split(jax.random.key(seed), 1))
    return carry, np.asarray(chunk[0])


def first_chunk(policy: Policy, store: TrainingStore, seed: int = 0) -> np.ndarray:
    """The raw actions that a policy decides on at the start of a store's first episode, ``[chunk, dim]``."""
    return decide(policy, store, policy.initial_carry(), 0, seed=seed)[1]


def rollout_latents(policy: Policy, store: TrainingStore) -> tuple[np.ndarray, np.ndarray]:
    """The last frames of three decisions in a store's first episode, and the latents that a policy made of them."""
    carry, last = policy.initial_carry(), 2 * policy.frames_per_decision
    for frame in range(0, last + 1, policy.frames_per_decision):
        carry, _ = decide(policy, store, carry, frame)
    history = np.asarray(carry.latents[0])
    return np.arange(last + 1)[-len(history) :], history
