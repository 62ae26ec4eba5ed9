"""A hundred clients at once, of which thirty vanish in the middle of a decision or between two."""

import socket
import threading
import time

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.sync.client import connect

from tests.rollout.fake_policy import FakePolicy
from tests.serving.servers import InProcess, Running, observation, running
from tests.serving.test_fuzz import memory

CLIENTS, VANISHING, DECISIONS = 100, 30, 6


def drive(served: Running, index: int, found: dict[int, list[np.ndarray]]) -> None:
    """One client's episode; every third one or so is cut off after some decisions."""
    vanishes = index * VANISHING // CLIENTS != (index + 1) * VANISHING // CLIENTS
    client = connect(served.url, compression=None, max_size=None, open_timeout=120, legacy=True)
    client.recv(timeout=120)
    for number in range(DECISIONS):
        sent = observation(index, number, frames=2, **{"wmjax/episode": f"e{index}"})
        client.send(msgpack_numpy.packb(sent))
        if vanishes and number == 1 + index % 3:
            if index % 2:  # with the answer on its way
                time.sleep(0.01)
            client.socket.shutdown(socket.SHUT_RDWR)
            return
        answer = client.recv(timeout=300)
        assert isinstance(answer, bytes), answer
        found.setdefault(index, []).append(msgpack_numpy.unpackb(answer)["actions"])
    client.close()


@pytest.mark.long
def test_thirty_of_a_hundred_clients_vanish_and_the_others_do_not_notice() -> None:
    policy = FakePolicy(8)
    with running(policy, max_batch=8, max_sessions=CLIENTS) as served:
        for _ in range(2):  # the second crowd finds all rows free again
            found: dict[int, list[np.ndarray]] = {}
            threads = [threading.Thread(target=drive, args=(served, index, found)) for index in range(CLIENTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(400)
            whole = {index: actions for index, actions in found.items() if len(actions) == DECISIONS}
            assert len(whole) == CLIENTS - VANISHING
            for index, actions in found.items():
                alone = InProcess(f"e{index}", policy=policy)
                for number, chunk in enumerate(actions):
                    np.testing.assert_array_equal(chunk, alone.act(observation(index, number, frames=2), number))
            served.settle()
            before = memory()
        assert memory() < 1.1 * before
        client = served.client()
        assert client.infer(observation(frames=2))["actions"].shape == (8, 7)
