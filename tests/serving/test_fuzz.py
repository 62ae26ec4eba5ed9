"""Thousands of wrong messages: each ends in an error or a closed connection, and nobody else notices."""

import os
import random
import resource
from pathlib import Path

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.rollout.fake_policy import FakePolicy
from tests.serving.servers import InProcess, Running, observation, running
from wmjax.core.errors import UserError
from wmjax.serving.packed import Limits, unpack

FRAMES = int(os.environ.get("WMJAX_TEST_FUZZ_FRAMES", "3000"))
MESSAGE = 20_000
JUNK = [None, True, -1, 2**63, 1e300, float("nan"), "", "x" * 2000, b"\0" * 9, [], [[]], {}, {"a": {b"__ndarray__": 1}}]
ARRAYS = [
    np.zeros(8, np.float32), np.full(8, np.inf), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 3), np.uint8),
    np.zeros(()), np.zeros((2, 4, 4, 3), np.uint8), np.array(["text"]), np.zeros((1,) * 8, bool),
]  # fmt: skip

POLICY = FakePolicy(1)
"""One for all that is expected: each would be compiled anew."""


def nested(depth: int) -> object:
    value: object = 0
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def wrong_types(dice: random.Random) -> bytes:
    sent: dict = observation(dice.randrange(9), frames=dice.choice([None, 2]))
    for _ in range(dice.randint(1, 3)):
        key = dice.choice([*sent, "wmjax/episode", "session_id", "wmjax/step", "observation/agentview", "", "other"])
        match dice.randrange(4):
            case 0:
                sent.pop(key, None)
            case 1:
                sent[key] = dice.choice(JUNK)
            case 2:
                sent[key] = dice.choice(ARRAYS)
            case _:
                sent[key] = nested(dice.randrange(40))
    return bytes(msgpack_numpy.packb(sent))


def wrong_bytes(dice: random.Random) -> bytes:
    frame = bytearray(msgpack_numpy.packb(observation(dice.randrange(9))))
    match dice.randrange(5):
        case 0:
            return bytes(frame[: dice.randrange(len(frame))])
        case 1:
            return bytes(frame) + dice.randbytes(dice.randint(1, 9))
        case 2:
            for _ in range(dice.randint(1, 4)):
                frame[dice.randrange(len(frame))] = dice.randrange(256)
            return bytes(frame)
        case 3:
            start = dice.randrange(len(frame))
            del frame[start : start + dice.randint(1, 20)]
            return bytes(frame)
        case _:
            return dice.randbytes(dice.choice([0, 1, 5, 50, 500, 2 * MESSAGE]))


def wrong_arrays(dice: random.Random) -> bytes:
    array = {b"__ndarray__": True, b"data": b"\0" * 48, b"dtype": "|u1", b"shape": [4, 4, 3]}
    name = dice.choice(["|O8", "|V8", "<c8", "<f4", "<M8", "<U1", "<U0", "f4,f4", "O", "", "<f99", 3, None])
    shape = dice.choice([[-1], [2**40, 2**40], [48], [4.0, 4, 3], "443", [1] * 99, [0, 2**62], None])
    array[dice.choice([b"dtype", b"shape", b"data", b"more"])] = dice.choice([name, shape, b"", 7])
    scalar = {b"__npgeneric__": True, b"data": dice.choice(JUNK), b"dtype": name}
    key = dice.choice(["observation/image", "observation/state", "prompt", "wmjax/step"])
    sent = observation() | {key: dice.choice([array, scalar])}
    return bytes(msgpack_numpy.packb(sent))


def bombs(dice: random.Random) -> bytes:
    depth = dice.choice([10, 600, 9000])
    return dice.choice(
        [b"\x91" * depth + b"\0", b"\x81\xa0" * depth + b"\0", b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff\xa0",
         b"\xc6\xff\xff\xff\xff\0", b"\xc1", b"\xc7\x01\x05\0", bytes(msgpack.packb(list(range(9999)))), b"\x80"]
    )  # fmt: skip


def expected(frame: bytes, connection: int) -> np.ndarray | None:
    """The actions for a frame that happens to be right, as the policy in process decides; None for a wrong one."""
    try:
        sent = unpack(frame, Limits(size=MESSAGE))
    except UserError:
        return None
    for key in {"prompt", "wmjax/episode", "session_id"} & set(sent):
        if isinstance(sent[key], np.ndarray):
            sent[key] = sent[key].item()
    name = sent.get("wmjax/episode", sent.get("session_id", f"connection-{connection}-1"))
    known = {"observation/agentview": "observation/image"}
    sent = {known.get(key, key): value for key, value in sent.items()}
    if "wmjax/episode" not in sent and "session_id" not in sent:
        for key in ("observation/image", "observation/wrist_image"):
            sent[key] = sent[key][-1:] if sent[key].ndim == 4 else sent[key]
    return InProcess(str(name), policy=POLICY).act(sent, 0) if sent["observation/image"].shape[-2] == 4 else None


@pytest.fixture(scope="module")
def served():
    with running(max_message=MESSAGE, max_sessions=8) as found:
        yield found


def opened(served: Running) -> tuple[ClientConnection, int]:
    client = connect(served.url, compression=None, legacy=True)
    client.recv(timeout=60)
    return client, served.server._sessions._opened


def memory() -> int:
    """Resident bytes of this process, server and client."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
def test_no_wrong_message_crashes_the_server_or_gets_a_wrong_action(served: Running) -> None:
    dice, counts = random.Random(7), {"error": 0, "closed": 0, "right": 0}
    steady, alone = served.client(), InProcess("steady")
    before, started = 0, 0
    for turn in range(FRAMES):
        frame = dice.choice([wrong_types, wrong_types, wrong_bytes, wrong_bytes, wrong_arrays, bombs])(dice)
        client, number = opened(served)
        try:
            client.send(frame if dice.random() < 0.98 else frame.decode("latin1"))
            answer = client.recv(timeout=60)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None and closed.rcvd.code == 1009, frame
            counts["closed"] += 1
        else:
            if isinstance(answer, str):
                assert "\n" not in answer and "mistake" not in answer and "failed" not in answer, (frame, answer)
                counts["error"] += 1
            else:
                actions = expected(frame, number)
                assert actions is not None, frame
                np.testing.assert_array_equal(msgpack_numpy.unpackb(answer)["actions"], actions)
                counts["right"] += 1
        client.close()
        if turn % 100 == 0:
            sent = observation(1, turn, frames=2)
            answer = steady.infer({**sent, "wmjax/episode": "steady"})
            np.testing.assert_array_equal(answer["actions"], alone.act(sent, turn // 100))
        if turn == FRAMES // 5:
            before, started = memory(), turn
    assert sum(counts.values()) == FRAMES and counts["error"] > 0.7 * FRAMES
    assert min(counts.values()) > 0 and started
    assert memory() < 1.1 * before
    served.settle()
