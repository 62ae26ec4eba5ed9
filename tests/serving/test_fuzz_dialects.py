"""Wrong frames by the thousand into every dialect, without a socket between: each ends in one line or in right actions.

``WMJAX_TEST_FUZZ_FRAMES=100000`` sends so many. What a socket adds is the subject of ``test_fuzz.py``.
"""

import asyncio
import copy
import os
import random
from typing import Any

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy
from vla_eval.protocol import numpy_codec
from vla_eval.protocol.messages import Message, MessageType, pack_message, unpack_message

from tests.rollout.fake_policy import FakePolicy
from tests.serving.servers import ANY_PORT, InProcess, observation
from tests.serving.test_fuzz import ARRAYS, JUNK, bombs, memory, nested, wrong_arrays
from wmjax.core.errors import UserError
from wmjax.serving.dialect import DIALECTS, Frame
from wmjax.serving.server import PolicyServer

FRAMES = int(os.environ.get("WMJAX_TEST_FUZZ_FRAMES", "1500"))


def flat(sent: dict[str, Any]) -> dict[str, Any]:
    return dict(sent)


def example(sent: dict[str, Any]) -> dict[str, Any]:
    """The same observation as starVLA's client sends it."""
    own = {key: sent[key] for key in ("wmjax/episode", "wmjax/step") if key in sent}
    images = [sent["observation/image"], sent["observation/wrist_image"]]
    return {"examples": [{"image": images, "lang": sent["prompt"], "state": sent["observation/state"], **own}]}


def message(sent: dict[str, Any]) -> dict[str, Any]:
    """The same observation as vla-eval's client sends it."""
    images = {"agentview": sent["observation/image"], "wrist": sent["observation/wrist_image"]}
    payload = {"images": images, "states": sent["observation/state"], "task_description": sent["prompt"]}
    return {"type": "observation", "payload": payload, "seq": 1, "timestamp": 0.5}


def text_keys(value: Any) -> bytes:
    """vla-eval's packing of anything at all; its PNG has no images without pixels."""

    def encode(inside: Any) -> Any:
        if isinstance(inside, np.ndarray) and not inside.size:
            return {"__ndarray__": True, "data": b"", "dtype": inside.dtype.str, "shape": list(inside.shape)}
        return numpy_codec.encode_ndarray(inside)

    return bytes(msgpack.packb(value, default=encode))


SHAPES = {
    "openpi": (flat, msgpack_numpy.packb),
    "starvla": (example, msgpack_numpy.packb),
    "vla-eval": (message, text_keys),
}
START = pack_message(Message(MessageType.EPISODE_START, {"task": {"name": "a", "wmjax/episode": "steady"}}))


def junk(dice: random.Random) -> Any:
    """Something wrong, of its own: the next mutation may change what is inside it."""
    return copy.deepcopy(dice.choice(JUNK))


def mutated(dice: random.Random, tree: Any) -> Any:
    """A tree with one thing in it replaced, removed or added."""
    places = [(tree, key) for key in tree] if isinstance(tree, dict) else [(tree, i) for i in range(len(tree))]
    if not places:
        return junk(dice)
    place, key = dice.choice(places)
    inside = place[key]
    if isinstance(inside, dict | list) and inside and dice.random() < 0.7:
        place[key] = mutated(dice, inside)
        return tree
    match dice.randrange(5):
        case 0 if isinstance(place, dict):
            place.pop(key)
        case 1:
            place[key] = dice.choice(ARRAYS)
        case 2:
            place[key] = nested(dice.randrange(30))
        case 3 if isinstance(place, dict):
            place[dice.choice(["", "other", "type", "examples", "images", "wmjax/step"])] = junk(dice)
        case _:
            place[key] = junk(dice)
    return tree


def damaged(dice: random.Random, frame: bytes) -> bytes:
    """Bytes that were cut, changed or lengthened."""
    found = bytearray(frame)
    match dice.randrange(4):
        case 0:
            return bytes(found[: dice.randrange(len(found))])
        case 1:
            return bytes(found) + dice.randbytes(dice.randint(1, 9))
        case 2:
            start = dice.randrange(len(found))
            del found[start : start + dice.randint(1, 20)]
        case _:
            for _ in range(dice.randint(1, 4)):
                found[dice.randrange(len(found))] = dice.randrange(256)
    return bytes(found)


def fuzzed(dice: random.Random, dialect: str) -> Frame:
    shape, pack = SHAPES[dialect]
    sent = shape(observation(dice.randrange(9), frames=dice.choice([None, 2])))
    kind = dice.randrange(7)
    if kind < 3:
        for _ in range(dice.randint(1, 2)):
            sent = mutated(dice, sent) if isinstance(sent, dict) else sent
        return bytes(pack(sent))
    if kind < 5:
        return damaged(dice, bytes(pack(sent)))
    if kind == 5:
        return dice.choice([bombs, wrong_arrays])(dice)
    return dice.randbytes(dice.choice([0, 1, 9, 300])) if dice.random() < 0.9 else "text"


def actions_of(dialect: str, answer: Frame | None) -> np.ndarray | None:
    """What was decided; None for an answer of another kind."""
    if answer is None:
        return None
    assert isinstance(answer, bytes)
    if dialect == "vla-eval":
        found = unpack_message(answer)
        return found.payload["actions"][None] if found.type == MessageType.ACTION else None
    found = msgpack_numpy.unpackb(answer)
    if dialect == "starvla":
        found = found.get("data", {})
        found = {"actions": found["actions"][0]} if found else {}
    return found.get("actions")


def sent_to(dialect: str, number: int) -> list[bytes]:
    """A right decision of the episode "steady"; vla-eval needs every control step of it."""
    shape, pack = SHAPES[dialect]
    frames = 2 if number else None
    named = observation(1, number, frames=frames, **{"wmjax/episode": "steady", "wmjax/step": 8 * number})
    if dialect != "vla-eval":
        return [bytes(pack(shape(named)))]
    found = []
    for step in range(8 * number - 7 if number else 0, 8 * number + 1):
        shown = dict(named)
        for key in ("observation/image", "observation/wrist_image"):
            shown[key] = named[key][(step - 8 * number) // 4 + 1] if number else named[key]
        found.append(bytes(pack(shape(shown))))
    return found


async def storm(dialect: str) -> dict[str, int]:
    """Sends all frames, and between them decisions of an episode that must not notice."""
    dice, counts, before = random.Random(FRAMES), {"error": 0, "action": 0, "other": 0}, 0
    server = PolicyServer(FakePolicy(1), ANY_PORT, {})
    alone = InProcess("steady", policy=FakePolicy(1))
    kind = DIALECTS.resolve(dialect)
    async with server:
        with server._sessions.open() as quiet:
            steady = kind(server.service)
            if dialect == "vla-eval":
                await steady.answer(START, quiet)
            for turn in range(FRAMES):
                with server._sessions.open() as session:
                    counts[await outcome(kind(server.service), dialect, fuzzed(dice, dialect), session, turn)] += 1
                if turn % (FRAMES // 50) == 0:
                    number = turn // (FRAMES // 50)
                    answers = [await steady.answer(frame, quiet) for frame in sent_to(dialect, number)]
                    found = actions_of(dialect, answers[-1])
                    assert found is not None
                    found = found.copy()
                    expected = alone.act(observation(1, number, frames=2 if number else None), number)[: len(found)]
                    if dialect == "starvla":
                        found[:, 6] = 1 - 2 * found[:, 6]
                    np.testing.assert_array_equal(found.astype(np.float32), expected)
                if turn == FRAMES // 5:
                    before = memory()
    assert memory() < 1.1 * before
    return counts


async def outcome(speaker: Any, dialect: str, frame: Frame, session: Any, turn: int) -> str:
    """What became of a frame; anything but one clear line or finite actions fails."""
    try:
        if dialect == "vla-eval" and turn % 4:
            await speaker.answer(START, session)
        answer = await speaker.answer(frame, session)
    except UserError as error:
        assert "\n" not in str(error)[:500] and "policy failed" not in str(error), frame
        speaker.error(str(error)[:500])  # can be packed
        return "error"
    actions = actions_of(dialect, answer)
    if actions is None:
        return "other"
    assert actions.shape[1] == 7 and np.isfinite(actions).all() and (abs(actions) <= 1).all(), frame
    return "action"


@pytest.mark.slow
@pytest.mark.parametrize("dialect", sorted(SHAPES))
def test_no_wrong_frame_gets_anything_but_one_line(dialect: str) -> None:
    counts = asyncio.run(storm(dialect))
    print(dialect, counts)
    assert sum(counts.values()) == FRAMES and counts["error"] > 0.7 * FRAMES and counts["action"] > 0
