"""Who may connect, and that one bad client changes nothing for the others."""

import contextlib
import dataclasses
import http.client
import socket
import threading

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import wmjax.serve as command
from tests.rollout.fake_policy import Continuing, FakePolicy, Told
from tests.serving.servers import ANY_PORT, InProcess, Running, observation, running
from wmjax.core.errors import UserError
from wmjax.serving import batcher
from wmjax.serving.server import PolicyServer
from wmjax.serving.settings import ServeSettings


@pytest.fixture(scope="module")
def served():
    with running(max_sessions=12, max_batch=4, max_message=40_000) as found:
        yield found


def get(port: int, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_health_check_answers_plain_http(served: Running) -> None:
    assert get(served.port, "/healthz") == (200, "OK\n")
    assert get(served.port, "/")[0] == 426


def test_the_greeting_says_what_is_served_and_what_to_send(served: Running) -> None:
    card = served.client().get_server_metadata()
    assert card["recipe"] == "fake" and card["open_loop_horizon"] == 8 and card["frames_per_decision"] == 2
    assert card["keys"]["images"]["agentview"] == ["observation/agentview", "observation/image"]
    assert card["observation"]["image_size"] == 4 and card["observation"]["rotation"] == 180
    assert card["action"]["grippers"] == list(FakePolicy.action_spec.grippers) and card["action"]["chunk"] == 8


def test_a_web_page_may_not_connect(served: Running) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        connect(served.url, origin="http://a.page")  # type: ignore[arg-type]
    assert refusal.value.response.status_code == 403


def test_an_error_is_a_text_frame_and_then_close_code_1011(served: Running) -> None:
    with connect(served.url, compression=None) as client:
        client.recv()
        client.send("text")
        assert client.recv() == "the message is text; send one packed map as bytes"
        with pytest.raises(ConnectionClosed) as closed:
            client.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011


def test_a_client_that_sent_more_behind_a_wrong_message_is_let_go_at_once(served: Running) -> None:
    with connect(served.url, compression=None) as client:
        client.recv()
        with contextlib.suppress(ConnectionClosed):  # the server may be faster than the last of them
            for _ in range(5):
                client.send("text")
        assert "the message is text" in client.recv()
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=8)  # what was left unread once kept the connection for 10 s
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011


IMAGE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "has no 'prompt'"),
        ({"observation/state": None}, "has no 'observation/state'"),
        ({"observation/image": None}, "has no 'observation/image'"),
        ({"observation/imag": IMAGE}, "unknown observation key 'observation/imag'; did you mean observation/image"),
        ({"observation/agentview": IMAGE}, "are the same camera"),
        ({"observation/image": IMAGE[0]}, r"observation/image has the shape \[4, 3\]"),
        ({"observation/image": np.zeros((4, 5, 3), np.uint8)}, r"has the shape \[4, 5, 3\]"),
        ({"observation/image": np.zeros((3, 4, 4, 3), np.uint8)}, "has 3 frames; send the newest, or the 2"),
        ({"observation/image": np.zeros((2, 4, 4, 3), np.uint8)}, "different numbers of frames"),
        ({"observation/image": np.zeros((0, 0, 3), np.uint8)}, "images of 0 pixels"),
        ({"observation/image": IMAGE.astype(np.float32)}, "observation/image is float32; send an array of uint8"),
        ({"observation/image": "text"}, "observation/image is str"),
        ({"observation/state": np.zeros(7)}, r"observation/state is float64\[7\]; send an array of 8 numbers"),
        ({"observation/state": np.zeros((1, 8))}, r"is float64\[1, 8\]"),
        ({"observation/state": np.zeros(8, bool)}, r"is bool\[8\]"),
        ({"observation/state": [0.0] * 8}, "observation/state is list"),
        ({"observation/state": np.full(8, np.nan)}, "not finite"),
        ({"observation/state": np.full(8, 1e300)}, "too large for float32"),
        ({"prompt": ""}, "prompt has 0 characters"),
        ({"prompt": "x" * 1001}, "prompt has 1001 characters"),
        ({"prompt": 7}, "prompt is a int"),
        ({"session_id": b"x"}, "session_id is a bytes"),
        ({"wmjax/episode": " "}, "wmjax/episode has 0 characters"),
        ({"wmjax/step": -1}, "wmjax/step is '-1'"),
        ({"wmjax/step": True}, "wmjax/step is 'True'"),
    ],
)
def test_an_observation_that_does_not_fit_is_one_line(served: Running, change: dict, message: str) -> None:
    sent = {key: value for key, value in (observation() | change).items() if value is not None}
    with pytest.raises(RuntimeError, match=message) as refusal:
        served.client().infer(sent)
    assert len(str(refusal.value).splitlines()) == 2  # the client's own line, and ours


def test_other_names_and_sizes_of_images_are_the_same_observation(served: Running) -> None:
    sent = observation(5, 0, **{"wmjax/episode": "a"})
    expected = InProcess("a", 4).act(sent, 0)
    image, wrist = sent.pop("observation/image"), sent.pop("observation/wrist_image")
    renamed = {**sent, "observation/agentview": image, "observation/robot0_eye_in_hand": wrist}
    np.testing.assert_array_equal(served.client().infer(renamed)["actions"], expected)
    large = {**sent, "observation/image": np.full((9, 9, 3), 7, np.uint8), "observation/wrist_image": wrist}
    small = {**sent, "observation/image": np.full((4, 4, 3), 7, np.uint8), "observation/wrist_image": wrist}
    large, small = (served.client().infer(each)["actions"] for each in (large, small))
    np.testing.assert_array_equal(large, small)


def test_a_message_over_the_limit_closes_the_connection(served: Running) -> None:
    client = served.client()
    with pytest.raises(ConnectionClosed) as closed:
        client.infer(observation(**{"session_id": "x" * 50_000}))
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def episode_of(served: Running, index: int, out: dict[int, list[np.ndarray]]) -> None:
    client = served.client()
    out[index] = [
        client.infer(observation(index, number, frames=2, **{"wmjax/episode": f"e{index}"}))["actions"]
        for number in range(8)
    ]


def test_clients_that_vanish_leave_the_others_their_actions_and_rows(served: Running) -> None:
    served.settle()
    found: dict[int, list[np.ndarray]] = {}
    threads = [threading.Thread(target=episode_of, args=(served, index, found)) for index in range(3)]
    for thread in threads:
        thread.start()
    for round_ in range(20):
        with socket.create_connection(("127.0.0.1", served.port)) as raw:  # in the middle of the handshake
            raw.send(b"GET / HTTP/1.1\r\nHost:")
        vanishing = connect(served.url, compression=None)
        vanishing.recv()
        if round_ % 2:
            vanishing.send(msgpack_numpy.packb(observation(9, round_)))
        vanishing.socket.shutdown(socket.SHUT_RDWR)  # without a word, half of them while their decision is made
    for thread in threads:
        thread.join(120)
    for index in range(3):
        alone = InProcess(f"e{index}", 4)
        for number, actions in enumerate(found[index]):
            np.testing.assert_array_equal(actions, alone.act(observation(index, number, frames=2), number))
    served.settle()


class Broken(FakePolicy):
    """Its actions are not finite where the state is large, and a state of 99 makes it fail altogether."""

    def __call__(self, carry, observation, keys, future=None):
        if (observation.state[:, 0] == 99).any():
            raise FloatingPointError("failed")
        carry, chunk, info = super().__call__(carry, observation, keys)
        return carry, np.where(observation.state[:, :1, None] > 1e3, np.nan, chunk), info


def test_what_breaks_one_decision_does_not_break_the_next() -> None:
    with running(Broken(1)) as served:
        patient, alone = served.client(), InProcess("patient")
        for number, value in enumerate([1e6, 99.0, 1e6]):
            state = np.full(8, value)
            with pytest.raises(RuntimeError, match="not finite" if value > 1e3 else "the policy failed"):
                served.client().infer({**observation(), "observation/state": state})
            sent = observation(1, number, frames=2)
            answer = patient.infer({**sent, "wmjax/episode": "patient"})
            np.testing.assert_array_equal(answer["actions"], alone.act(sent, number))


def test_what_is_not_finite_is_told_to_its_client_alone() -> None:
    """In one batch: the server waits for both, and only one of them gets an error."""
    with running(Broken(2), max_batch=2, max_wait_ms=1000) as served:
        clients, out = [served.client(), served.client()], {}

        def ask(index: int, value: float) -> None:
            try:
                out[index] = clients[index].infer({**observation(), "observation/state": np.full(8, value)})
            except RuntimeError as error:
                out[index] = str(error)

        threads = [threading.Thread(target=ask, args=item) for item in ((0, 0.5), (1, 1e6))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert served.server._batcher.batches == 1
        assert np.isfinite(out[0]["actions"]).all() and "not finite" in out[1]


class Watched(FakePolicy):
    """Notes the thread of each decision, and waits while it is held up."""

    def __init__(self, batch_size: int) -> None:
        super().__init__(batch_size)
        self.threads: list[str] = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, carry, observation, keys, future=None):
        self.threads.append(threading.current_thread().name)
        assert self.free.wait(60)
        return super().__call__(carry, observation, keys)


def test_a_quick_decision_of_an_only_client_is_made_without_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, alone = Watched(2), InProcess("a", 2)
    with running(policy, max_batch=2) as served:
        first = served.client()

        def ask(number: int, quick_s: float) -> str:
            monkeypatch.setattr(batcher, "QUICK_S", quick_s)
            sent = observation(3, number, frames=2)
            answer = first.infer({**sent, "wmjax/episode": "a"})
            np.testing.assert_array_equal(answer["actions"], alone.act(sent, number))
            assert answer["server_timing"]["policy_ms"] > 0
            return policy.threads[-1]

        threads = [ask(0, 60.0), ask(1, 60.0), ask(2, 60.0), ask(3, 0.0)]
        served.client()  # with another one that could ask, the loop must go on
        threads.append(ask(4, 60.0))
        # How long the first decision takes is not known before it is made.
        assert [name.startswith("policy") for name in threads] == [True, False, False, True, True]


def test_connections_are_served_while_a_slow_policy_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "QUICK_S", 0.0)
    policy = Watched(1)
    with running(policy) as served:
        client, answers = served.client(), []
        policy.free.clear()
        thread = threading.Thread(target=lambda: answers.append(client.infer(observation())))
        thread.start()
        try:
            assert get(served.port, "/healthz") == (200, "OK\n")
            assert served.client().get_server_metadata()["recipe"] == "fake" and not answers
        finally:
            policy.free.set()
            thread.join(60)
        assert answers[0]["actions"].shape == (8, 7)


def test_there_are_no_more_sessions_than_rows_and_idle_ones_are_dropped() -> None:
    with running(max_sessions=2, idle_s=1.0) as served:
        clients = [served.client(), served.client()]
        with pytest.raises(InvalidStatus) as refusal:
            served.client()
        assert refusal.value.response.status_code == 503
        assert "no message for 1 s" in clients[0]._ws.recv(timeout=30)
        served.settle()
        assert served.client().infer(observation())["actions"].shape == (8, 7)


def test_a_key_is_asked_for_and_needed_on_other_addresses() -> None:
    with pytest.raises(UserError, match=r"host is '0\.0\.0\.0', which others can reach; set WMJAX_API_KEY"):
        ServeSettings(host="0.0.0.0")
    with running(api_key="secret") as served:
        assert get(served.port, "/healthz") == (200, "OK\n")
        for header in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": "secret"}):
            assert get(served.port, "/", **header)[0] == 401
        assert served.client(api_key="secret").infer(observation())["actions"].shape == (8, 7)
        assert "secret" not in repr(served.server._settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "opnpi:8000"], "unknown dialect 'opnpi'; did you mean openpi"),
        (["--listen", "own.module:Dialect:1"], "dialect is 'own.module:Dialect', which cannot be imported"),
        (["--listen", "openpi"], "listen is 'openpi'; write it as DIALECT:PORT"),
        (["--listen", "openpi:99999"], "listen is 'openpi:99999'; a port is at most 65535"),
        (["--horizon", "0"], "serve.horizon is 0; it must be at least 1"),
        (["--seed", "-1"], "serve.seed is -1; it must be at least 0"),
        (["--max-sessions", "many"], "serve.max_sessions is 'many'; expected int"),
        (["--max-message-mb", "0"], "serve.max_message is 0"),
        (["--max-message-mb", "nan"], "--max-message-mb is 'nan'; give a number of megabytes"),
        (["--serve.idle_s", "0"], "serve.idle_s is 0.0; it must be above 0"),
        (["--port", "99999"], "unknown option '--port'"),
        (["--listen", "openpi:1", "--listen", "openpi:1"], "give each dialect its own port"),
        (["--max-batch", "0"], "max_batch is 0"),
        (["--max-wait-ms", "-1"], "max_wait_ms is -1.0"),
        (["--host", "192.0.2.1"], "set WMJAX_API_KEY"),
        (["--realtime", "rtc"], "realtime is 'rtc', but execution_delay is 0"),
        (["--delay", "3"], "execution_delay is 3, which means nothing with realtime 'none'; set realtime"),
        (["--realtime", "mix", "--delay", "3"], "serve.realtime is 'mix'; choose one of 'none', 'rtc', 'blend'"),
        (
            ["--realtime", "blend", "--delay", "3", "--listen", "vla-eval:1"],
            "realtime is 'blend', but clients of vla-eval wait for the action of every step",
        ),
        ([], "run 'nowhere' is not a folder"),
    ],
)
def test_bad_options_are_one_line(arguments, message, capsys, monkeypatch) -> None:
    monkeypatch.delenv("WMJAX_API_KEY", raising=False)
    assert command.main(["--run", "nowhere", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_real_time_execution_needs_to_know_what_is_executed_first() -> None:
    policy = Continuing(1)
    policy.action_spec = dataclasses.replace(policy.action_spec, hold=())
    with pytest.raises(UserError, match=r"ActionSpec\.hold is empty, so the actions before its first chunk"):
        PolicyServer(policy, dataclasses.replace(ANY_PORT, realtime="rtc", execution_delay=3))


def test_a_policy_that_is_told_needs_clients_that_go_on_and_a_robot_that_holds_still() -> None:
    policy = Told(1)
    with pytest.raises(UserError, match="takes 8 pending actions, but clients of vla-eval wait for the action of"):
        PolicyServer(policy, dataclasses.replace(ANY_PORT, listen=("openpi:0", "vla-eval:0")))
    policy.action_spec = dataclasses.replace(policy.action_spec, hold=())
    with pytest.raises(UserError, match=r"the policy takes pending actions, but .*; serve a policy without model"):
        PolicyServer(policy, ANY_PORT)


def test_a_port_that_is_taken_is_one_line(served: Running) -> None:
    with pytest.raises(UserError, match="cannot listen on"):
        _start_on(served.port)


def _start_on(port: int) -> None:
    import asyncio

    async def main() -> None:
        async with PolicyServer(FakePolicy(1), ServeSettings(listen=(f"openpi:{port}",))):
            pass

    asyncio.run(main())
