"""The policy of a checkpoint: one jitted pure function ``(carry, observation) -> (carry, chunk)``."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, UInt8

from wmjax.core.errors import UserError
from wmjax.core.handover import Realtime, make_handover
from wmjax.core.rng import stable_hash
from wmjax.core.settings import SHUFFLED, Corruption
from wmjax.core.specs import ActionSpec, EncoderSpec, ObservationSpec
from wmjax.core.specs import from_dict as spec_from_dict
from wmjax.data.observation import Observation, Prompt, require_observation
from wmjax.data.statistics import clip_action, denormalise_action, normalise_action, normalise_latents
from wmjax.experiment.config import Experiment
from wmjax.models.heads.base import Known, require_inpainting
from wmjax.models.inputs import ModelInput
from wmjax.models.prompts import make_prepare
from wmjax.models.vla import VLA
from wmjax.models.world.config import intervention_error
from wmjax.policy.carry import Carry, beside, encode_new_frames, observe
from wmjax.policy.interventions import Donor, Errors, mix
from wmjax.policy.pending_input import PendingInput
from wmjax.policy.places import Places
from wmjax.policy.restore import restore_encoder, restore_model
from wmjax.policy.saved import find_policy


class Policy:
    """A trained model that acts. Built by :func:`load_policy`.

    Attributes:
        observation_spec, action_spec, encoder_spec: the specs of the training data.
        batch_size: rows of every call; slots without an episode are padding.
        frames_per_decision: frames that an observation carries, ``open_loop_horizon / frame_stride``.
        future_frames: frames of the true future that every call needs under an oracle; 0 without one.
        corruption: the replacement of the world memory for the action tokens.
        realtime: how its chunks continue earlier ones under a delay.
        handover: the steps that they share; None without real-time execution.
        pending_input: how the network takes pending actions.
        pending_steps: how many pending actions a decision takes, from an episode's second on; 0 if it takes none.
        committed: the first actions of a chunk, which are not executed because earlier chunks' actions are.

    """

    def __init__(
        self,
        experiment: Experiment,
        specs: dict[str, Any],
        params: dict[str, Array],
        base: str | None = None,
        *,
        batch_size: int,
        open_loop_horizon: int,
        oracle: float | None = None,
        corruption: Corruption = "none",
        realtime: Realtime = "none",
        execution_delay: int = 0,
    ):
        self.experiment = experiment
        self.observation_spec = spec_from_dict(ObservationSpec, specs["observation"], "checkpoint")
        self.action_spec = spec_from_dict(ActionSpec, specs["action"], "checkpoint")
        # Older checkpoints of e0plus name an encoder, which is not used.
        encoder = specs["encoder"] if experiment.model.memory.reads_latents else None
        self.encoder_spec = None if encoder is None else spec_from_dict(EncoderSpec, encoder, "checkpoint")
        self.batch_size, self.open_loop_horizon = batch_size, open_loop_horizon
        stride = self.observation_spec.frame_stride
        if open_loop_horizon % stride or not 0 < open_loop_horizon <= self.action_spec.chunk:
            raise UserError(
                f"open_loop_horizon is {open_loop_horizon}; it must be a multiple of frame_stride ({stride}) "
                f"and at most the action chunk ({self.action_spec.chunk})"
            )
        self.frames_per_decision = open_loop_horizon // stride
        self.oracle = oracle
        self.future_frames = 0 if oracle is None else experiment.model.prophet.future
        self.corruption: Corruption = corruption
        if reason := intervention_error(experiment.model.memory, oracle, corruption):
            raise UserError(reason)
        self.realtime: Realtime = realtime
        self.handover = make_handover(
            realtime, chunk=self.action_spec.chunk, horizon=open_loop_horizon, delay=execution_delay,
            trained_delay=experiment.train.delay,
        )  # fmt: skip
        self.pending_input = PendingInput.of(experiment, self.observation_spec, self.action_spec)
        self.pending_steps = self.pending_input.steps if self.handover is None else self.handover.pending
        self.committed = 0 if self.handover is None else self.handover.committed
        require_inpainting(experiment.model.head.kind, realtime)
        self._prepare = make_prepare(experiment.prompt, experiment.model, self.observation_spec)
        self._model: VLA = restore_model(experiment, params, base)
        self._encoder, self._cameras = None, np.zeros(0, np.int32)
        if self.encoder_spec is not None:
            self._encoder = restore_encoder(experiment.encoder, self.encoder_spec)
            self._cameras = np.array([self.observation_spec.cameras.index(name) for name in self.encoder_spec.cameras])
        graph, state = nnx.split(self._model)
        # A list, which jax takes apart in C++ at every call; states of NNX, in Python.
        parameters = (state, None if self._encoder is None else self._encoder.params)
        self._arrays, structure = jax.tree.flatten(parameters)
        self._step = jax.jit(functools.partial(self._act, graph, structure), donate_argnums=1)

    @property
    def predicts(self) -> bool:
        """Whether the policy has a Prophet that predicts the latents of its encoder."""
        return self._model.world.prophet is not None and self.encoder_spec is not None

    def prophet_latents(self, latents: Float32[np.ndarray, "n tokens dim"]) -> Float32[np.ndarray, "n pooled dim"]:
        """Raw latents in the units and the shape that the Prophet predicts."""
        assert self.encoder_spec is not None
        found = self._model.world.prophet_latents(jnp.asarray(normalise_latents(latents[:, None], self.encoder_spec)))
        return np.asarray(found)[:, 0]

    def initial_carry(self) -> Carry:
        """Empty buffers; every episode's first observation refills its row."""
        size, batch = self.observation_spec.image_size, self.batch_size
        spec, prophet = self.encoder_spec, self.experiment.model.prophet
        future = (prophet.future, prophet.tokens, prophet.latent_dim) if self.predicts else (0, 0, 0)
        clip, history = (0, 0), (0, 0, 0)
        if spec is not None:
            clip = (spec.clip_length, len(spec.cameras))
            history = (prophet.history, spec.tokens_per_frame, spec.dim)
        empty = Carry(
            jnp.zeros((batch, *clip, size, size, 3), jnp.uint8),
            jnp.zeros((batch, *history)),
            jnp.zeros((batch, *future)),
        )
        # Where the decisions' own carries are, or the second decision would be compiled again.
        return jax.device_put(empty, beside(self._arrays[0]))

    def prompt(self, instruction: str) -> Prompt:
        """The tokenised instruction (batch 1, numpy).

        Raises:
            UserError: empty, or too long for the model's prompt bucket.

        """
        if not isinstance(instruction, str):
            raise UserError(f"instruction is {instruction!r}; give a text")
        return self._prepare(instruction)

    def require_prompts(self, hashes: dict[str, str]) -> None:
        """Checks that instructions give the tokens that the policy was trained on.

        Raises:
            UserError: a tokenizer or chat template with another hash.

        """
        for name, then in hashes.items():
            if (now := self._prepare.hashes[name]) != then:
                raise UserError(
                    f"the prompt's {name} has the hash {now}, the checkpoint was trained with {then}; "
                    "set prompt.tokenizer to the one it was trained with"
                )

    def __call__(
        self,
        carry: Carry,
        observation: Observation,
        keys: Array,
        future: UInt8[Array | np.ndarray, "batch future cameras height width 3"] | None = None,
        donor: Donor | None = None,
        pending: Float32[Array | np.ndarray, "batch pending dim"] | None = None,
    ) -> tuple[Carry, Float32[Array, "batch chunk dim"], dict[str, Array]]:
        """One decision for every row.

        Args:
            carry: what the rows remember; donated.
            observation: what they see.
            keys: the randomness of the head and of the corruption ``noise``, one per row.
            future: the next ``future_frames`` frames of every row, under an oracle.
            donor: what other episodes had seen, under a corruption of ``SHUFFLED``.
            pending: raw actions of earlier chunks for the next ``pending_steps`` control steps; None for a policy
                that takes none, and at an episode's first decision, when nothing but holding still is pending.

        Returns:
            The carry, raw actions within their bounds, and numbers of each row: ``memory/gate``,
            ``memory/ratio``, and ``world/error`` and ``world/copy_error``, how far the last decision's prediction of
            the newest frame was off and how far a copy would have been (NaN at an episode's first decision). Under
            an oracle also ``oracle/error`` and ``oracle/copy_error``, the same for this decision's prediction of all
            of the true future. With a Prophet that looks at something also ``observed`` [batch, history, tokens, dim],
            up to z(t), and ``imagined`` [batch, future, tokens, dim], what is predicted to follow.

        Raises:
            UserError: an observation of other types or shapes than the policy takes.
            ValueError: a future without an oracle, or an oracle without the future; the same of a donor; another number
                of pending actions than the policy takes, or none after an episode's first decision.

        """
        if (future is None) != (self.oracle is None):
            raise ValueError(f"oracle is {self.oracle}; future frames belong to an oracle and to nothing else")
        if (donor is None) != (self.corruption not in SHUFFLED):
            raise ValueError(f"corruption is {self.corruption!r}; donors belong to {SHUFFLED} and to nothing else")
        if pending is not None and (not self.pending_steps or pending.shape[1] != self.pending_steps):
            raise ValueError(f"{pending.shape[1]} pending actions; the policy takes {self.pending_steps}")
        require_observation(observation, keys, self.observation_spec)
        pending_rows = self.pending_input.rows(pending, observation)
        continued = None if self.handover is None else pending
        return self._step(self._arrays, carry, observation, keys, future, donor, continued, pending_rows)

    def _act(
        self,
        graph: nnx.GraphDef,
        structure: jax.tree_util.PyTreeDef,
        arrays: list[Array],
        carry: Carry,
        observation: Observation,
        keys: Array,
        future: UInt8[Array, "batch future cameras height width 3"] | None,
        donor: Donor | None,
        pending: Float32[Array, "batch pending dim"] | None,
        pending_rows: Float32[Array, "batch rows dim"] | None,
    ) -> tuple[Carry, Float32[Array, "batch chunk dim"], dict[str, Array]]:
        state, encoder = jax.tree.unflatten(structure, arrays)
        model, encode = nnx.merge(graph, state), self._encode(encoder)
        history = memory = None
        numbers: dict[str, Array] = {}
        if self.encoder_spec is not None:
            before = carry
            carry = observe(carry, observation.images[:, :, self._cameras], observation.first, encode)
            history = normalise_latents(carry.latents, self.encoder_spec)
        inputs = ModelInput(
            images=observation.images[:, -1],
            prompt=observation.prompt,
            latents=history,
            **self.pending_input.inputs(observation.state, pending_rows),
        )
        if self.oracle is not None and future is not None and history is not None:
            truth = self._true_future(model, encode, carry, future[:, :, self._cameras])
            memory, errors = mix(model, history, truth, self.oracle, model.prophet_context(inputs))
            numbers = errors.named("oracle")
        if self.corruption in ("noise", *SHUFFLED):
            memory = self._other_memory(model, inputs, keys, donor)
        inside, known = _inside(self.corruption), self._known(pending, observation.state)
        action, info = model.sample(inputs, keys, corruption=inside, memory=memory, known=known)
        info |= numbers
        prediction = info.pop("prediction", None)
        if prediction is not None and history is not None:
            info |= self._errors(model, before, history, observation.first)
            info |= {"observed": model.world.prepare(history), "imagined": prediction}
            carry = carry._replace(prediction=prediction)
        return carry, self._raw(action, pending, observation.state), info

    def _known(
        self, pending: Float32[Array, "batch pending dim"] | None, state: Float32[Array, "batch state"]
    ) -> Known | None:
        """What the head has to continue with real-time chunking."""
        if pending is None or self.handover is None or self.handover.method != "rtc":
            return None
        previous = normalise_action(self.handover.previous(pending), self.action_spec, state)
        free = self.handover.chunk - self.handover.overlap
        return Known(jnp.pad(previous, ((0, 0), (0, free), (0, 0))), self.handover.weights())

    def _raw(
        self,
        action: Float32[Array, "batch chunk dim"],
        pending: Float32[Array, "batch pending dim"] | None,
        state: Float32[Array, "batch state"],
    ) -> Float32[Array, "batch chunk dim"]:
        """Raw actions within their bounds, blended with the previous chunk's if so asked."""
        raw = clip_action(denormalise_action(action, self.action_spec, state), self.action_spec)
        if pending is None or self.handover is None or self.handover.method != "blend":
            return raw
        return self.handover.blend(raw, self.handover.previous(pending), self.action_spec)

    def _other_memory(
        self, model: VLA, inputs: ModelInput, keys: Array, donor: Donor | None
    ) -> Float32[Array, "batch future tokens dim"]:
        """Noise, or a donor's memory: drawn here row by row, because rows must not depend on each other."""
        if donor is None:
            prophet = self.experiment.model.prophet
            shape, name = (prophet.future, prophet.tokens, prophet.latent_dim), stable_hash("memory noise")
            return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, name), shape))(keys)
        assert self.encoder_spec is not None
        return model.recall(inputs._replace(**donor.normalised(self.encoder_spec, self.action_spec)._asdict()))

    def _errors(
        self, model: VLA, before: Carry, history: Float32[Array, "batch history tokens dim"], first: Array
    ) -> dict[str, Array]:
        """Those of the last decision's prediction of the newest frame, if the Prophet looks that far."""
        assert self.encoder_spec is not None
        ahead = self.frames_per_decision
        if ahead > before.prediction.shape[1]:
            return {}
        then = model.world.prepare(normalise_latents(before.latents, self.encoder_spec))[:, -1]
        errors = Errors.of(before.prediction[:, ahead - 1], then, model.world.prepare(history)[:, -1])
        return {name: jnp.where(first, jnp.nan, error) for name, error in errors.named("world").items()}

    def _true_future(
        self, model: VLA, encode: Any, carry: Carry, frames: UInt8[Array, "batch future cameras height width 3"]
    ) -> Float32[Array, "batch future tokens dim"]:
        """z₊: the latents of the frames that follow the carry's, as the world loss would compare them."""
        assert self.encoder_spec is not None
        _, latents = encode_new_frames(carry.clip, frames, encode)
        return model.world.prophet_latents(normalise_latents(latents, self.encoder_spec))

    def _encode(self, params: Any) -> Any:
        """From clips to latents, with the encoder's parameters inside jit."""
        return None if self._encoder is None else functools.partial(self._encoder.apply, params)


def _inside(corruption: Corruption) -> Corruption:
    """The part of a corruption that the network itself applies."""
    return "none" if corruption == "noise" else corruption


def load_policy(
    path: str | Path,
    *,
    batch_size: int = 2,
    open_loop_horizon: int | None = None,
    oracle: float | None = None,
    corruption: Corruption = "none",
    realtime: Realtime = "none",
    execution_delay: int = 0,
    places: Places | None = None,
) -> Policy:
    """A policy that acts, from a run or from a policy's folder.

    Args:
        path: a run's folder, whose newest checkpoint is taken, ``<run>/checkpoints/<step>``, a folder that
            ``python -m wmjax.export --policy`` wrote, the name of a policy that ships with wmjax, or
            ``hub:OWNER/NAME[@REVISION]`` on the Hugging Face hub, or a URL such as ``gs://bucket/run``.
        batch_size: rows per call, for as many simulators.
        open_loop_horizon: control steps executed per decision; the whole chunk by default.
        oracle: α of the oracle bracket (:class:`wmjax.rollout.protocol.Protocol`); every call then needs the future.
        corruption: of the same class; with those of ``SHUFFLED`` every call needs donors
            (:mod:`wmjax.policy.interventions`).
        realtime: of the same class; every call but an episode's first then takes ``pending`` actions, as those of a
            policy that was trained with them (``model.pending`` or ``model.roll_state``) always do.
        execution_delay: of the same class; only real-time execution depends on it.
        places: what to use in place of folders that the settings name, such as
            ``{"encoder": {"model": FOLDER}}`` on another machine.

    Raises:
        UserError: no policy there, a damaged file, specs of another version, or real-time execution that does not fit
            the policy's head or chunk.

    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size is {batch_size!r}; give a whole number of rows, at least 1")
    found = find_policy(path, places)
    meta = found.meta
    horizon = open_loop_horizon or meta["specs"]["action"]["chunk"]
    policy = Policy(
        found.experiment,
        meta["specs"],
        found.parameters(),
        meta.get("backbone_hash"),
        batch_size=batch_size,
        open_loop_horizon=horizon,
        oracle=oracle,
        corruption=corruption,
        realtime=realtime,
        execution_delay=execution_delay,
    )
    policy.require_prompts(meta.get("prompt", {}))  # checkpoints before November 2026 have none
    return policy
