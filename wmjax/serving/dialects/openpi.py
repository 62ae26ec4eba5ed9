"""openpi's protocol: the server sends a map about itself, then every packed observation gets packed actions.

The client is ``openpi_client.websocket_client_policy.WebsocketClientPolicy`` (PyPI ``openpi-client``, tested with
0.1.2); the keys of observations are those of openpi's LIBERO example, or the policy's own names of cameras.
"""

import time
from typing import Any

from wmjax.core.errors import UserError, unknown_name
from wmjax.serving.dialect import Dialect, Frame
from wmjax.serving.packed import pack, unpack
from wmjax.serving.request import (
    Request,
    Service,
    read_frames,
    read_pending,
    read_state,
    read_step,
    read_text,
    required,
)
from wmjax.serving.sessions import Session

LIBERO_NAMES = {"agentview": "image", "robot0_eye_in_hand": "wrist_image"}
"""What openpi's LIBERO example calls our cameras."""
STATE, PROMPT, SESSION, EPISODE, STEP, PENDING = (
    "observation/state", "prompt", "session_id", "wmjax/episode", "wmjax/step", "wmjax/pending"
)  # fmt: skip


class OpenPI(Dialect):
    """One client of openpi's protocol."""

    name = "openpi"

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._cameras = {camera: _names(camera) for camera in service.observation.cameras}
        images = [name for names in self._cameras.values() for name in names]
        self._known = (*images, STATE, PROMPT, SESSION, EPISODE, STEP, PENDING)
        self._previous_ms: float | None = None

    def greeting(self) -> Frame:
        """The metadata: the policy, its training data, and the keys that a client must send."""
        return pack(
            {
                **self.service.about(),
                "keys": {"images": {camera: list(names) for camera, names in self._cameras.items()}, "others": {
                    "state": STATE, "prompt": PROMPT, "session": SESSION, "episode": EPISODE, "step": STEP,
                    "pending": PENDING,
                }},
            }
        )  # fmt: skip

    async def answer(self, frame: Frame, session: Session) -> Frame:
        """The actions for one observation."""
        began = time.perf_counter()
        if isinstance(frame, str):
            raise UserError("the message is text; send one packed map as bytes")
        request = self._request(unpack(frame, self.service.limits))
        asked = time.perf_counter()
        reply = await session.decide(request)
        timing = {"infer_ms": 1e3 * (time.perf_counter() - asked), "policy_ms": reply.policy_ms}
        if self._previous_ms is not None:
            timing["prev_total_ms"] = self._previous_ms
        answer = pack({"actions": reply.actions, "server_timing": timing, "wmjax/history": reply.history})
        self._previous_ms = 1e3 * (time.perf_counter() - began)
        return answer

    def _request(self, message: dict[str, Any]) -> Request:
        for key in message:
            if key not in self._known:
                raise unknown_name("observation key", key[:60], self._known)
        images = {camera: self._image(message, camera) for camera in self._cameras}
        return Request(
            frames=read_frames(images, self.service),
            state=read_state(STATE, required(message, STATE), self.service),
            instruction=read_text(PROMPT, required(message, PROMPT)),
            episode=read_text(EPISODE, message[EPISODE]) if EPISODE in message else None,
            session=read_text(SESSION, message[SESSION]) if SESSION in message else None,
            step=read_step(STEP, message[STEP]) if STEP in message else None,
            pending=read_pending(PENDING, message[PENDING], self.service) if PENDING in message else None,
        )

    def _image(self, message: dict[str, Any], camera: str) -> tuple[str, Any]:
        """A camera's key in a message, and its value."""
        names = self._cameras[camera]
        found = [name for name in names if name in message]
        if len(found) > 1:
            raise UserError(f"{' and '.join(found)} are the same camera; send one of them")
        name = found[0] if found else names[-1]
        return name, required(message, name)


def _names(camera: str) -> tuple[str, ...]:
    """The keys under which a camera's image may come: the policy's own name, and openpi's."""
    own = f"observation/{camera}"
    return (own, f"observation/{LIBERO_NAMES[camera]}") if camera in LIBERO_NAMES else (own,)
