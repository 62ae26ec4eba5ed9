"""Servers of others: openpi's and starVLA's protocol spoken with openpi's own codec, vla-eval's by its own server."""

import contextlib
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import numpy as np
from openpi_client import msgpack_numpy
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import serve_async
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

Infer = Callable[[dict[str, Any]], dict[str, Any]]


@contextlib.contextmanager
def packed_server(greeting: dict[str, Any], policies: Callable[[], Infer]) -> Iterator[str]:
    """The URL of a server that greets with a map and answers each map by one; each connection has its own policy."""

    def handle(connection: ServerConnection) -> None:
        infer = policies()
        with contextlib.suppress(ConnectionClosed):
            connection.send(msgpack_numpy.packb(greeting))
            while True:
                message = msgpack_numpy.unpackb(connection.recv())
                try:
                    connection.send(msgpack_numpy.packb(infer(message)))
                except Exception:
                    connection.send(traceback.format_exc())
                    connection.close(1011)

    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join(30)


@contextlib.contextmanager
def vla_eval_server(model: PredictModelServer) -> Iterator[str]:
    """The URL of vla-eval's own server."""
    ready, found = threading.Event(), {}

    async def main() -> None:
        async with anyio.create_task_group() as group:
            found["port"] = await group.start(serve_async, model, "127.0.0.1", 0)
            found["stop"], found["token"] = group.cancel_scope, anyio.lowlevel.current_token()
            ready.set()

    thread = threading.Thread(target=anyio.run, args=(main,))
    thread.start()
    assert ready.wait(60)
    try:
        yield f"ws://127.0.0.1:{found['port']}"
    finally:
        anyio.from_thread.run_sync(found["stop"].cancel, token=found["token"])
        thread.join(60)


class Recognising:
    """Replays recorded actions of the episode whose first observation it is shown."""

    def __init__(self, recordings: dict[float, np.ndarray], steps: int) -> None:
        self._recordings, self._steps = recordings, steps
        self._rest = np.zeros((0, 7), np.float32)

    def next(self, state: np.ndarray) -> np.ndarray:
        """The next actions; a state at control step 0 begins an episode."""
        if state[1] == 0:
            self._rest = self._recordings[round(float(state[0]), 4)]
        chunk, self._rest = self._rest[: self._steps], self._rest[self._steps :]
        hold = np.tile(np.array([0, 0, 0, 0, 0, 0, -1], np.float32), (self._steps - len(chunk), 1))
        return np.concatenate([chunk, hold])
