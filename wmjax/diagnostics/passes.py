"""The network on batches of the split, unchanged and under conditions that show which inputs it uses.

The VLM runs once per condition that changes its inputs; the corruptions of the memory share its hidden states.
"""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float32, Int

from wmjax.core.rng import named_key
from wmjax.core.settings import SHUFFLED, Corruption
from wmjax.data.latents import LatentStore
from wmjax.data.loader import Batch, make_loader
from wmjax.data.split import recording_of
from wmjax.data.statistics import denormalise_action, normalise_action
from wmjax.data.store import TrainingStore
from wmjax.models.backbones.base import Hidden, State
from wmjax.models.vla import VLA, VLAConfig
from wmjax.models.world.config import intervention_error
from wmjax.policy.interventions import Donor, Donors
from wmjax.trainer.config import Inputs
from wmjax.trainer.step import model_input

Split = Literal["val", "train"]
Change = Callable[[Batch, np.random.Generator], Batch]
PLAIN, ANOTHER_DRAW = "none", "another noise draw"
OTHERS_FUTURE = "another sample's future"
DRAWS = 8
MEAN_DRAW = f"mean of {DRAWS} noise draws"
"""About what a flow head expects. Of a calibrated one it scores (1 - R²) / DRAWS less than the expectation would."""


class Condition(NamedTuple):
    """A change of a batch before the network reads it: of its inputs, its memory, or the noise of the flow.

    The chunk is the mean over ``draws`` draws of that noise, from number ``draw`` on.
    """

    name: str
    change: Change | None = None
    corruption: Corruption = "none"
    draw: int = 0
    draws: int = 1


class Acted(NamedTuple):
    """Normalised chunks, predicted latents (if there is a Prophet), the memory's metrics per sample, head metrics."""

    chunk: Float32[Array, "batch chunk dim"]
    prediction: Float32[Array, "batch future tokens dim"] | None
    memory: dict[str, Float32[Array, " batch"]]
    head: dict[str, Float32[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All batches together: the store's frames, and by condition the normalised chunks and the head's metrics.

    The head's metrics are over complete chunks, of which there are ``complete``; ``prediction`` and ``memory`` are
    those of the plain pass.
    """

    frames: Int[np.ndarray, " n"]
    chunks: dict[str, Float32[np.ndarray, "n chunk action"]]
    prediction: Float32[np.ndarray, "n future tokens dim"] | None
    memory: dict[str, Float32[np.ndarray, " n"]]
    head: dict[str, dict[str, float]]
    complete: int

    def raw_chunks(self, inputs: Inputs) -> dict[str, Float32[np.ndarray, "n chunk action"]]:
        """The chunks in the units of the robot, not clipped."""
        state = inputs.store.state[inputs.store.frame_row[self.frames]]
        spec = inputs.action_spec
        return {name: np.asarray(denormalise_action(chunk, spec, state)) for name, chunk in self.chunks.items()}


def input_conditions(config: VLAConfig, tasks: int) -> list[Condition]:
    """Other noise (heads that draw some), blind and wrong images and, with several tasks, a wrong instruction."""
    draws = [Condition(ANOTHER_DRAW, draw=1), Condition(MEAN_DRAW, draws=DRAWS)]
    conditions = [
        *(draws if config.head.stochastic else []),
        Condition("images black", _black_images),
        Condition("images white", lambda batch, _: batch | {"images": np.full_like(batch["images"], 255)}),
        Condition("images uniform noise", _noise_images),
        Condition("another sample's images", lambda batch, _: batch | {"images": _next(batch["images"])}),
    ]
    if config.pending:
        conditions.append(
            Condition("another sample's pending actions", lambda batch, _: batch | {"pending": _next(batch["pending"])})
        )
    wrong = Condition("another task's instruction", lambda batch, _: batch | {"task": (batch["task"] + 1) % tasks})
    return [*conditions, wrong] if tasks > 1 else conditions


def _next(column: np.ndarray) -> np.ndarray:
    return np.roll(column, 1, axis=0)


def _black_images(batch: Batch, _: np.random.Generator) -> Batch:
    return batch | {"images": np.zeros_like(batch["images"])}


def _noise_images(batch: Batch, rng: np.random.Generator) -> Batch:
    return batch | {"images": rng.integers(0, 256, batch["images"].shape, dtype=np.uint8)}


def memory_conditions(config: VLAConfig, store: TrainingStore) -> list[Condition]:
    """The corruptions that change the variant's memory, if it has one, and the memory closed with the images black.

    A memory that is the true future is not made from images: it is replaced by another sample's.
    """
    if config.memory.needs_future and config.memory.inject:
        other = Condition(OTHERS_FUTURE, lambda batch, _: batch | {"future": _next(batch["future"])})
        inside: tuple[Corruption, ...] = ("zero", "noise", "closed")
        return [other, *(Condition(kind, corruption=kind) for kind in inside)]
    kinds: tuple[Corruption, ...] = ("zero", "noise", *SHUFFLED, "closed")
    applicable = [kind for kind in kinds if not intervention_error(config.memory, None, kind)]
    recorded: dict[tuple[str, int], set[int]] = collections.defaultdict(set)
    for entry, recording in zip(store.episodes, recording_of(store.episodes).tolist(), strict=True):
        recorded[entry["suite"], entry["task_id"]].add(recording)
    nobody_else = {
        "shuffled": len(set.union(*recorded.values())) < 2,
        "shuffled_in_task": min(map(len, recorded.values())) < 2,
    }
    applicable = [kind for kind in applicable if not nobody_else.get(kind)]
    conditions = [Condition(kind, corruption=kind) for kind in applicable]
    # The memory is made from the same images: only this says what the actions lose without any.
    return [*conditions, Condition("closed, images black", _black_images, "closed")] if applicable else []


class Network:
    """A restored model as two jitted functions: the VLM's hidden states, and the rest of the network."""

    def __init__(self, model: VLA, inputs: Inputs, seed: int):
        self.config, self._inputs, self._seed = model.config, inputs, seed
        self._prompts = jax.tree.map(jnp.asarray, inputs.prompts)
        graph, self._state = nnx.split(model)
        self._hidden = jax.jit(lambda state, batch: nnx.merge(graph, state).encode_prompt(self._model_input(batch)))

        def act(
            state: nnx.State,
            hidden: Hidden | State,
            batch: dict[str, Array],
            index: Array,
            draw: Array,
            donor: Donor | None,
            kind: Any,
        ) -> Acted:
            return self._act(nnx.merge(graph, state), hidden, batch, index, draw, donor, kind)

        self._acted = jax.jit(act, static_argnums=6)

    def hidden(self, batch: Batch) -> Hidden | State:
        """The output of the VLM without the memory (:meth:`wmjax.models.vla.VLA.encode_prompt`)."""
        return self._hidden(self._state, batch)

    def act(self, hidden: Hidden | State, batch: Batch, index: int, condition: Condition) -> Acted:
        """The rest of the network; noise depends on the batch's ``index`` and the draw's number only."""
        donor = self._donor(batch, condition.corruption) if condition.corruption in SHUFFLED else None

        def once(draw: int) -> Acted:
            return self._acted(self._state, hidden, batch, np.int32(index), np.int32(draw), donor, condition.corruption)

        acted = once(condition.draw)
        others = [once(condition.draw + number).chunk for number in range(1, condition.draws)]
        return acted._replace(chunk=(acted.chunk + sum(others)) / condition.draws) if others else acted

    @functools.cached_property
    def _donors(self) -> Donors:
        inputs = self._inputs
        assert isinstance(inputs.latents, LatentStore)
        return Donors(inputs.store, inputs.latents, self.config.prophet.history, inputs.prompts)

    def _donor(self, batch: Batch, corruption: Corruption) -> Donor:
        """Another episode at the same control step, drawn for each sample: no part of the sample's recorded one."""
        store, frames = self._inputs.store, np.asarray(batch["sample_id"])
        episodes = store.frame_episode[frames]
        own = [store.episodes[index] for index in episodes]
        chosen = [
            self._donors.choose(
                np.random.default_rng([self._seed, frame]), corruption, entry["suite"], entry["task_id"], entry["index"]
            )
            for frame, entry in zip(frames, own, strict=True)
        ]
        start = np.array([entry["step_start"] for entry in own])
        return self._donors.at(np.array(chosen), store.frame_row[frames] - start)

    def _model_input(self, batch: dict[str, Array]) -> Any:
        return model_input(batch, self._prompts, self._inputs.action_spec, self._inputs.encoder_spec)

    def _act(
        self,
        model: VLA,
        hidden: Hidden | State,
        batch: dict[str, Array],
        index: Array,
        draw: Array,
        donor: Donor | None,
        corruption: Corruption,
    ) -> Acted:
        """The part of ``model.sample`` after the VLM, and the head's loss on complete chunks."""
        inputs = self._model_input(batch)
        key = named_key(self._seed, "diagnose memory", index)
        memory = None
        if donor is not None:  # with the images of others, which a memory is not made from
            assert self._inputs.encoder_spec is not None
            theirs = donor.normalised(self._inputs.encoder_spec, self._inputs.action_spec)
            memory = model.recall(inputs._replace(**theirs._asdict()))
        out = model.act_on(hidden, inputs, key=key, corruption=corruption, memory=memory)
        action = normalise_action(batch["action"], self._inputs.action_spec, batch["state"])
        complete = jnp.broadcast_to(complete_chunks(batch)[:, None], batch["action_mask"].shape)
        loss = model.head.loss(out.tokens, action, complete, named_key(self._seed, "diagnose flow", index))
        prediction = out.prediction
        if model.world.is_forward_model:  # scored on the true actions, as it was trained
            context = model.prophet_context(inputs, action, batch["action_mask"])
            prediction = model.world.recall(inputs.latents, len(action), context)
        chunk = model.head.sample(out.tokens, named_key(self._seed, "diagnose noise", index, draw))
        return Acted(chunk, prediction, out.metrics, loss.metrics)


def complete_chunks(batch: dict[str, Any]) -> Any:
    """True for samples that are not filler and whose chunk ends before its episode."""
    return batch["action_mask"].all(1) & batch["sample_mask"]


def batches(inputs: Inputs, split: Split, count: int, size: int, seed: int) -> Iterator[Batch]:
    """Unshifted batches of a split in a shuffled order: the whole split, or the first ``count`` batches."""
    loader = dataclasses.replace(
        inputs.loader, batch_size=size, seed=seed, views=1, max_shift=0, num_epochs=1, drop_remainder=False
    )
    episodes = inputs.val_episodes if split == "val" else inputs.train_episodes
    # Closed at the end, because it reads ahead in threads.
    with contextlib.closing(iter(make_loader(inputs.store, inputs.latents, episodes, loader))) as stream:
        for _, batch in zip(range(count), stream, strict=False):
            yield batch


def observe(network: Network, stream: Iterator[Batch], conditions: list[Condition]) -> Outcome:
    """Runs every condition on every batch; the VLM once for each change of its inputs."""
    rng, rows = np.random.default_rng(0), []
    for index, batch in enumerate(stream):
        prepared: dict[Change | None, tuple[Batch, Hidden | State]] = {None: (batch, network.hidden(batch))}
        acted = {}
        for condition in [Condition(PLAIN), *conditions]:
            if condition.change is not None and condition.change not in prepared:
                changed = condition.change(batch, rng)
                prepared[condition.change] = changed, network.hidden(changed)
            changed, hidden = prepared[condition.change]
            acted[condition.name] = network.act(hidden, changed, index, condition)
        rows.append(_row(batch, acted))
    return _join(rows)


def _row(batch: Batch, acted: dict[str, Acted]) -> Outcome:
    """A batch without its filler."""
    valid: Bool[np.ndarray, "batch"] = batch["sample_mask"]
    plain = acted[PLAIN]
    return Outcome(
        frames=batch["sample_id"][valid],
        chunks={name: np.asarray(a.chunk)[valid] for name, a in acted.items()},
        prediction=None if plain.prediction is None else np.asarray(plain.prediction)[valid],
        memory={name: np.asarray(values)[valid] for name, values in plain.memory.items()},
        head={name: {key: float(value) for key, value in a.head.items()} for name, a in acted.items()},
        complete=int(complete_chunks(batch).sum()),
    )


def _join(rows: list[Outcome]) -> Outcome:
    first, weights = rows[0], np.array([row.complete for row in rows], np.float64)
    weights /= max(weights.sum(), 1.0)
    return Outcome(
        frames=np.concatenate([row.frames for row in rows]),
        chunks={name: np.concatenate([row.chunks[name] for row in rows]) for name in first.chunks},
        prediction=None if first.prediction is None else np.concatenate([row.prediction for row in rows]),  # type: ignore[misc]
        memory={name: np.concatenate([row.memory[name] for row in rows]) for name in first.memory},
        head={
            name: {key: float(weights @ [row.head[name][key] for row in rows]) for key in metrics}
            for name, metrics in first.head.items()
        },
        complete=sum(row.complete for row in rows),
    )
