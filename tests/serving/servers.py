"""A server in a thread of this process, and messages for it."""

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from tests.rollout.fake_policy import FakePolicy
from wmjax.policy.policy_actor import Policy, PolicyActor
from wmjax.rollout.actors import Decision
from wmjax.serving.server import PolicyServer
from wmjax.serving.sessions import named_episode
from wmjax.serving.settings import ServeSettings

ANY_PORT = ServeSettings(listen=("openpi:0",), seed=1)


@dataclasses.dataclass
class Running:
    """A server that runs: its port, and what is inside."""

    server: PolicyServer
    clients: list[WebsocketClientPolicy] = dataclasses.field(default_factory=list)

    @property
    def port(self) -> int:
        return self.server.addresses[0][1]

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def client(self, **more: Any) -> WebsocketClientPolicy:
        self.clients.append(WebsocketClientPolicy("127.0.0.1", self.port, **more))
        return self.clients[-1]

    def settle(self) -> None:
        """Closes all clients and waits until no session is left."""
        while self.clients:
            self.clients.pop()._ws.close()
        deadline = time.monotonic() + 60
        while self.server._sessions.count:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@contextlib.contextmanager
def running(policy: Policy | None = None, **changes: Any) -> Iterator[Running]:
    """Serves a policy (the fake one) from another thread."""
    settings = dataclasses.replace(ANY_PORT, **changes)
    server = PolicyServer(policy or FakePolicy(settings.max_batch), settings, {"recipe": "fake"})
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def main() -> None:
        async with server:
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    try:
        assert ready.wait(900)
        yield Running(server)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(300)
        assert not thread.is_alive()
        loop.close()


def observation(index: int = 0, number: int = 0, frames: int | None = None, **more: Any) -> dict[str, Any]:
    """What a client of the fake policy sends at a decision; None: one frame without an axis for frames."""
    random = np.random.default_rng([index, number])
    images = random.integers(0, 255, (2, frames or 1, 4, 4, 3), np.uint8)
    return {
        "observation/image": images[0] if frames else images[0, 0],
        "observation/wrist_image": images[1] if frames else images[1, 0],
        "observation/state": random.normal(size=8),
        "prompt": "a task of mine",
        **more,
    }


class InProcess:
    """The answers of :class:`PolicyActor` itself to the same observations of one episode."""

    def __init__(self, name: str, batch_size: int = 1, policy: FakePolicy | None = None) -> None:
        policy = policy or FakePolicy(batch_size)
        self._actor = PolicyActor(policy, seed=1)
        self._episode = named_episode(name)
        self._horizon = policy.frames_per_decision * policy.observation_spec.frame_stride
        self._actor.prepare(1, self._horizon, policy.action_spec)

    def act(
        self, sent: dict[str, Any], number: int, forget: bool = False, pending: np.ndarray | None = None
    ) -> np.ndarray:
        images = [sent["observation/image"], sent["observation/wrist_image"]]
        frames = np.stack([image.reshape(-1, 4, 4, 3) for image in images], 1)
        frames = np.repeat(frames, self._horizon // 4 // len(frames), 0)
        state, step = sent["observation/state"].astype(np.float32), self._horizon * number
        decision = Decision(
            0, self._episode, number, step, frames, state, sent["prompt"], pending=pending, forget=forget
        )
        return self._actor.act([decision])[0].actions
