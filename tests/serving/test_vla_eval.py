"""The dialect ``vla-eval`` through vla-eval's own client and codec."""

import asyncio
import io
import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vla_eval.connection import Connection
from vla_eval.protocol import numpy_codec
from vla_eval.protocol.messages import Message, MessageType, pack_message, unpack_message
from vla_eval.specs import GRIPPER_CLOSE_POS, POSITION_DELTA, ROTATION_AA, DimSpec, check_specs
from websockets.sync.client import connect

from tests.serving.servers import InProcess, Running, running
from wmjax.core.errors import UserError
from wmjax.serving.packed import Limits, unpack
from wmjax.serving.packed_text import EncodedImage, arrays, pack_text_keys


@pytest.fixture(scope="module")
def served():
    with running(listen=("vla-eval:0",), max_sessions=4) as found:
        yield found


def step_of(index: int, step: int) -> dict[str, Any]:
    """What vla-eval's LIBERO benchmark shows at a control step."""
    random = np.random.default_rng([index, step])
    images = random.integers(0, 255, (2, 4, 4, 3), np.uint8)
    state = random.normal(size=8).astype(np.float32)
    return {
        "images": {"agentview": images[0], "wrist": images[1]}, "task_description": "a task of mine",
        "states": state, "controller_states": state + 1,
    }  # fmt: skip


def in_process(name: str, index: int, decisions: int) -> list[np.ndarray]:
    """The actions of each control step by the policy itself: decisions every 8 steps, a frame every 4."""
    alone, found = InProcess(name), []
    for number in range(decisions):
        due = [0] if number == 0 else [8 * number - 4, 8 * number]
        shown = [step_of(index, step) for step in due]
        sent = {
            "observation/image": np.stack([each["images"]["agentview"] for each in shown]),
            "observation/wrist_image": np.stack([each["images"]["wrist"] for each in shown]),
            "observation/state": shown[-1]["states"], "prompt": "a task of mine",
        }  # fmt: skip
        found += list(alone.act(sent, number))
    return found


@pytest.fixture
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """The form in which vla-eval's codec sends images during a test."""
    before = numpy_codec.get_image_format()
    numpy_codec.set_image_format(request.param)
    yield request.param
    numpy_codec.set_image_format(before)


@pytest.mark.parametrize("form", ["png", "raw"], indirect=True)
def test_their_client_gets_the_actions_of_the_policy_in_process(served: Running, form: str) -> None:
    async def drive() -> dict[str, list]:
        found: dict[str, list] = {}
        async with Connection(served.url) as connection:
            assert connection.server_info["protocol_version"] == 1
            for index in (3, 4, 3):  # the third episode is the first one again
                task = {"name": "a", "suite": "libero_spatial", "task_id": 2, "episode_idx": index}
                await connection.start_episode({"task": task})
                actions = [(await connection.act(step_of(index, step)))["actions"] for step in range(21)]
                await connection.end_episode({"metrics": {"success": True}, "steps": 21})
                found.setdefault(str(index), []).append(actions)
        return found

    found = asyncio.run(drive())
    for index in (3, 4):
        expected = in_process(f"libero_spatial/2/benchmark/{index}", index, 3)[:21]
        for actions in found[str(index)]:
            np.testing.assert_array_equal(np.stack(actions), np.stack(expected))
    assert len(found["3"]) == 2 and np.stack(found["3"][0]).dtype == np.float32


def test_the_handshake_agrees_with_their_specs(served: Running) -> None:
    async def greet() -> dict[str, Any]:
        async with Connection(served.url) as connection:
            return connection.server_info

    info = asyncio.run(greet())
    specs = {
        name: {key: DimSpec.from_dict(value) for key, value in info[f"{name}_spec"].items()}
        for name in ("action", "observation")
    }
    theirs = {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}
    assert specs["action"] == theirs and check_specs(specs["action"], theirs, {}, {}) == []
    assert info["observation_params"] == {"send_wrist_image": True, "send_state": True, "quat_no_antipodal": True}
    for path, key in (("/health", "status"), ("/config?max_batch_size=8", "errors")):
        with urllib.request.urlopen(f"http://127.0.0.1:{served.port}{path}", timeout=30) as page:
            assert key in json.loads(page.read())


def exchange(served: Running, *messages: bytes | str) -> Message:
    """The server's last word on some messages, of which only the last is answered after hello."""
    with connect(served.url, compression=None) as client:
        for message in messages:
            client.send(message)
        return unpack_message(client.recv(timeout=60))


def packed(kind: str, payload: Any, seq: int = 7) -> bytes:
    return pack_message(Message(MessageType(kind), payload, seq))


START = packed("episode_start", {"task": {"name": "a"}})


def damaged_png() -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, "PNG")
    return {"__image__": True, "format": "png", "data": buffer.getvalue()[:40], "shape": [4, 4, 3]}


def huge_png() -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((3000, 3000, 3), np.uint8)).save(buffer, "PNG")
    return {"__image__": True, "format": "png", "data": buffer.getvalue(), "shape": [3000, 3000, 3]}


def changed(**changes: Any) -> bytes:
    return packed("observation", {key: v for key, v in (step_of(0, 0) | changes).items() if v is not None})


def shown(image: Any) -> bytes:
    return changed(images={"agentview": image, "wrist": image})


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        (["text"], "the message is text"),
        ([packed("hello", {"protocol_version": 2})], "protocol_version is '2', this server speaks 1"),
        ([packed("observation", step_of(0, 0))], "no episode has begun on this connection"),
        ([START, packed("episode_end", {}), packed("observation", step_of(0, 0))], "no episode has begun"),
        ([START, changed(images=None)], "the observation has no 'images'"),
        ([START, changed(images=[])], "images is a list"),
        ([START, changed(images={"agentview": np.zeros((4, 4, 3), np.uint8)})], "no 'wrist'"),
        ([START, changed(states=None)], "no 'state'"),
        ([START, changed(task_description=3)], "task_description is a int"),
        ([START, shown(np.zeros((2, 4, 4, 3), np.uint8))], r"has the shape [2, 4, 4, 3]"),
        ([START, shown(damaged_png())], "is a damaged png"),
        ([START, shown(huge_png())], "has 3000x3000 pixels; send up to 1024 a side"),
        ([START, shown({"__image__": True, "format": "gif", "data": b"", "shape": [1, 1, 3]})], "its keys __image__"),
        ([START, shown({"__image__": True, "format": "png", "data": b"", "shape": "4"})], "image of the shape 4"),
        ([packed("error", {"error": "mine"})], "the client reports an error: mine"),
        ([pack_text_keys({"type": "other", "payload": {}})], "type is 'other'"),
        ([pack_text_keys({"type": "hello", "payload": 3})], "payload is a int"),
    ],
)
def test_wrong_messages_are_answered_by_one_line(served: Running, messages, error) -> None:
    answer = exchange(served, *messages)
    assert answer.type == MessageType.ERROR and error in answer.payload["error"]
    assert "\n" not in answer.payload["error"]


def test_their_codec_and_ours_understand_each_other() -> None:
    message = {"a": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.float32(0.5), "c": [np.zeros(2, bool)]}
    ours = unpack_message(pack_text_keys({"type": "action", "payload": message, "seq": 1, "timestamp": time.time()}))
    theirs = unpack(pack_message(Message(MessageType.ACTION, message)), Limits(), arrays)["payload"]
    for found in (ours.payload, theirs):
        np.testing.assert_array_equal(found["a"], message["a"])
        assert found["a"].dtype == np.float32 and found["b"] == 0.5 and found["c"][0].tolist() == [False, False]


@pytest.mark.parametrize("form", ["png", "jpeg"], indirect=True)
def test_an_encoded_image_is_the_one_that_their_codec_decodes(form: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    frame = pack_message(Message(MessageType.OBSERVATION, {"i": image}))
    found = unpack(frame, Limits(), arrays)["payload"]["i"]
    assert isinstance(found, EncodedImage)
    np.testing.assert_array_equal(found.decode("i", 8), unpack_message(frame).payload["i"])
    with pytest.raises(UserError, match="i has 8x8 pixels; send up to 7"):
        found.decode("i", 7)
