"""All sections of one checkpoint on one split."""

import dataclasses
import logging
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32, Int

from wmjax.core.errors import UserError
from wmjax.data.loader import Batch
from wmjax.data.split import recording_of
from wmjax.data.statistics import clip_action, normalise_action
from wmjax.diagnostics.actions import action_section
from wmjax.diagnostics.conditions import input_section, memory_section
from wmjax.diagnostics.flow_bounds import flow_section
from wmjax.diagnostics.gradients import gradient_section
from wmjax.diagnostics.imagined_frames import Bank, Imagined, imagination_section, imagine
from wmjax.diagnostics.latent_probes import Quantity, probe_section
from wmjax.diagnostics.passes import (
    PLAIN,
    Network,
    Outcome,
    Split,
    batches,
    input_conditions,
    memory_conditions,
    observe,
)
from wmjax.diagnostics.prophet_skill import world_section
from wmjax.diagnostics.samples import (
    TRAIN_FRAMES,
    ActionWindows,
    LatentTransform,
    LatentWindows,
    action_windows,
    choose_frames,
    latent_windows,
)
from wmjax.diagnostics.section import Section, Skipped
from wmjax.models.heads.flow import FlowConfig
from wmjax.models.parameters import Trainable, trainable_filter
from wmjax.models.vla import VLA, VLAConfig
from wmjax.models.world.memory import WorldMemory
from wmjax.models.world.prophet import Prophet
from wmjax.models.world_model import WorldModel
from wmjax.trainer.config import Inputs
from wmjax.trainer.step import model_input

log = logging.getLogger("wmjax.train")

TITLES = {
    "actions": "Actions",
    "flow": "Flow head",
    "gradients": "Gradients of both losses",
    "inputs": "Effect of the inputs",
    "memory": "World memory in the actions",
    "world": "World model",
    "probe": "Position probe",
    "rotation_probe": "Rotation probe",
    "imagination": "Imagination: nearest training frames",
}
BATCH = 32
GRADIENT_BATCHES = 8
PROBE_FRAMES = 2000
"""Frames of the training split that the position probe is fitted on, at most."""


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Every section by its name in the JSON, and what the picture shows if there is anything to imagine."""

    sections: dict[str, Section]
    imagined: Imagined | None


def diagnose(
    model: VLA, inputs: Inputs, split: Split, count: int, seed: int, trainable: Trainable = "all"
) -> Diagnosis:
    """Looks into a policy.

    Args:
        model: with the averaged parameters.
        inputs: the run's own data, split and specs.
        split: which side of it is scored; references are always fitted on the training side.
        count: batches of 32 samples at most.
        seed: of the run: the order of samples and the noise.
        trainable: what the run trained.

    """
    config = model.config
    input_changes, memories = input_conditions(config, len(inputs.store.tasks)), memory_conditions(config, inputs.store)
    outcome = observe(
        Network(model, inputs, seed), batches(inputs, split, count, BATCH, seed), input_changes + memories
    )
    log.info("scored %d samples of the %s split under %d conditions", len(outcome.frames), split, len(outcome.chunks))
    windows = action_windows(inputs, outcome.frames)
    chunks = outcome.raw_chunks(inputs)
    names = {index: task.instruction for index, task in enumerate(inputs.store.tasks)}
    sections: dict[str, Section] = {
        "actions": action_section(clip_action(chunks[PLAIN], windows.spec), windows, names),
        "flow": _flow(config, inputs, outcome, windows),
        "gradients": _gradients(model, inputs, seed, trainable),
        "inputs": input_section(chunks, input_changes, windows, outcome),
    }
    if config.memory.inject:
        sections["memory"] = memory_section(chunks, memories, windows, outcome)
    else:
        sections["memory"] = Skipped("this variant injects nothing into the action tokens")
    world = _world(model, inputs, outcome)
    return Diagnosis(sections | world.sections, world.imagined)


def diagnose_prophet(model: VLA | WorldModel, inputs: Inputs, scored: Inputs, split: Split, count: int) -> Diagnosis:
    """Looks into a Prophet alone: its skill, and what poses can be read from its predictions.

    Args:
        model: with the averaged parameters; of a policy nothing but the Prophet runs.
        inputs: the run's own data, on whose training episodes the references are fitted.
        scored: the data that are predicted; they may be those of another store.
        split: which side of ``scored``.
        count: batches of 32 samples at most.

    Raises:
        UserError: the policy has no Prophet that reads latents.

    """
    reason, note = prophet_of(model.config)
    if reason or model.config.memory.input == "hidden":
        raise UserError(f"a Prophet is to be scored, but {reason or 'this one reads hidden states'}; name another run")
    frames, prediction = forecast(model, scored, batches(scored, split, count, BATCH, 0))
    log.info("scored %d samples of the %s split", len(frames), split)
    return Diagnosis(_prophet_sections(model, inputs, scored, frames, prediction, note), None)


def forecast(
    model: VLA | WorldModel, inputs: Inputs, stream: Iterator[Batch]
) -> tuple[Int[np.ndarray, " n"], Float32[np.ndarray, "n future tokens dim"]]:
    """The frames of batches and what the Prophet predicts of each, without the VLM."""
    graph, state = nnx.split(model)
    prompts = jax.tree.map(jnp.asarray, inputs.prompts)

    @jax.jit
    def step(state: nnx.State, batch: dict[str, jax.Array]) -> jax.Array:
        network_inputs = model_input(batch, prompts, inputs.action_spec, inputs.encoder_spec)
        action = normalise_action(batch["action"], inputs.action_spec, batch["state"])
        merged: VLA | WorldModel = nnx.merge(graph, state)
        return merged.recall(network_inputs, action, batch["action_mask"])

    found = [(batch["sample_id"], np.asarray(step(state, batch)), batch["sample_mask"]) for batch in stream]
    frames, prediction = (np.concatenate([part[i][part[2]] for part in found]) for i in (0, 1))
    return frames, prediction


def _flow(config: VLAConfig, inputs: Inputs, outcome: Outcome, windows: ActionWindows) -> Section:
    if not isinstance(config.head, FlowConfig):
        return Skipped(f"the head is a {config.head.kind} head, without a flow")
    if not outcome.complete:
        return Skipped("no sample of the split has a complete chunk")
    frames = choose_frames(inputs.store, inputs.train_episodes, TRAIN_FRAMES)
    train = action_windows(inputs, frames)
    # A gripper in the flow carries information about the arm: the references must know as much as the head.
    arm = config.action_dim - config.grippers
    regressed = config.grippers if config.head.gripper == "regress" else 0
    test_chunks, train_chunks = (_complete(w, inputs, arm + regressed) for w in (windows, train))
    episodes = recording_of(inputs.store.episodes)[inputs.store.frame_episode[frames]][train.mask.all(1)]
    losses = outcome.head[PLAIN]
    loss = np.average([losses["action/arm"], losses.get("action/gripper", 0.0)], weights=[arm, regressed])
    return flow_section(float(loss), test_chunks, train_chunks, episodes, config.head.time_beta)


def _gradients(model: VLA, inputs: Inputs, seed: int, trainable: Trainable) -> Section:
    if not model.config.memory.world_loss:
        return Skipped("memory.world_loss is 0: the action loss trains all that trains")
    stream = batches(inputs, "train", GRADIENT_BATCHES, BATCH, seed)
    return gradient_section(model, inputs, stream, trainable_filter(trainable), seed)


def _complete(windows: ActionWindows, inputs: Inputs, dim: int) -> np.ndarray:
    """Complete chunks in the flow head's units, ``[n, chunk * dim]``."""
    complete = windows.mask.all(1)
    action, state = windows.action[complete], windows.state[complete]
    return np.asarray(normalise_action(action, inputs.action_spec, state))[..., :dim].reshape(len(action), -1)


def _world(model: VLA, inputs: Inputs, outcome: Outcome) -> Diagnosis:
    """World model, pose probes and imagination, for variants with a Prophet that looks at something."""
    reason, note = prophet_of(model.config)
    if reason or outcome.prediction is None:
        return Diagnosis({name: Skipped(reason) for name in ("world", "probe", "rotation_probe", "imagination")}, None)
    sections = _prophet_sections(model, inputs, inputs, outcome.frames, outcome.prediction, note)
    test = _windows(model, inputs, outcome.frames)
    frames = choose_frames(inputs.store, inputs.train_episodes, TRAIN_FRAMES)
    train = _windows(model, inputs, frames)
    tasks = np.array([episode["task"] for episode in inputs.store.episodes])[inputs.store.frame_episode]
    bank = Bank(frames, train.now, train.position[:, 0], train.episode, tasks[frames])
    sections["imagination"] = imagination_section(outcome.prediction, test, tasks[outcome.frames], bank)
    return Diagnosis(sections, imagine(outcome.prediction, test, outcome.frames, bank))


def _prophet_sections(
    model: VLA | WorldModel,
    inputs: Inputs,
    scored: Inputs,
    frames: np.ndarray,
    prediction: np.ndarray,
    note: str,
) -> dict[str, Section]:
    """Skill and pose probes of predictions for frames of ``scored``; references are fitted on ``inputs``."""
    test = _windows(model, scored, frames)
    train = _windows(model, inputs, choose_frames(inputs.store, inputs.train_episodes, TRAIN_FRAMES))
    if len(np.unique(train.complete().episode)) < 2:
        why = "complete futures of two training episodes are needed, to choose the references' strength on one of them"
        return dict.fromkeys(("world", "probe", "rotation_probe"), Skipped(why))
    log.info("references of the world model from %d training frames", len(train.mask))
    rows = np.random.default_rng(0).permutation(len(train.mask))[:PROBE_FRAMES]
    fitted = train.take(np.sort(rows)).complete()
    # The references' windows hold latents only: a Prophet with other inputs cannot be run on them.
    reads_latents = model.config.memory.input == "latents" and not model.config.prophet.condition
    own = predict(model.world, fitted.history) if reads_latents else None
    spec = inputs.store.spec
    return {
        "world": world_section(prediction, test, train, note),
        "probe": _pose_probe(spec.position, "position", prediction, test, fitted, own),
        "rotation_probe": _pose_probe(spec.orientation, "rotation", prediction, test, fitted, own),
    }


def _pose_probe(
    contained: tuple[int, ...],
    quantity: Quantity,
    prediction: np.ndarray,
    test: LatentWindows,
    fitted: LatentWindows,
    own: np.ndarray | None,
) -> Section:
    """The probe of a part of the end effector's pose, if the state contains it."""
    if not contained:
        return Skipped(f"the state names no {quantity} of the end effector")
    return probe_section(prediction, test, fitted, own, quantity)


def predict(world: WorldMemory, history: np.ndarray) -> np.ndarray:
    """ẑ of a Prophet that reads latents, from histories in its shape."""
    assert world.prophet is not None
    graph, state = nnx.split(world.prophet)

    def step(state: nnx.State, part: jax.Array) -> jax.Array:
        prophet: Prophet = nnx.merge(graph, state)
        return prophet(part)

    jitted = jax.jit(step)
    return np.concatenate([np.asarray(jitted(state, part)) for part in padded(history, 8 * BATCH)])[: len(history)]


def padded(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Parts of one size, so that one program serves all; the last is filled up with the last row."""
    rest = -len(rows) % size
    return np.split(np.concatenate([rows, np.repeat(rows[-1:], rest, 0)]), (len(rows) + rest) // size)


def prophet_of(config: VLAConfig) -> tuple[str, str]:
    """The reason why there is no world model to score, and a note about the one there is; each may be empty."""
    memory = config.memory
    missing = {
        "none": "this variant has no world memory",
        "constant": "this variant's Prophet has a constant as input: it is capacity, not a prediction",
        "copy": "this variant has no Prophet: its memory is z(t), repeated",
        "history": "this variant has no Prophet: its memory is the latest latents",
        "future": "this variant has no Prophet: its memory is the true future",
    }
    if memory.input in missing:
        return missing[memory.input], ""
    return "", "" if memory.world_loss else "memory.world_loss is 0: this Prophet was never trained to predict"


def _windows(model: VLA | WorldModel, inputs: Inputs, frames: np.ndarray) -> LatentWindows:
    shape = model.config.prophet
    return latent_windows(inputs, frames, shape.history, shape.future, _to_prophet(model.world))


def _to_prophet(world: WorldMemory) -> LatentTransform:
    """The latents in the shape that the Prophet predicts, frame by frame."""
    return lambda latents: np.asarray(world.prophet_latents(jnp.asarray(latents)))
