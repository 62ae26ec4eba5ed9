"""Through openpi's client: which episode a request belongs to, what is remembered of it, and which noise it gets."""

import numpy as np
import pytest

from tests.rollout.fake_policy import Continuing, Told
from tests.rollout.fakes import ACTIONS
from tests.serving.servers import InProcess, Running, observation, running
from wmjax.serving.sessions import named_episode
from wmjax.sim.episode import EpisodeId


@pytest.fixture(scope="module")
def served():
    with running() as found:
        yield found


@pytest.mark.parametrize("name", ["wmjax/episode", "session_id"])
def test_an_episode_that_is_named_is_remembered_and_has_the_noise_of_its_name(served: Running, name: str) -> None:
    client, alone = served.client(), InProcess("s/0/random/3")
    for number in range(4):
        sent = observation(3, number, frames=2, **{name: "s/0/random/3"})
        answer = client.infer(sent)
        np.testing.assert_array_equal(answer["actions"], alone.act(sent, number))
        assert answer["actions"].dtype == np.float32 and answer["wmjax/history"] == "episode"
        assert answer["server_timing"]["infer_ms"] > answer["server_timing"]["policy_ms"] > 0
        assert ("prev_total_ms" in answer["server_timing"]) == (number > 0)


def test_another_name_or_session_or_connection_or_step_zero_is_another_episode(served: Running) -> None:
    first, second = served.client(), served.client()
    for client, more in (
        (first, {"wmjax/episode": "a"}),
        (first, {"wmjax/episode": "b"}),
        (first, {"wmjax/episode": "b", "session_id": "x"}),
        (first, {"wmjax/episode": "b", "session_id": "y"}),
        (second, {"wmjax/episode": "b", "session_id": "y"}),
        (second, {"wmjax/episode": "b", "session_id": "y", "wmjax/step": 0}),
    ):
        alone = InProcess(more["wmjax/episode"])
        for number in range(2):
            sent = observation(1, number, frames=2)
            answer = client.infer({**sent, **more, **({"wmjax/step": 8 * number} if "wmjax/step" in more else {})})
            np.testing.assert_array_equal(answer["actions"], alone.act(sent, number))


def test_a_plain_client_gets_its_newest_frame_as_history_and_fresh_noise(served: Running) -> None:
    client, seen = served.client(), []
    for _ in range(3):
        sent = observation(2, 0)
        answer = client.infer(sent)
        seen.append(answer["actions"])
        assert answer["wmjax/history"] == "newest frame"
    assert len({chunk.tobytes() for chunk in seen}) == 3
    number = served.server._sessions._opened
    for request, chunk in enumerate(seen, 1):
        alone = InProcess(f"connection-{number}-{request}")
        np.testing.assert_array_equal(chunk, alone.act(observation(2, 0), 0))


def test_one_frame_of_two_begins_the_history_anew_and_keeps_the_noise(served: Running) -> None:
    client, alone = served.client(), InProcess("gap")
    for number, frames in enumerate([None, 2, None, 2]):
        sent = observation(4, number, frames)
        answer = client.infer({**sent, "wmjax/episode": "gap"})
        np.testing.assert_array_equal(answer["actions"], alone.act(sent, number, forget=number == 2))
        assert answer["wmjax/history"] == ("newest frame" if number == 2 else "episode")


def test_another_horizon_than_the_servers_is_refused(served: Running) -> None:
    client = served.client()
    client.infer(observation(frames=2, **{"wmjax/episode": "a", "wmjax/step": 0}))
    with pytest.raises(RuntimeError, match="step is 5, decision 1 of this episode is due at step 8; execute 8 actions"):
        client.infer(observation(frames=2, **{"wmjax/episode": "a", "wmjax/step": 5}))


def test_an_episode_does_not_begin_in_its_middle(served: Running) -> None:
    """A client that reconnects begins the episode anew: the server has nothing of its history."""
    client = served.client()
    with pytest.raises(
        RuntimeError, match="step is 16, but this connection has not begun the episode; begin it at step 0"
    ):
        client.infer(observation(frames=2, **{"wmjax/episode": "b", "wmjax/step": 16}))
    again = served.client()
    again.infer(observation(frames=2, **{"wmjax/episode": "b", "wmjax/step": 0}))


def test_what_a_client_still_executes_is_known_at_its_next_decision() -> None:
    with running(Continuing(1, delay=3), realtime="rtc", execution_delay=3) as late:
        client = late.client()
        card = client.get_server_metadata()
        assert (card["realtime"], card["execution_delay"], card["open_loop_horizon"]) == ("rtc", 3, 4)

        def ask(number: int, **named: str) -> np.ndarray:
            return client.infer(observation(5, number, frames=1, **named))["actions"]

        first = ask(0, **{"wmjax/episode": "a"})
        assert first.shape == (5, 7) and np.ptp(first[:, 0]) > 0
        # Four steps later, the fake goes on from the fifth action of the first answer, the last that is planned.
        np.testing.assert_array_equal(ask(1, **{"wmjax/episode": "a"}), np.tile(first[4], (5, 1)))
        assert np.ptp(ask(0, **{"wmjax/episode": "b"})[:, 0]) > 0
        for number in range(2):  # who does not say which episode it is in has nothing that it executes
            assert np.ptp(ask(number)[:, 0]) > 0


def test_a_policy_that_is_told_what_is_executed_believes_the_client_or_its_own_answers() -> None:
    hold, random = np.array(ACTIONS.hold, np.float32), np.random.default_rng(0)
    with running(Told(1, delay=8)) as told:
        client, alone = told.client(), InProcess("a", policy=Told(1, delay=8))
        card = client.get_server_metadata()
        assert (card["realtime"], card["execution_delay"], card["pending_steps"]) == ("none", 8, 8)
        assert card["keys"]["others"]["pending"] == "wmjax/pending"
        executed = [hold] * 8
        for number in range(4):
            sent, pending = observation(5, number, frames=1), np.stack(executed[4 * number : 4 * number + 8])
            answer = client.infer({**sent, "wmjax/episode": "a"})["actions"]
            np.testing.assert_array_equal(answer, alone.act(sent, number, pending=pending if number else None))
            executed += list(answer[:4])
        other = random.uniform(-1, 1, (8, 7))
        sent = observation(5, 4, frames=1)
        answer = client.infer({**sent, "wmjax/episode": "a", "wmjax/pending": other})["actions"]
        np.testing.assert_array_equal(answer, alone.act(sent, 4, pending=other.astype(np.float32)))
        for wrong, message in (
            (other[:7], r"wmjax/pending is float64\[7, 7\]; send an array of \[8, 7\] numbers, the next 8 actions"),
            (other.tolist(), "wmjax/pending is list; send an array"),
            (np.full((8, 7), 1e300), "wmjax/pending has numbers that are too large for float32"),
            (np.full((8, 7), np.nan), "not finite"),
        ):
            with pytest.raises(RuntimeError, match=message):
                told.client().infer({**sent, "wmjax/pending": wrong})


def test_a_client_that_names_no_episode_is_taken_to_hold_still_unless_it_says_otherwise() -> None:
    with running(Told(1, delay=8)) as told:
        client, other = told.client(), np.random.default_rng(0).uniform(-1, 1, (8, 7)).astype(np.float32)
        for request in range(1, 4):
            more = {"wmjax/pending": other} if request == 3 else {}
            answer = client.infer({**observation(2, 0), **more})["actions"]
            number = told.server._sessions._opened
            alone = InProcess(f"connection-{number}-{request}", policy=Told(1, delay=8))
            expected = alone.act(observation(2, 0), 0, pending=more.get("wmjax/pending"))
            np.testing.assert_array_equal(answer, expected)


def test_a_policy_that_is_not_told_refuses_pending_actions(served: Running) -> None:
    with pytest.raises(RuntimeError, match="wmjax/pending is sent, but the policy takes no pending actions"):
        served.client().infer({**observation(frames=2), "wmjax/pending": np.zeros((8, 7))})


def test_names_of_episodes_are_their_keys() -> None:
    assert named_episode("libero_spatial/3/random/17") == EpisodeId("libero_spatial", 3, "random", 17)
    for name in ("a", "a/b", "libero_spatial/3/other/17", "s/03/random/1", "s/-1/random/1", "s/x/random/1", "/"):
        assert named_episode(name) == EpisodeId(name, 0, "random", 0)
