"""A client of vla-eval's protocol, as ``vla_eval.connection`` and its synchronous runner have it."""

import time
from typing import Any

import numpy as np
from jaxtyping import Float

from wmjax.core.errors import UserError
from wmjax.serving.clients.client import Client, View
from wmjax.serving.clients.conventions import Conventions
from wmjax.serving.packed_text import NAMES, PROTOCOL_VERSION, arrays, pack_text_keys

GREETING_S = 60.0


class VlaEvalClient(Client):
    """Greets first, announces episodes and their ends, and asks at every control step: the server has the chunks."""

    dialect = "vla-eval"
    every_step = True

    def __init__(self, url: str, key: str = "", timeout_s: float = Conventions.timeout_s) -> None:
        super().__init__(url, key, timeout_s)
        self._number, self._within = 0, False

    def greet(self) -> None:
        """Says hello.

        Raises:
            UserError: the server speaks another dialect, or another version of it.

        """
        self._send_message(
            "hello", {"harness_version": "wmjax", "protocol_version": PROTOCOL_VERSION, "benchmark": "libero"}
        )
        payload = self._hear("hello", GREETING_S)
        version = payload.get("protocol_version")
        if version != PROTOCOL_VERSION:
            raise UserError(f"{self.url} speaks protocol_version {version!r} of vla-eval, wmjax {PROTOCOL_VERSION}")
        own = payload.get("wmjax")
        self.card = payload | (own if isinstance(own, dict) else {})

    def implied(self) -> dict[str, Any]:
        """The conventions that the server requests from the benchmark.

        Raises:
            UserError: it wants what LIBERO's environment of wmjax does not have.

        """
        wanted = self.card.get("observation_params")
        wanted = wanted if isinstance(wanted, dict) else {}
        if wanted.get("absolute_action"):
            raise UserError(f"{self.url} answers absolute poses; only deltas of LIBERO's controller can be executed")
        cameras = Conventions.cameras if wanted.get("send_wrist_image") else Conventions.cameras[:1]
        return {
            "horizon": 1,
            "cameras": list(cameras),
            "state": "full" if wanted.get("send_state") else "none",
            "rotation": "robosuite" if wanted.get("quat_no_antipodal") else "shortest",
        }

    def ask(self, view: View, chosen: Conventions) -> None:
        """Sends an observation; at an episode's first decision it first announces the episode."""
        if view.first:
            self._begin(view)
        images = {NAMES.get(c, c): frames[-1] for c, frames in zip(chosen.cameras, view.images, strict=True)}
        sent: dict[str, Any] = {"images": images, "task_description": view.instruction}
        self._send_message("observation", sent if view.state is None else {**sent, "states": view.state})

    def _begin(self, view: View) -> None:
        """Announces an episode as vla-eval's LIBERO benchmark does; servers of wmjax receive its whole identity."""
        if self._within:
            self._send_message("episode_end", {})
        episode = view.episode
        task: dict[str, Any] = {"name": view.instruction, "suite": episode.suite, "task_id": episode.task_id}
        task["episode_idx"] = episode.index
        self._send_message("episode_start", {"task": {**task, "wmjax/episode": episode.key} if self.own else task})
        self._within = True

    def answer(self) -> Float[np.ndarray, "steps action"]:
        """The action of this control step.

        Raises:
            UserError: see :meth:`Client.answer`.

        """
        payload = self._hear("action", self.timeout_s)
        return np.atleast_2d(self._numbers(payload.get("actions", payload.get("action"))))

    def _send_message(self, kind: str, payload: dict[str, Any]) -> None:
        self._number += 1
        self._send(pack_text_keys({"type": kind, "payload": payload, "seq": self._number, "timestamp": time.time()}))

    def _hear(self, kind: str, timeout_s: float) -> dict[str, Any]:
        """The payload of the next message."""
        message = self._read(timeout_s, arrays, finite=kind == "action")
        payload = message.get("payload")
        if message.get("type") == "error" and isinstance(payload, dict):
            raise self._refused(payload.get("error", payload))
        if message.get("type") != kind or not isinstance(payload, dict):
            raise UserError(f"{self.url} answers {str(message.get('type'))[:40]!r}, not {kind}; is it vla-eval?")
        if message.get("seq") != self._number:
            raise UserError(f"{self.url} answers message {message.get('seq')}, not {self._number}; connect again")
        return payload
