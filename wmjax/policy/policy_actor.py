"""A trained policy as an actor: fixed batches with padding, one carry row per slot, keys per decision."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Float64, Int32

from wmjax.core.errors import UserError
from wmjax.core.handover import Realtime
from wmjax.core.rng import named_key
from wmjax.core.settings import SHUFFLED, Corruption
from wmjax.core.specs import OTHER_ROBOT, ActionSpec, ObservationSpec, require_same_actions
from wmjax.data.observation import Observation, Prompt
from wmjax.models.prompts import join_prompts
from wmjax.policy.interventions import Donor, Donors
from wmjax.rollout.actors import Chunk, Decision, Plan, no_frames
from wmjax.sim.episode import EpisodeId

Carry = Any
"""A pytree of arrays whose first axis is the batch."""
FILLER = "pick up the black bowl and place it on the plate"
"""Instruction of padding rows."""
PROMPTS = 256
"""Tokenised instructions that are kept."""


@runtime_checkable
class Policy(Protocol):
    """The interface that :mod:`wmjax.policy.policy` implements."""

    observation_spec: ObservationSpec
    action_spec: ActionSpec
    batch_size: int
    frames_per_decision: int
    future_frames: int
    corruption: Corruption
    realtime: Realtime
    pending_steps: int
    committed: int

    def initial_carry(self) -> Carry:
        """The carry of ``batch_size`` fresh rows."""

    def prompt(self, instruction: str) -> Prompt:
        """The tokenised instruction, batch 1."""

    def __call__(
        self,
        carry: Carry,
        observation: Observation,
        keys: jax.Array,
        future: Any = None,
        donor: Donor | None = None,
        pending: Any = None,
    ) -> tuple[Carry, Any, dict[str, Any]]:
        """Carry, raw actions f32 ``[batch, chunk, action]`` and per-row numbers of one decision.

        The numbers may include ``observed`` f32 ``[batch, history, tokens, dim]`` and ``imagined``, see :class:`Plan`.
        ``future`` holds the next ``future_frames`` frames u8 ``[batch, future, cameras, height, width, 3]`` if the
        policy needs any, ``donor`` what others saw under a corruption of ``SHUFFLED``. ``pending`` are raw actions of
        earlier chunks f32 ``[batch, pending_steps, action]``, None at first decisions.
        """


class PolicyActor:
    """Serves any number of slots with one policy of fixed batch size.

    The carry of every slot is a row of a table; the rows of a batch are gathered from it and scattered back, with a
    spare row for padding. So which decisions share a batch changes nothing for any of them. First decisions, which have
    no pending actions, share no batch with others if the policy takes pending actions. A plan leaves out a chunk's
    committed rows: its first action is for the step that the decision takes effect at.

    Args:
        policy: what decides.
        seed: of the noise; the key of a decision depends on it, the episode and the decision's number only.
        donors: whose memories a corruption of ``SHUFFLED`` shows: each episode has one, whatever the seed.

    Raises:
        UserError: the corruption needs donors and there are none.

    """

    name = "policy"
    needs_frames = True
    inside = False

    def __init__(self, policy: Policy, seed: int = 0, donors: Donors | None = None) -> None:
        if policy.corruption in SHUFFLED and donors is None:
            raise UserError(
                f"corruption is {policy.corruption!r}, which needs the demonstrations of the run; give donors"
            )
        self._policy, self._donors = policy, donors if policy.corruption in SHUFFLED else None
        self._seed = seed
        self.observation_spec = policy.observation_spec
        self.future_frames, self.corruption = policy.future_frames, policy.corruption
        self.realtime, self.pending_steps = policy.realtime, policy.pending_steps
        self._table: Carry = None
        self._counts = (policy.frames_per_decision, policy.future_frames)
        self._spare = 0
        self.prompt: Callable[[str], Prompt] = functools.lru_cache(PROMPTS)(policy.prompt)

    def prepare(self, slots: int, horizon: int, action_spec: ActionSpec) -> None:
        """Makes the carry table and compiles the policy, before any episode waits for it.

        Raises:
            UserError: the policy was built for another horizon or other actions, or predicts fewer actions.

        """
        policy, stride = self._policy, self.observation_spec.frame_stride
        require_same_actions(policy.action_spec, action_spec, "the environment", OTHER_ROBOT)
        if horizon > policy.action_spec.chunk:
            raise UserError(
                f"open_loop_horizon is {horizon}, the policy predicts {policy.action_spec.chunk} actions; lower it"
            )
        if horizon != policy.frames_per_decision * stride:
            raise UserError(
                f"open_loop_horizon is {horizon}, the policy takes {policy.frames_per_decision} frames per decision "
                f"(one every {stride} steps); load it for that horizon, a multiple of {stride}"
            )
        self._spare = slots
        fresh = policy.initial_carry()
        rows = np.zeros(slots + 1, np.int32)
        self._table = _gather(fresh, rows)
        self.act([self._blank(slots)])
        if self.pending_steps:
            self.act([self._blank(slots, begun=True)])

    def settled_state(self, episode: EpisodeId) -> Float64[np.ndarray, " sim"] | None:
        """The episode's own."""
        return None

    def act(self, decisions: Sequence[Decision]) -> list[Plan]:
        """One plan per decision, in batches of the policy's size.

        Raises:
            UserError: actions that are not finite.

        """
        plans = self.propose(decisions)
        for plan, decision in zip(plans, decisions, strict=True):
            _require_finite(plan.actions, decision)
        return plans

    def propose(self, decisions: Sequence[Decision]) -> list[Plan]:
        """As :meth:`act`, with actions that may not be finite, for callers that handle each of them separately."""
        size = self._policy.batch_size
        plans: dict[int, Plan] = {}
        for begun in (False, True):
            places = [place for place, decision in enumerate(decisions) if (decision.pending is not None) == begun]
            for start in range(0, len(places), size):
                group = places[start : start + size]
                plans |= zip(group, self._act([decisions[place] for place in group]), strict=True)
        return [plans[place] for place in range(len(decisions))]

    def _act(self, decisions: Sequence[Decision]) -> list[Plan]:
        """At most one batch."""
        count, begun = len(decisions), decisions[0].pending is not None
        padded = [*decisions, *[self._blank(self._spare, begun)] * (self._policy.batch_size - count)]
        rows = np.array([decision.slot for decision in padded], np.int32)
        keys = jnp.stack([self._key(decision) for decision in padded])
        carry = _gather(self._table, rows)
        future = np.stack([decision.future for decision in padded]) if self.future_frames else None
        others: dict[str, Any] = {} if self._donors is None else {"donor": self._donor(self._donors, decisions)}
        if begun:
            others["pending"] = np.stack([_require_pending(decision) for decision in padded])
        carry, chunk, info = self._policy(carry, self._observation(padded), keys, future, **others)
        self._table = _scatter(self._table, rows, carry)
        actions = np.asarray(chunk, np.float32)[:, self._policy.committed :]
        latents = {name: np.asarray(info[name], np.float32) for name in ("observed", "imagined") if name in info}
        numbers = {name: np.asarray(values, np.float64) for name, values in info.items() if name not in latents}
        return [
            Plan(
                actions[row],
                {name: float(values[row]) for name, values in numbers.items()},
                **{name: values[row] for name, values in latents.items()},
            )
            for row in range(count)
        ]

    def _observation(self, decisions: Sequence[Decision]) -> Observation:
        prompts = [self.prompt(decision.instruction) for decision in decisions]
        return Observation(
            images=np.stack([decision.frames for decision in decisions]),
            state=np.stack([decision.state for decision in decisions]),
            prompt=join_prompts(prompts),
            first=np.array([decision.number == 0 or decision.forget for decision in decisions]),
        )

    def _donor(self, donors: Donors, decisions: Sequence[Decision]) -> Donor:
        """The inputs of each episode's donor at the same control step; filler rows have the store's start."""
        chosen, steps = np.zeros((2, self._policy.batch_size), np.int64)
        for row, decision in enumerate(decisions):
            if decision.slot != self._spare:
                episode, steps[row] = decision.episode, decision.step
                rng = np.random.default_rng(episode.stream("memory donor"))
                chosen[row] = donors.choose(rng, self.corruption, episode.suite, episode.task_id)
        return donors.at(chosen, steps)

    def _key(self, decision: Decision) -> jax.Array:
        """The noise key of (task, episode, decision), independent of its slot and batch row."""
        return named_key(self._seed, f"rollout/{decision.episode.key}", decision.number)

    def _blank(self, slot: int, begun: bool = False) -> Decision:
        """A decision that fills a batch, of first decisions or of later ones."""
        spec = self.observation_spec
        frame = np.zeros((len(spec.cameras), spec.image_size, spec.image_size, 3), np.uint8)
        frames, future = (np.stack([frame] * n) if n else no_frames() for n in self._counts)
        state = np.zeros(spec.state_dim, np.float32)
        pending = np.zeros((self.pending_steps, self._policy.action_spec.dim), np.float32) if begun else None
        return Decision(slot, EpisodeId("padding", 0, "random", 0), 0, 0, frames, state, FILLER, future, pending)


def _require_pending(decision: Decision) -> Chunk:
    if decision.pending is None:
        raise ValueError(f"decision {decision.number} of {decision.episode.key} has no pending actions")
    return decision.pending


def _require_finite(actions: Float32[np.ndarray, "chunk action"], decision: Decision) -> None:
    if not np.isfinite(actions).all():
        raise UserError(
            f"the policy's actions are not finite (episode {decision.episode.key}, decision {decision.number}); "
            f"the checkpoint is broken, use an earlier one"
        )


@jax.jit
def _gather(table: Carry, rows: Int32[jax.Array | np.ndarray, " rows"]) -> Carry:
    return jax.tree.map(lambda leaf: leaf[rows], table)


@functools.partial(jax.jit, donate_argnums=0)  # in place: a server's table has a row per possible session
def _scatter(table: Carry, rows: Int32[jax.Array | np.ndarray, " rows"], values: Carry) -> Carry:
    return jax.tree.map(lambda leaf, new: leaf.at[rows].set(new), table, values)
