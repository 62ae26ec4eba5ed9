"""Actors of a rollout: scripted actors check the simulator, and replayed recordings check the path of observations.

The runner asks an actor for action chunks, for several episodes at once. The actor of a trained policy is
:mod:`wmjax.policy.policy_actor`, because it needs jax.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from wmjax.core.errors import UserError
from wmjax.core.handover import Realtime
from wmjax.core.settings import Corruption
from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.data.statistics import clip_action, denormalise_action, normalise_action
from wmjax.data.store import TrainingStore
from wmjax.rollout.protocol import Protocol as EvaluationProtocol
from wmjax.sim.episode import EpisodeId

Chunk = Float32[np.ndarray, "steps action"]


def no_frames() -> UInt8[np.ndarray, "frames cameras height width 3"]:
    """The frames of a decision whose actor needs none."""
    return np.zeros((0, 0, 0, 0, 3), np.uint8)


@dataclasses.dataclass(frozen=True)
class Decision:
    """One episode waiting for actions.

    Attributes:
        slot: the worker that runs it. An actor may store data per slot, but actions must not depend on it.
        episode: its identity.
        number: 0 at the episode's first decision, then 1, 2, ...
        step: control steps since the settled state.
        frames: the frames rendered since the last decision, oldest first; at the first decision the only frame,
            repeated. Empty for actors that need none.
        state: proprioception now.
        instruction: the sentence that the policy gets.
        future: the next frames if the scripted expert took over now, for actors that need them; else empty.
        pending: raw actions of earlier decisions for the control steps from ``step`` on, for actors that need them:
            under a delay first those that are executed independent of this decision, then the rest of the previous
            chunk. None at an episode's first decision.
        forget: whether the history restarts with these frames, as at a first decision, because earlier ones are lost.

    """

    slot: int
    episode: EpisodeId
    number: int
    step: int
    frames: UInt8[np.ndarray, "frames cameras height width 3"]
    state: Float32[np.ndarray, " state"]
    instruction: str
    future: UInt8[np.ndarray, "future _ _ _ 3"] = dataclasses.field(default_factory=no_frames)
    pending: Chunk | None = None
    forget: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """An answer to a decision.

    Attributes:
        actions: raw, within their bounds, at least one open-loop horizon of them.
        info: numbers to log.
        observed: latents of the newest frames, oldest first, from policies that predict.
        imagined: the predicted latents of the next frames.

    """

    actions: Chunk
    info: Mapping[str, float] = dataclasses.field(default_factory=dict)
    observed: Float32[np.ndarray, "history tokens dim"] | None = None
    imagined: Float32[np.ndarray, "future tokens dim"] | None = None


@runtime_checkable
class Actor(Protocol):
    """The interface between the runner and a policy or another actor.

    Attributes:
        name: for headers and file names.
        observation_spec: the observations that the simulator must give.
        needs_frames: whether decisions carry frames.
        inside: whether it acts inside the workers, as the scripted expert does; :meth:`act` is then never called.
        future_frames: how many frames of the true future decisions carry (an oracle); 0 for none.
        corruption: the replacement of its world memory; ``none`` for no replacement.
        realtime: how its chunks continue earlier ones under a delay.
        pending_steps: how many pending actions decisions carry, from an episode's second on; 0 for none. Without
            real-time execution they are those of the execution delay.

    """

    name: str
    observation_spec: ObservationSpec
    needs_frames: bool
    inside: bool
    future_frames: int
    corruption: Corruption
    realtime: Realtime
    pending_steps: int

    def prepare(self, slots: int, horizon: int, action_spec: ActionSpec) -> None:
        """Prepares the actor; called once, before the first decision.

        Args:
            slots: number of slots.
            horizon: open-loop horizon, control steps.
            action_spec: the environment's actions.

        Raises:
            UserError: the actor cannot serve that horizon, or has other actions.

        """

    def settled_state(self, episode: EpisodeId) -> Float64[np.ndarray, " sim"] | None:
        """A full simulator state to start the episode from, or None for the episode's own."""

    def act(self, decisions: Sequence[Decision]) -> list[Plan]:
        """One plan per decision, independent of which decisions come together."""


class Scripted:
    """The base of actors that need neither frames nor their own starting states."""

    name = "scripted"
    needs_frames = False
    inside = False
    future_frames = 0
    corruption: Corruption = "none"
    realtime: Realtime = "none"
    pending_steps = 0
    horizon = 0

    def __init__(self, spec: ObservationSpec) -> None:
        self.observation_spec = spec

    def prepare(self, slots: int, horizon: int, action_spec: ActionSpec) -> None:
        """Remembers the horizon and the actions."""
        self.horizon, self.action_spec = horizon, action_spec

    def hold(self, steps: int) -> Chunk:
        """Returns the action that holds still."""
        return np.tile(np.array(self.action_spec.hold, np.float32), (steps, 1))

    def settled_state(self, episode: EpisodeId) -> Float64[np.ndarray, " sim"] | None:
        """The episode's own."""
        return None

    def act(self, decisions: Sequence[Decision]) -> list[Plan]:
        """One plan per decision."""
        return [Plan(self.chunk(decision)) for decision in decisions]

    def chunk(self, decision: Decision) -> Chunk:
        """The actions of one decision."""
        raise NotImplementedError


class Expert(Scripted):
    """The recorder's scripted expert, acting inside the workers at every control step."""

    name = "expert"
    inside = True


class Noop(Scripted):
    """Holds still. It solves only tasks whose goal holds at the start."""

    name = "noop"

    def chunk(self, decision: Decision) -> Chunk:
        """Returns the action that holds still."""
        return self.hold(self.horizon)


class Random(Scripted):
    """Uniform actions from a seed, the episode and the decision."""

    name = "random"

    def __init__(self, spec: ObservationSpec, seed: int = 0) -> None:
        super().__init__(spec)
        self._seed = seed

    def prepare(self, slots: int, horizon: int, action_spec: ActionSpec) -> None:
        """Remembers the horizon and the actions.

        Raises:
            UserError: the actions have no bounds to draw between.

        """
        super().prepare(slots, horizon, action_spec)
        if not action_spec.low:
            raise UserError("the environment's actions have no bounds, so none can be drawn; choose another --policy")

    def chunk(self, decision: Decision) -> Chunk:
        """Uniform between the bounds."""
        generator, spec = np.random.default_rng([self._seed, decision.episode.seed, decision.number]), self.action_spec
        return generator.uniform(spec.low, spec.high, (self.horizon, spec.dim)).astype(np.float32)


REPLAYS_SUCCEED = 0.99
"""Share of the replays that must succeed before an evaluation of a policy is meaningful."""
ROUNDING = 1e-6
"""Difference of an action, of at most 1, that comes from normalising in float32; any other is executed."""


class Replay(Scripted):
    """Executes recorded episodes from their recorded start, through the policy's own action transform.

    Where the transform changes an action by a rounding only, the recorded one is executed: a replay in the simulator
    of the recording is then exact, however sensitive the episode is.

    Args:
        store: the recording; the episodes to run are :attr:`episodes`.
        action_spec: its normalisation is applied and undone and the actions are clipped, as a policy's are.
        watch: whether to request frames and log how far the observations are from the recorded ones.

    """

    name = "replay"

    def __init__(self, store: TrainingStore, action_spec: ActionSpec, *, watch: bool = False) -> None:
        super().__init__(store.spec)
        self.needs_frames = watch
        self._store = store
        self._spec = self.action_spec = action_spec
        self._index = {_recorded_id(entry): entry["index"] for entry in store.episodes}

    @property
    def episodes(self) -> list[EpisodeId]:
        """The recorded episodes."""
        return list(self._index)

    def choose(self, suite: str, tasks: Sequence[int], per_task: int) -> list[EpisodeId]:
        """The first ``per_task`` recorded episodes of each task.

        Raises:
            UserError: there are none.

        """
        chosen = []
        for task in tasks:
            recorded = [e for e in self._index if (e.suite, e.task_id) == (suite, task)]
            chosen += recorded[:per_task]
        if not chosen:
            raise UserError(
                f"{self._store.folder} has no episodes of {suite} tasks {list(tasks)}; choose a protocol it has"
            )
        return chosen

    def as_recorded(self, protocol: EvaluationProtocol, episodes: Sequence[EpisodeId]) -> EvaluationProtocol:
        """A protocol that replays recorded episodes: the longest one's steps, and their drift of the target.

        Raises:
            UserError: the target's speed was not the same in all of them.

        """
        speeds = {self._store.episodes[self._index[episode]].get("target_velocity", 0.0) for episode in episodes}
        if len(speeds) > 1:
            found = ", ".join(f"{speed:g}" for speed in sorted(speeds))
            raise UserError(
                f"{self._store.folder}: the targets of its episodes drifted at {found} m/s; replay each store alone"
            )
        longest = max(entry["length"] for entry in self._store.episodes)
        return dataclasses.replace(protocol, max_steps=longest, target_velocity=float(speeds.pop()))

    def settled_hash(self, episode: EpisodeId) -> str:
        """The recorded identity of the episode's start."""
        return self._store.episodes[self._index[episode]]["settled_hash"]

    def settled_state(self, episode: EpisodeId) -> Float64[np.ndarray, " sim"] | None:
        """The recorded start, so that the replay is bit-exact."""
        if episode not in self._index:
            raise UserError(f"episode {episode.key} is not in the store {self._store.folder}; choose recorded episodes")
        return self._store.settled_state(self._index[episode])

    def act(self, decisions: Sequence[Decision]) -> list[Plan]:
        """One plan per decision; with ``watch``, also how far the observation is from the recorded one."""
        return [Plan(self.chunk(d), self._difference(d) if self.needs_frames else {}) for d in decisions]

    def _difference(self, decision: Decision) -> dict[str, float]:
        """Largest differences of pixels (of 255), state and instruction; nothing after the recording's end."""
        entry = self._store.episodes[self._index[decision.episode]]
        newest = decision.step // self.observation_spec.frame_stride
        if decision.step >= entry["length"] or newest >= entry["num_frames"]:
            return {}
        indices = np.arange(newest - len(decision.frames) + 1, newest + 1).clip(0) + entry["frame_start"]
        recorded = self._store.frames[indices].astype(np.int16)
        state = self._store.state[entry["step_start"] + decision.step]
        return {
            "replay/pixels": float(np.abs(decision.frames - recorded).max()),
            "replay/state": float(np.abs(decision.state - state).max()),
            "replay/instruction": float(decision.instruction != entry["instruction"]),
        }

    def chunk(self, decision: Decision) -> Chunk:
        """The recorded executed actions; holding still after the recording's end."""
        entry = self._store.episodes[self._index[decision.episode]]
        start, end = decision.step, min(decision.step + self.horizon, entry["length"])
        rows = slice(entry["step_start"] + start, entry["step_start"] + max(start, end))
        recorded = self._store.executed[rows]
        padded = np.concatenate([recorded, self.hold(self.horizon - len(recorded))])
        state = np.asarray(decision.state, np.float32)
        actions = denormalise_action(normalise_action(padded, self._spec, state), self._spec, state)
        acted = clip_action(actions, self._spec)
        # An object that is let go and falls amplifies even a rounding error.
        return np.where(np.abs(acted - padded) <= ROUNDING, padded, acted).astype(np.float32)


def _recorded_id(entry: Mapping[str, object]) -> EpisodeId:
    """The identity that the recorder stored with an episode."""
    key = entry.get("episode")
    try:
        return EpisodeId.parse(str(key))
    except UserError as error:
        message = f"the store's episode {entry['index']} has the identity {key!r}; only recorded episodes replay"
        raise UserError(message) from error
