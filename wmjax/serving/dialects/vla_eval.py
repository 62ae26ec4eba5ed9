"""vla-eval's protocol: the client greets, announces episodes and their ends, and asks at every control step.

The client is ``vla_eval.connection.Connection`` (PyPI ``vla-eval``, tested with 0.8.0). Chunks stay here: the policy is
asked every ``horizon`` steps and its actions are handed out one by one. Because every step's images come, those of the
frames that fall due in between are remembered, and the policy sees what it sees in process.
"""

import contextlib
import json
import time
from typing import Any

import numpy as np

from wmjax.core.errors import UserError
from wmjax.rollout.actors import Chunk
from wmjax.serving.dialect import Dialect, Frame
from wmjax.serving.packed import unpack
from wmjax.serving.packed_text import NAMES, PROTOCOL_VERSION, EncodedImage, arrays, pack_text_keys
from wmjax.serving.request import MAX_SIDE, Request, Service, read_frames, read_state, read_text, required
from wmjax.serving.sessions import Session
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import ACTION_SPEC

LIBERO_ACTION = {
    "position": {"name": "position", "dims": 3, "format": "delta_xyz", "range": [-1.0, 1.0]},
    "rotation": {"name": "rotation", "dims": 3, "format": "axis_angle", "range": [-3.15, 3.15]},
    "gripper": {"name": "gripper", "dims": 1, "format": "binary_close_positive", "range": [-1.0, 1.0]},
}
"""What vla-eval calls LIBERO's actions (``vla_eval.specs``)."""
OTHER_ACTION = {"actions": {"name": "raw", "dims": 0, "format": "raw"}}
OBSERVATION = {
    "agentview": {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"},
    "state": {"name": "state", "dims": 8, "format": "eef_pos3_axisangle3_gripper2"},
    "language": {"name": "language", "dims": 0, "format": "language"},
}


class VlaEval(Dialect):
    """One client of vla-eval's protocol."""

    name = "vla-eval"
    health = ("/health", '{"status": "ok"}\n')
    every_step = True

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._number = 0
        self._episodes = 0
        self._episode: str | None = None
        self._step = 0
        self._due: list[np.ndarray] = []
        self._chunk: Chunk | None = None

    @classmethod
    def page(cls, path: str) -> str | None:
        """Health, and ``/config``, which changes nothing: the batch is part of the compiled policy."""
        if path.partition("?")[0] == "/config":
            return json.dumps({"applied": {}, "config": {}, "errors": ["set --max-batch of wmjax.serve"]}) + "\n"
        return super().page(path)

    async def answer(self, frame: Frame, session: Session) -> Frame | None:
        """The answer to a greeting or an observation; beginnings and ends of episodes have none."""
        if isinstance(frame, str):
            raise UserError("the message is text; send one packed map as bytes")
        message = unpack(frame, self.service.limits, arrays)
        kind, payload, number = (message.get(key) for key in ("type", "payload", "seq"))
        self._number = number if type(number) is int and abs(number) < 2**63 else 0
        if not isinstance(payload, dict):
            raise UserError(f"payload is a {type(payload).__name__}; send a map")
        match kind if isinstance(kind, str) else None:
            case "hello":
                return self._message("hello", self._hello(payload))
            case "episode_start":
                self._begin(payload, session)
            case "observation":
                return self._message("action", {"actions": await self._act(payload, session)})
            case "episode_end":
                self._episode = None
            case "error":
                raise UserError(f"the client reports an error: {str(payload.get('error'))[:200]}")
            case _:
                raise UserError(f"type is {str(kind)[:40]!r}; send hello, episode_start, observation or episode_end")
        return None

    def error(self, message: str) -> Frame:
        """An error message."""
        return self._message("error", {"error": message})

    def _message(self, kind: str, payload: dict[str, Any]) -> bytes:
        message = {"type": kind, "payload": payload, "seq": self._number, "timestamp": time.time()}
        return pack_text_keys(message)

    def _hello(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The server's description, and what the benchmark must send."""
        version = payload.get("protocol_version")
        if type(version) is not int or version != PROTOCOL_VERSION:
            raise UserError(f"protocol_version is {str(version)[:20]!r}, this server speaks {PROTOCOL_VERSION}")
        service = self.service
        libero = service.action.names == ACTION_SPEC.names
        return {
            "harness_version": "wmjax",
            "protocol_version": PROTOCOL_VERSION,
            "model_server": "wmjax",
            "capabilities": {},
            "observation_params": {"send_wrist_image": True, "send_state": True, "quat_no_antipodal": True},
            "action_spec": LIBERO_ACTION if libero else OTHER_ACTION,
            "observation_spec": OBSERVATION if libero else {},
            "wmjax": service.about(),
        }

    def _begin(self, payload: dict[str, Any], session: Session) -> None:
        self._episodes += 1
        self._episode = _episode_name(payload) or f"{session.name}-episode-{self._episodes}"
        self._step, self._due, self._chunk = 0, [], None

    async def _act(self, payload: dict[str, Any], session: Session) -> np.ndarray:
        """The action of one control step."""
        if self._episode is None:
            raise UserError("no episode has begun on this connection; send episode_start before observations")
        service = self.service
        if self._step % service.observation.frame_stride == 0:
            self._due.append(self._frame(payload))
        row = self._step % service.horizon
        if row == 0:
            reply = await session.decide(self._request(payload))
            self._chunk, self._due = reply.actions, []
        self._step += 1
        assert self._chunk is not None
        return self._chunk[row]

    def _frame(self, payload: dict[str, Any]) -> np.ndarray:
        """The images of this step, of all cameras, [1, cameras, height, width, 3]."""
        images = required(payload, "images")
        if not isinstance(images, dict):
            raise UserError(f"images is a {type(images).__name__}; send a map from cameras to images")
        named = {}
        for camera in self.service.observation.cameras:
            key = NAMES.get(camera, camera)
            image = required(images, key)
            if isinstance(image, EncodedImage):
                image = image.decode(f"images/{key}", MAX_SIDE)
            if isinstance(image, np.ndarray) and image.ndim != 3:
                raise UserError(f"images/{key} has the shape {list(image.shape)}; send [side, side, 3]")
            named[camera] = (f"images/{key}", image)
        return read_frames(named, self.service)

    def _request(self, payload: dict[str, Any]) -> Request:
        state = "states" if "states" in payload else "state"
        return Request(
            frames=np.concatenate(self._due),
            state=read_state(state, required(payload, state), self.service),
            instruction=read_text("task_description", required(payload, "task_description")),
            episode=self._episode,
            step=self._step,
        )


def _episode_name(payload: dict[str, Any]) -> str | None:
    """An episode's identity: what a client of wmjax says, or that of vla-eval's LIBERO benchmark."""
    task = payload.get("task")
    if not isinstance(task, dict):
        return None
    if "wmjax/episode" in task:
        return read_text("wmjax/episode", task["wmjax/episode"])
    suite, number, index = (task.get(key) for key in ("suite", "task_id", "episode_idx"))
    if isinstance(suite, str) and type(number) is int and type(index) is int:
        with contextlib.suppress(UserError):
            return read_text("suite", EpisodeId(suite, number, "benchmark", index).key)
    return None
