"""starVLA's protocol: the server sends a map about itself, then every list of examples gets packed actions.

The peers' client is ``deployment/model_server/tools/websocket_policy_client.py`` of starVLA, whose requests are flat;
their server also takes ``{"type": "infer", "request_id": ..., "payload": {...}}``. Gripper values are 1 where the
gripper opens and 0 where it closes, as their LIBERO evaluation reads them.
"""

from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.specs import ActionSpec
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

IMAGE, LANGUAGE, STATE = "image", "lang", "state"
EPISODE, STEP, PENDING = "wmjax/episode", "wmjax/step", "wmjax/pending"
UNNORM_KEY = "wmjax"
"""The name of the one set of statistics that our policies have."""
MAX_EXAMPLES = 64


class StarVLA(Dialect):
    """One client of starVLA's protocol."""

    name = "starvla"

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._request_id: Any = "default"
        self._resets = 0

    def greeting(self) -> Frame:
        """The metadata: their client executes whole chunks, so ``action_chunk_size`` is the time between decisions."""
        service = self.service
        return pack(
            {
                **service.about(),
                "env": "wmjax",
                "action_chunk_size": service.horizon,
                "available_unnorm_keys": [UNNORM_KEY],
                "default_unnorm_key": UNNORM_KEY,
                "training_obs_image_size": [service.observation.image_size] * 2,
                "action_keys": list(service.action.names),
                "state_keys": list(service.observation.state),
                "image_keys": list(service.observation.cameras),
            }
        )

    async def answer(self, frame: Frame, session: Session) -> Frame:
        """The actions for a list of examples, or the answer to a message of another type."""
        if isinstance(frame, str):
            raise UserError("the message is text; send one packed map as bytes")
        message = unpack(frame, self.service.limits)
        self._request_id = read_request_id(message.get("request_id", "default"))
        kind, payload = message.get("type", "infer"), message.get("payload", message)
        if not isinstance(kind, str):
            raise UserError(f"type is a {type(kind).__name__}; send text, such as infer")
        if kind in ("ping", "init", "reset"):
            self._resets += kind != "ping"  # what follows is another episode
            return pack({"status": "ok", "ok": True, "type": kind, "request_id": self._request_id})
        if kind not in ("infer", "predict_action"):
            raise unknown_name("type", str(kind)[:60], ("infer", "ping", "init", "reset"))
        examples = self._examples(payload)
        replies = [await session.decide(self._request(example, session)) for example in examples]
        actions = np.stack([open_gripper(reply.actions, self.service.action) for reply in replies])
        data = {"actions": actions, "wmjax/history": [reply.history for reply in replies]}
        return pack(
            {"status": "ok", "ok": True, "type": "inference_result", "request_id": self._request_id, "data": data}
        )

    def error(self, message: str) -> Frame:
        """An answer that says what is wrong."""
        return pack(
            {
                "status": "error",
                "ok": False,
                "type": "inference_result",
                "request_id": self._request_id,
                "error": {"message": message},
            }
        )

    def _examples(self, payload: Any) -> list[dict[str, Any]]:
        """The examples of a request; keys for the sampling of starVLA's own policies are ignored."""
        if not isinstance(payload, dict):
            raise UserError(f"payload is a {type(payload).__name__}; send a map")
        key = payload.get("unnorm_key")
        if key is not None and not (isinstance(key, str) and key == UNNORM_KEY):
            raise unknown_name("unnorm_key", str(key)[:60], (UNNORM_KEY,))
        examples = payload.get("examples")
        if not isinstance(examples, list) or not all(isinstance(example, dict) for example in examples):
            raise UserError("the message has no list of maps under 'examples'; send one map per observation")
        if not 0 < len(examples) <= MAX_EXAMPLES:
            raise UserError(f"examples has {len(examples)} entries; send 1 to {MAX_EXAMPLES}")
        if len(examples) > 1 and any(EPISODE in example for example in examples):
            raise UserError(f"examples has {len(examples)} entries with an episode; one connection is in one at a time")
        return examples

    def _request(self, example: dict[str, Any], session: Session) -> Request:
        known = (IMAGE, LANGUAGE, STATE, EPISODE, STEP, PENDING)
        for key in example:
            if key not in known:
                raise unknown_name("key of an example", str(key)[:60], known)
        images, cameras = required(example, IMAGE), self.service.observation.cameras
        if not isinstance(images, list) or len(images) != len(cameras):
            found = len(images) if isinstance(images, list) else f"a {type(images).__name__}"
            raise UserError(f"{IMAGE} has {found} images; send a list of {len(cameras)} ({', '.join(cameras)})")
        named = {c: (f"{IMAGE}[{i}]", image) for i, (c, image) in enumerate(zip(cameras, images, strict=True))}
        state = required(example, STATE)
        if isinstance(state, np.ndarray) and state.ndim == 2 and len(state) == 1:
            state = state[0]
        return Request(
            frames=read_frames(named, self.service),
            state=read_state(STATE, state, self.service),
            instruction=read_text(LANGUAGE, required(example, LANGUAGE)),
            episode=read_text(EPISODE, example[EPISODE]) if EPISODE in example else None,
            session=f"{session.name}-reset-{self._resets}" if self._resets else None,
            step=read_step(STEP, example[STEP]) if STEP in example else None,
            pending=self._pending(example[PENDING]) if PENDING in example else None,
        )

    def _pending(self, value: Any) -> Float32[np.ndarray, "steps action"]:
        """Pending actions, raw, of ones whose grippers are as starVLA has them."""
        found, spec = read_pending(PENDING, value, self.service), self.service.action
        for index, opened, closed in zip(spec.grippers, spec.gripper_open, spec.gripper_closed, strict=True):
            found[:, index] = closed + (opened - closed) * found[:, index]
        return found


def read_request_id(value: Any) -> str | int:
    """The client's name of its request.

    Raises:
        UserError: it is neither text nor a number, or long.

    """
    if type(value) is int or (isinstance(value, str) and len(value) <= 200):
        return value
    raise UserError(f"request_id is a {type(value).__name__}; send a number, or text of up to 200 characters")


def open_gripper(actions: Float32[np.ndarray, "chunk action"], spec: ActionSpec) -> Float64[np.ndarray, "chunk action"]:
    """Raw actions with grippers as starVLA has them, 1 open and 0 closed; float64, so that nothing is rounded."""
    found = actions.astype(np.float64)
    for index, opened, closed in zip(spec.grippers, spec.gripper_open, spec.gripper_closed, strict=True):
        found[:, index] = (found[:, index] - closed) / (opened - closed)
    return found
