"""The dialect ``starvla``, by conformance: its client packs with the codec that openpi's client has, from PyPI."""

from typing import Any

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.sync.client import ClientConnection, connect

from tests.rollout.fake_policy import Told
from tests.serving.servers import InProcess, Running, observation, running


@pytest.fixture(scope="module")
def served():
    with running(listen=("starvla:0",), max_sessions=4) as found:
        yield found


def opened(served: Running) -> tuple[ClientConnection, dict[str, Any]]:
    """A connection and the server's metadata, as starVLA's client waits for it."""
    client = connect(served.url, compression=None, max_size=None, legacy=True)
    return client, msgpack_numpy.unpackb(client.recv(timeout=60))


def asked(client: ClientConnection, message: Any) -> dict[str, Any]:
    client.send(msgpack_numpy.packb(message))
    answer = client.recv(timeout=60)
    assert isinstance(answer, bytes)
    return msgpack_numpy.unpackb(answer)


def example(sent: dict[str, Any], **more: Any) -> dict[str, Any]:
    images = [sent["observation/image"], sent["observation/wrist_image"]]
    return {"image": images, "lang": sent["prompt"], "state": sent["observation/state"][None], **more}


def gripper_as_libero(actions: np.ndarray) -> np.ndarray:
    """starVLA's gripper, 1 open and 0 closed, in LIBERO's convention, -1 open and 1 closed."""
    found = actions.copy()
    found[:, 6] = 1 - 2 * actions[:, 6]
    return found.astype(np.float32)


def test_the_metadata_tells_their_client_when_to_ask_again(served: Running) -> None:
    client, metadata = opened(served)
    client.close()
    assert metadata["action_chunk_size"] == 8 and metadata["available_unnorm_keys"] == ["wmjax"]
    assert metadata["training_obs_image_size"] == [4, 4] and metadata["action_keys"][-1] == "gripper"


@pytest.mark.parametrize("typed", [False, True])
def test_named_episodes_have_the_actions_of_the_policy_in_process(served: Running, typed: bool) -> None:
    client, alone = opened(served)[0], InProcess("s/0/random/3")
    for number in range(3):
        sent = observation(3, number, frames=2)
        payload = {"examples": [example(sent, **{"wmjax/episode": "s/0/random/3", "wmjax/step": 8 * number})]}
        flat = {**payload, "unnorm_key": None, "do_sample": False, "use_ddim": True, "num_ddim_steps": 10}
        message = {"type": "infer", "request_id": f"r{number}", "payload": payload} if typed else flat
        answer = asked(client, message)
        assert (answer["status"], answer["ok"], answer["type"]) == ("ok", True, "inference_result")
        assert answer["request_id"] == (f"r{number}" if typed else "default")
        assert answer["data"]["actions"].shape == (1, 8, 7)
        np.testing.assert_array_equal(gripper_as_libero(answer["data"]["actions"][0]), alone.act(sent, number))
    client.close()


def test_ping_changes_nothing_and_reset_begins_another_episode(served: Running) -> None:
    client = opened(served)[0]
    assert asked(client, {"type": "ping", "request_id": 3}) == {
        "status": "ok", "ok": True, "type": "ping", "request_id": 3,
    }  # fmt: skip
    number, kinds = served.server._sessions._opened, []
    for resets, kind in ((1, "init"), (2, "reset")):
        assert asked(client, {"type": kind})["ok"]
        alone = InProcess(f"connection-{number}-reset-{resets}")
        for decision in range(2):
            sent = observation(5, decision, frames=2)
            answer = asked(client, {"examples": [example(sent)]})["data"]
            np.testing.assert_array_equal(gripper_as_libero(answer["actions"][0]), alone.act(sent, decision))
            kinds += answer["wmjax/history"]
    client.close()
    assert kinds == ["episode"] * 4


def test_pending_actions_have_the_grippers_of_the_dialect() -> None:
    raw = np.random.default_rng(0).uniform(-1, 1, (8, 7)).astype(np.float32)
    raw[:, 6] = [-1, -1, 1, 1, -1, 1, 1, -1]
    theirs = raw.copy()
    theirs[:, 6] = (1 - raw[:, 6]) / 2
    with running(Told(1, delay=8), listen=("starvla:0",)) as told:
        client, alone = opened(told)[0], InProcess("a", policy=Told(1, delay=8))
        sent = observation(3, 0, frames=1)
        answer = asked(client, {"examples": [example(sent, **{"wmjax/episode": "a", "wmjax/pending": theirs})]})
        client.close()
    expected = alone.act(sent, 0, pending=raw)
    np.testing.assert_allclose(gripper_as_libero(answer["data"]["actions"][0]), expected, atol=1e-6)
    assert np.abs(expected - alone.act(sent, 0)).max() > 1e-2


def test_several_examples_are_episodes_by_themselves(served: Running) -> None:
    client = opened(served)[0]
    sent = [observation(index, 0) for index in range(3)]
    answer = asked(client, {"examples": [example(each) for each in sent]})
    client.close()
    number = served.server._sessions._opened
    for row, each in enumerate(sent):
        alone = InProcess(f"connection-{number}-{row + 1}")
        np.testing.assert_array_equal(gripper_as_libero(answer["data"]["actions"][row]), alone.act(each, 0))


SENT = example(observation())


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({}, "no list of maps under 'examples'"),
        ({"examples": []}, "examples has 0 entries; send 1 to 64"),
        ({"examples": [3]}, "no list of maps"),
        ({"examples": [SENT], "unnorm_key": "bridge"}, "unknown unnorm_key 'bridge'"),
        ({"examples": [SENT], "type": "infr"}, "unknown type 'infr'; did you mean infer"),
        ({"type": "infer", "payload": 3}, "payload is a int"),
        ({"examples": [SENT], "request_id": [1]}, "request_id is a list"),
        ({"examples": [{**SENT, "image": SENT["image"][:1]}]}, "image has 1 images; send a list of 2"),
        ({"examples": [{**SENT, "image": SENT["image"][0]}]}, "image has a ndarray images"),
        ({"examples": [{k: v for k, v in SENT.items() if k != "state"}]}, "the observation has no 'state'"),
        ({"examples": [{**SENT, "state": np.zeros(7)}]}, "state is float64[7]; send an array of 8"),
        ({"examples": [{**SENT, "lng": "x"}]}, "unknown key of an example 'lng'; did you mean lang"),
        ({"examples": [{**SENT, "wmjax/episode": "a"}, SENT]}, "one connection is in one at a time"),
    ],
)
def test_wrong_requests_are_answered_by_one_line(served: Running, message, error) -> None:
    client = opened(served)[0]
    answer = asked(client, message)
    assert (answer["status"], answer["ok"]) == ("error", False)
    assert error in answer["error"]["message"] and "\n" not in answer["error"]["message"]
