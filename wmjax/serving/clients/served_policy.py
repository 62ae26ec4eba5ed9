"""A policy that another program serves, as an actor: one connection per simulator, used in parallel."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from wmjax.core.errors import UserError
from wmjax.core.handover import Realtime
from wmjax.core.settings import Corruption
from wmjax.core.specs import OTHER_ROBOT, ActionSpec, ObservationSpec, from_dict, require_same_actions
from wmjax.rollout.actors import Chunk, Decision, Plan
from wmjax.serving.clients.client import Client, View
from wmjax.serving.clients.conventions import (
    PRESETS,
    Conventions,
    conventions,
    expected_image,
    expected_state,
    raw_actions,
)
from wmjax.sim.episode import EpisodeId

KEY = "WMJAX_API_KEY"
"""The environment variable with the key that a server requires."""


def connected(kind: type[Client], url: str, timeout_s: float = Conventions.timeout_s) -> Client:
    """A connection that has been greeted.

    Raises:
        UserError: no server listens there, or it speaks another dialect.

    """
    client = kind(url, os.environ.get(KEY, ""), timeout_s)
    try:
        client.greet()
    except BaseException:
        client.close()
        raise
    return client


def resolved(client: Client, changes: Mapping[str, Any]) -> Conventions:
    """A policy's conventions: a preset, the server's description of itself, and the given settings.

    Args:
        client: a connection that has been greeted.
        changes: settings of :class:`Conventions` by name.

    Raises:
        UserError: unknown settings, impossible values, or settings of a server of wmjax, which says what it needs.

    """
    usual = client.dialect if client.dialect in PRESETS else "openpi"
    if not client.own:
        return conventions(changes.get("preset") or usual, client.implied(), dict(changes))
    if surplus := [name for name in changes if name not in ("timeout_s", "name")]:
        raise UserError(
            f"foreign.{surplus[0]} is set, but {client.url} is a server of wmjax, which says itself what its policy "
            "needs; leave it out"
        )
    spec = own_spec(client)
    needed: dict[str, Any] = {
        "cameras": list(spec.cameras), "drawn_size": spec.image_size, "image_size": spec.image_size, "state": "full",
        "rotation": "robosuite", "gripper_binary": False, "horizon": client.card.get("open_loop_horizon"),
    }  # fmt: skip
    if client.every_step:
        needed["horizon"] = 1
    if client.raw_gripper:
        needed |= {"gripper_open": None, "gripper_closed": None}
    return conventions(usual, needed, dict(changes))


def own_spec(client: Client) -> ObservationSpec:
    """The observation spec that a server of wmjax declares; with every frame, if its dialect asks at every step.

    Raises:
        UserError: a server of another version.

    """
    values = dict(client.card.get("observation") or {})
    if client.every_step:
        values["frame_stride"] = 1
    return from_dict(ObservationSpec, values, f"the greeting of {client.url}")


def require_same_robot(card: Mapping[str, Any], action_spec: ActionSpec, url: str) -> None:
    """Refuses a server of wmjax whose policy has other actions than the environment.

    Raises:
        UserError: names the field and both values.

    """
    served = from_dict(ActionSpec, dict(card.get("action") or {}), f"the greeting of {url}")
    require_same_actions(served, action_spec, f"the environment that {url} is asked from", OTHER_ROBOT)


def as_expected(
    frames: UInt8[np.ndarray, "frames cameras height width 3"],
    state: Float32[np.ndarray, " state"],
    spec: ObservationSpec,
    chosen: Conventions,
) -> tuple[list[UInt8[np.ndarray, "frames size size 3"]], Float64[np.ndarray, " shown"] | None]:
    """An observation of ``spec`` as the policy expects it: the images of each of its cameras, and the state."""
    places = [spec.cameras.index(camera) for camera in chosen.cameras]
    images = [np.stack([expected_image(frame, chosen) for frame in frames[:, place]]) for place in places]
    return images, expected_state(state, spec, chosen)


class ServedPolicy:
    """Requests the actions of any number of slots from a server.

    A server of wmjax receives the episode's name and every frame that fell due, so it answers as the policy in process
    does. Any other is sent what its own clients send: the newest images, the state and the instruction.

    Args:
        first: a connection that has been greeted; the other slots get connections to the same place.
        chosen: the policy's conventions.
        spec: what the environment shows.
        name: for headers.

    """

    needs_frames = True
    inside = False
    future_frames = 0
    corruption: Corruption = "none"
    realtime: Realtime = "none"
    pending_steps = 0

    def __init__(self, first: Client, chosen: Conventions, spec: ObservationSpec, name: str) -> None:
        self._clients, self._chosen, self.name = [first], chosen, name
        self.observation_spec = spec

    def prepare(self, slots: int, horizon: int, action_spec: ActionSpec) -> None:
        """Connects every slot.

        Raises:
            UserError: a server of wmjax serves another robot, or see :func:`connected`.

        """
        first = self._clients[0]
        if first.own:
            require_same_robot(first.card, action_spec, first.url)
        self._action_spec, self._horizon = action_spec, horizon
        while len(self._clients) < slots:
            self._clients.append(connected(type(first), first.url, first.timeout_s))

    def settled_state(self, episode: EpisodeId) -> Float64[np.ndarray, " sim"] | None:
        """The episode's own."""
        return None

    def act(self, decisions: Sequence[Decision]) -> list[Plan]:
        """One plan per decision; all requests are sent before any answer is read.

        Raises:
            UserError: the server refuses, fails or is gone.

        """
        asked = [decision for decision in decisions if decision.step >= self._chosen.wait_steps]
        for decision in asked:
            self._clients[decision.slot].ask(self._view(decision), self._chosen)
        chunks = {decision.slot: self._answer(self._clients[decision.slot]) for decision in asked}
        return [Plan(chunks[d.slot] if d.slot in chunks else self._hold()) for d in decisions]

    def close(self) -> None:
        """Closes all connections."""
        for client in self._clients:
            client.close()

    def _answer(self, client: Client) -> Chunk:
        return raw_actions(client.answer(), self._action_spec, self._chosen)

    def _hold(self) -> Chunk:
        """The actions that hold still until the wait is over."""
        return np.tile(np.array(self._action_spec.hold, np.float32), (self._horizon, 1))

    def _view(self, decision: Decision) -> View:
        wait = self._chosen.wait_steps
        first = wait <= decision.step < wait + self._horizon
        alone = first or not self._clients[0].own  # at a first decision the frames are one, repeated
        frames = decision.frames[-1:] if alone else decision.frames
        images, state = as_expected(frames, decision.state, self.observation_spec, self._chosen)
        return View(images, state, decision.instruction, decision.episode, decision.step, first)
