"""Wrong frames into a server that is a process of its own, over sockets and in all dialects; then a crowd that thins.

``WMJAX_TEST_FUZZ_FRAMES=100000 python -m pytest -m long -s tests/serving/test_fuzz_process.py`` sends so many frames, a
connection each. Each must end in an error message or a closed connection, or in actions if it happens to be right. The
server keeps running and reports no mistake of its own, its memory stays, and the actions of a client that is connected
all the time stay those of the policy in process, bit for bit.
"""

import asyncio
import os
import random
import resource
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from vla_eval.protocol.messages import Message, MessageType, pack_message, unpack_message
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks.serving import started
from tests.rollout.runs import save_run
from tests.serving.servers import observation
from tests.serving.test_crowd import CLIENTS, DECISIONS, VANISHING, drive
from tests.serving.test_fuzz_dialects import SHAPES, START, actions_of, fuzzed
from wmjax.data.observation import resize_image
from wmjax.policy.policy import load_policy
from wmjax.policy.policy_actor import PolicyActor
from wmjax.rollout.actors import Decision
from wmjax.serving.clients.client import CLIENTS as KINDS
from wmjax.serving.clients.client import Client, View
from wmjax.serving.clients.served_policy import connected, resolved
from wmjax.serving.dialect import Frame
from wmjax.serving.sessions import named_episode

FRAMES = int(os.environ.get("WMJAX_TEST_FUZZ_FRAMES", "3000"))
AT_ONCE = 16
"""Connections at a time."""
LARGEST = 20_000
"""Bytes of a message that the server accepts: larger ones are cheap to make."""
PROBE_NUMBER = 987_654
PROBE = pack_message(Message(MessageType.HELLO, {"protocol_version": 1}, PROBE_NUMBER))
"""Behind a frame of vla-eval, which may have no answer; this one has."""
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
STATE, SIDE, TASK = np.linspace(-0.4, 0.6, 8), 4, "a task of mine"


def shown(step: int) -> np.ndarray:
    """What both cameras of the steady episode show, [cameras, side, side, 3]."""
    return np.random.default_rng(step).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)


class Reference:
    """The same run in this process, compiled for the server's batch."""

    def __init__(self, run: Path, batch: int) -> None:
        self._policy = load_policy(run, batch_size=batch)
        self._actor = PolicyActor(self._policy)
        self._actor.prepare(CLIENTS, 8, self._policy.action_spec)

    def decision(self, slot: int, name: str, number: int, frames: np.ndarray, state: np.ndarray) -> Decision:
        """What the server makes of ``frames`` [frames, cameras, side, side, 3], which it enlarges."""
        size = self._policy.observation_spec.image_size
        large = np.stack([[resize_image(view, size) for view in frame] for frame in frames])
        large = np.repeat(large, 2 // len(large), 0)
        return Decision(slot, named_episode(name), number, 8 * number, large, state.astype(np.float32), TASK)

    def steady(self) -> list[np.ndarray]:
        """Both chunks of the steady episode."""
        second = np.stack([shown(4), shown(8)])
        decisions = [self.decision(0, "steady", n, f, STATE) for n, f in enumerate([shown(0)[None], second])]
        return [self._actor.act([decision])[0].actions for decision in decisions]

    def crowd(self) -> dict[tuple[int, int], np.ndarray]:
        """The chunks of all of the crowd's clients and decisions."""
        found = {}
        for number in range(DECISIONS):
            decisions = []
            for index in range(CLIENTS):
                sent = observation(index, number, frames=2)
                frames = np.stack([sent["observation/image"], sent["observation/wrist_image"]], 1)
                decisions.append(self.decision(index, f"e{index}", number, frames, sent["observation/state"]))
            for index, plan in enumerate(self._actor.act(decisions)):
                found[index, number] = plan.actions
        return found


def steady(client: Client) -> list[np.ndarray]:
    """Both chunks of the steady episode as a server answers them; of vla-eval, the action of each step."""
    chosen, found = resolved(client, {}), []
    for step in range(9) if client.every_step else (0, 8):
        due = [step] if client.every_step or step == 0 else [4, 8]
        images = list(np.stack([shown(each) for each in due], axis=1))
        client.ask(View(images, STATE, TASK, named_episode("steady"), step, step == 0), chosen)
        found.append(client.answer())
    return [np.concatenate(found[:8]), found[8]] if client.every_step else found


def check_steady(clients: dict[str, Client], expected: list[np.ndarray]) -> None:
    """Every dialect's client gets the actions of the policy in process."""
    for dialect, client in clients.items():
        for actions, chunk in zip(steady(client), expected, strict=True):
            found = np.array(actions)
            if dialect == "starvla":
                found[:, 6] = 1 - 2 * found[:, 6]
            np.testing.assert_array_equal(found.astype(np.float32), chunk[: len(found)], err_msg=dialect)


def told(dialect: str, answer: Frame) -> str | None:
    """The error that an answer tells; None for another answer."""
    if isinstance(answer, str):
        return answer
    if dialect == "vla-eval":
        found = unpack_message(answer)
        return str(found.payload["error"]) if found.type == MessageType.ERROR else None
    error = msgpack_numpy.unpackb(answer).get("error") if dialect == "starvla" else None
    return None if error is None else str(error["message"])


async def outcome(dialect: str, url: str, frame: Frame, begun: bool) -> str:
    """What becomes of a frame on a connection of its own; anything but the ends that are allowed fails."""
    async with connect(url, compression=None, max_size=None, ping_interval=None, open_timeout=120) as client:
        spoken = dialect == "vla-eval"
        try:
            for word in [START] * (begun and spoken) + [frame] + [PROBE] * spoken:
                await client.send(word)
            if not spoken:
                await client.recv()  # the greeting
            kind = "other"
            while True:
                answer = await asyncio.wait_for(client.recv(), 120)
                if (error := told(dialect, answer)) is not None:
                    assert "\n" not in error and "mistake" not in error and "failed" not in error, (frame, error)
                    await asyncio.wait_for(client.wait_closed(), 60)
                    assert client.close_code == 1011, frame
                    return "error"
                if (actions := actions_of(dialect, answer)) is not None:
                    assert actions.shape[1] == 7 and np.isfinite(actions).all() and (abs(actions) <= 1).all(), frame
                    kind = "action"
                if not spoken or unpack_message(answer).seq == PROBE_NUMBER:
                    return kind
        except ConnectionClosed as closed:
            assert closed.rcvd is not None and closed.rcvd.code == 1009, (frame, closed)
            return "closed"


async def raw_bytes(url: str, dice: random.Random) -> str:
    """Bytes that are no WebSocket frames, or no HTTP; the client then waits for the end, or vanishes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    start = dice.choice([b"", UPGRADE, UPGRADE[: dice.randrange(len(UPGRADE))]])
    writer.write(start + dice.randbytes(dice.choice([1, 30, 3000])))
    try:
        await writer.drain()
        await asyncio.wait_for(reader.read(), dice.choice([0.01, 0.2]))
    except (TimeoutError, ConnectionError):
        pass
    writer.transport.abort()
    return "raw bytes"


def made(dice: random.Random, dialect: str) -> Frame:
    """A wrong frame: those of the other test, and large ones."""
    if dice.random() < 0.02:
        return dice.randbytes(2 * LARGEST) if dice.random() < 0.5 else bytes(SHAPES[dialect][1]({"a": "x" * LARGEST}))
    return fuzzed(dice, dialect)


async def storm(urls: dict[str, str], frames: int, dice: random.Random) -> Counter[str]:
    """So many frames over all dialects, some at a time."""
    counts: Counter[str] = Counter()
    left = iter(range(frames))

    async def one_after_the_other() -> None:
        for _ in left:
            dialect = dice.choice(sorted(urls))
            if dice.random() < 0.02:
                counts[await raw_bytes(urls[dialect], dice)] += 1
            else:
                kind = await outcome(dialect, urls[dialect], made(dice, dialect), dice.random() < 0.75)
                counts[f"{dialect}: {kind}"] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(one_after_the_other())
    return counts


def memory(process: subprocess.Popen[bytes]) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return save_run(tmp_path_factory.mktemp("fuzz") / "e2", "e2", "flow")


@pytest.mark.long
def test_no_frame_harms_a_server_process(run, tmp_path) -> None:
    reference, log, dice, counts = Reference(run, 1), tmp_path / "server.log", random.Random(FRAMES), Counter()
    limit = ["--max-message-mb", str(LARGEST / 2**20), "--max-sessions", str(AT_ONCE + 32)]
    with log.open("wb") as lines, started(run, 1, sorted(SHAPES), *limit, log=lines) as (process, urls):
        clients = {dialect: connected(KINDS.resolve(dialect), url) for dialect, url in urls.items()}
        expected, sizes, began = reference.steady(), [], time.monotonic()
        for _ in range(20):
            check_steady(clients, expected)
            sizes.append(memory(process))
            counts += asyncio.run(storm(urls, FRAMES // 20, dice))
            assert process.poll() is None
        check_steady(clients, expected)
        sizes.append(memory(process))
        seconds = time.monotonic() - began
        for client in clients.values():
            client.close()
    print(f"\n{counts.total()} frames in {seconds:.0f} s: {dict(sorted(counts.items()))}")
    print("server's memory, MB:", [round(size / 1e6) for size in sizes])
    assert not {"Traceback", "mistake"} & set(log.read_text().replace(":", " ").split())
    assert counts.total() == FRAMES // 20 * 20 and all(counts[f"{dialect}: error"] for dialect in urls)
    assert sizes[-1] < 1.1 * sizes[0]


@pytest.mark.long
def test_thirty_of_a_hundred_clients_of_a_server_process_vanish(run, tmp_path) -> None:
    expected, more, sizes = Reference(run, 8).crowd(), ["--max-sessions", str(CLIENTS)], []
    with (tmp_path / "log").open("wb") as log, started(run, 8, ["openpi"], *more, log=log) as (process, urls):
        served: Any = SimpleNamespace(url=urls["openpi"])
        for _ in range(3):
            found: dict[int, list[np.ndarray]] = {}
            crowd = [threading.Thread(target=drive, args=(served, index, found)) for index in range(CLIENTS)]
            for thread in crowd:
                thread.start()
            for thread in crowd:
                thread.join(400)
            sizes.append(memory(process))
            assert sum(len(actions) == DECISIONS for actions in found.values()) == CLIENTS - VANISHING
            for index, actions in found.items():
                for number, chunk in enumerate(actions):
                    np.testing.assert_array_equal(chunk, expected[index, number])
        assert process.poll() is None and sizes[-1] < 1.1 * sizes[0]
    print("\nserver's memory after each crowd, MB:", [round(size / 1e6) for size in sizes])
