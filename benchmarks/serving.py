"""Latency per decision through each dialect beside the same policy in process, at batch 1 and 8.

    python benchmarks/serving.py RUN [--batches 1,8] [--dialects openpi,starvla,vla-eval] [--repeats 50] [--out FILE]
                                     [--against CHECKOUT]

The server is a process of its own (``python -m wmjax.serve``) with a port per dialect, the clients are threads here, as
many as the batch has rows, which ask at the same moment. Every repeat measures one call for a full batch in process and
then each dialect, so that what else the machine does falls on all of them. Medians in milliseconds: ``served`` is the
time until a client has its actions, ``added`` the median of the repeats' differences, and of the ``fastest tenth`` the
difference between the two, which other programs of a busy machine disturb less. ``openpi`` says how long the policy
took in the server: ``beside the policy`` is the rest of the same decisions. For ``vla-eval``, which asks at every
control step, it is the step at which the policy decides; ``between`` is a step whose action is there already.

``--against`` names another checkout of this repository, whose server runs too and is asked the same in turns: its times
give the same numbers, and ``difference`` is the median of the repeats' differences, this checkout less that one, with a
95 % interval (``at least``, ``at most``).
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import IO

import numpy as np

from wmjax.core.specs import ObservationSpec
from wmjax.policy.policy import load_policy
from wmjax.policy.policy_actor import PolicyActor
from wmjax.rollout.actors import Decision
from wmjax.serving.clients.client import CLIENTS, Client, View
from wmjax.serving.clients.conventions import Conventions
from wmjax.serving.clients.openpi import OpenPIClient
from wmjax.serving.clients.served_policy import connected, resolved
from wmjax.serving.sessions import named_episode

STARTUP_S = 900.0
INSTRUCTION = "pick up the black bowl next to the plate and place it on the plate"
WARM_UP = 2
"""Repeats that are not counted."""


def decisions(spec: ObservationSpec, frames: int, batch: int, number: int, horizon: int) -> list[Decision]:
    """Random observations of so many episodes."""
    rng = np.random.default_rng(number)
    shape = (frames, len(spec.cameras), spec.image_size, spec.image_size, 3)
    return [
        Decision(
            row, named_episode(f"benchmark-{row}"), number, number * horizon, rng.integers(0, 256, shape, np.uint8),
            rng.normal(size=spec.state_dim).astype(np.float32), INSTRUCTION,
        )
        for row in range(batch)
    ]  # fmt: skip


@contextlib.contextmanager
def served(
    run: Path, batch: int, dialects: Sequence[str], *more: str, checkout: Path | None = None
) -> Iterator[dict[str, str]]:
    """The URLs of a server's dialects, while it runs; see :func:`started`."""
    with started(run, batch, dialects, *more, checkout=checkout) as (_, urls):
        yield urls


@contextlib.contextmanager
def started(
    run: Path,
    batch: int,
    dialects: Sequence[str],
    *more: str,
    log: IO[bytes] | None = None,
    checkout: Path | None = None,
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """A server's process and the URLs of its dialects, while it runs.

    ``more`` are further words of its command; its lines go to ``log``, and its code is that of ``checkout``, if given.
    """
    ports = dict(zip(dialects, free_ports(len(dialects)), strict=True))
    listen = [word for dialect, port in ports.items() for word in ("--listen", f"{dialect}:{port}")]
    line = [sys.executable, "-m", "wmjax.serve", "--run", str(run), *listen]
    words = [*line, "--max-batch", str(batch), "--max-wait-ms", "20", *more]
    # Without the second, the folder that this command was started in would come first.
    other = {} if checkout is None else {"PYTHONPATH": str(checkout.absolute()), "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(words, stderr=log, env=os.environ | other)
    try:
        deadline = time.monotonic() + STARTUP_S
        while not all(map(answers, ports.values())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server did not start; see its lines above")
            time.sleep(0.2)
        yield process, {dialect: f"ws://127.0.0.1:{port}" for dialect, port in ports.items()}
    finally:
        process.terminate()
        process.wait(30)


def free_ports(count: int) -> list[int]:
    """Finds this number of unused ports."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def answers(port: int) -> bool:
    """Whether a port is open; each dialect has another page for it."""
    for page in ("healthz", "health"):
        try:
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5).read())
        except OSError:
            continue
    return False


class Asking:
    """As many clients of one dialect as the batch has rows."""

    def __init__(self, url: str, dialect: str, batch: int) -> None:
        self.clients: list[Client] = [connected(CLIENTS.resolve(dialect), url) for _ in range(batch)]
        self.chosen: Conventions = resolved(self.clients[0], {})
        self._together, self._threads = Barrier(batch), ThreadPoolExecutor(batch)

    def ask(self, asked: Sequence[Decision], horizon: int) -> tuple[float, float, float]:
        """Median milliseconds of one decision, of what it took beside the policy, and of a step between decisions.

        The second is NaN if the server does not report the policy's time, the third if the dialect has no such
        steps.
        """
        rows = list(self._threads.map(lambda d: self._row(d, horizon), asked))
        between = [time for times, _ in rows for time in times[1:] or [np.nan]]
        decided, policy = (
            np.array(column) for column in zip(*((times[0], policy_ms) for times, policy_ms in rows), strict=True)
        )
        return float(np.median(decided)), float(np.median(decided - policy)), float(np.median(between))

    def _row(self, decision: Decision, horizon: int) -> tuple[list[float], float]:
        """Milliseconds of each step, and of the policy as the server says."""
        client, times = self.clients[decision.slot], []
        every = client.every_step
        frames = decision.frames[-1:] if every or decision.number == 0 else decision.frames
        images = [frames[:, camera] for camera in range(frames.shape[1])]
        state = decision.state.astype(np.float64)
        for step in range(horizon if every else 1):
            first = decision.number == 0 and step == 0
            view = View(images, state, decision.instruction, decision.episode, decision.step + step, first)
            self._together.wait(STARTUP_S)
            began = time.perf_counter()
            client.ask(view, self.chosen)
            client.answer()
            times.append(1e3 * (time.perf_counter() - began))
        policy_ms = client.timing["policy_ms"] if isinstance(client, OpenPIClient) else np.nan
        return times, policy_ms

    def close(self) -> None:
        """Ends the connections, so that the next dialect's batches do not wait for them."""
        self._threads.shutdown()
        for client in self.clients:
            client.close()


def measure(
    run: Path, batch: int, dialects: Sequence[str], repeats: int, against: Path | None = None
) -> dict[str, dict[str, float]]:
    """One row per dialect, and one more of each for the server of another checkout."""
    policy = load_policy(run, batch_size=batch)
    actor, spec, frames = PolicyActor(policy), policy.observation_spec, policy.frames_per_decision
    horizon = policy.open_loop_horizon
    actor.prepare(batch, horizon, policy.action_spec)
    table = {}
    with contextlib.ExitStack() as stack:
        checkouts = {"": None} if against is None else {"": None, f" of {against}": against}
        servers = {name: stack.enter_context(served(run, batch, dialects, checkout=c)) for name, c in checkouts.items()}
        for dialect in dialects:
            asking = [Asking(urls[dialect], dialect, batch) for urls in servers.values()]
            here, times = np.zeros(repeats + WARM_UP), np.zeros((len(asking), 3, repeats + WARM_UP))
            for number in range(repeats + WARM_UP):
                asked = decisions(spec, frames, batch, number, horizon)
                began = time.perf_counter()
                actor.act(asked)
                here[number] = 1e3 * (time.perf_counter() - began)
                for turn in range(len(asking)):  # neither server is always the first
                    place = (number + turn) % len(asking)
                    times[place, :, number] = asking[place].ask(asked, horizon)
            here, times = here[WARM_UP:], times[..., WARM_UP:]
            for name, each, mine in zip(servers, asking, times, strict=True):
                each.close()
                table[f"{dialect}, batch {batch}{name}"] = _row(each, here, mine)
            if against is not None:
                table[f"{dialect}, batch {batch}"] |= _differences(times)
    return table


def _row(asking: Asking, here: np.ndarray, times: np.ndarray) -> dict[str, float]:
    """The numbers of one server, from the milliseconds in process ``[n]`` and served ``[3, n]``."""
    there, beside, between = times
    row = {
        "in process": np.median(here),
        "served": np.median(there),
        "added": np.median(there - here),
        "added, fastest tenth": np.quantile(there, 0.1) - np.quantile(here, 0.1),
    }
    if asking.clients[0].every_step:
        row["between"] = np.median(between)
    if isinstance(asking.clients[0], OpenPIClient):
        row |= {"beside the policy": np.median(beside), "its fastest tenth": np.quantile(beside, 0.1)}
    return {name: float(value) for name, value in row.items()}


def _differences(times: np.ndarray) -> dict[str, float]:
    """Medians of the repeats' differences between two servers; 95 % intervals by the binomial of the ranks."""
    found = {}
    for what, first, second in zip(("served", "beside the policy"), times[0], times[1], strict=False):
        if np.isnan(first).any():
            continue
        each = np.sort(first - second)
        middle, reach = len(each) / 2, 0.98 * np.sqrt(len(each))  # 1.96 standard deviations
        ends = max(int(middle - reach), 0), min(int(np.ceil(middle + reach)), len(each) - 1)
        found |= {f"{what}, difference": float(np.median(each))}
        found |= {f"{what}, {side}": float(each[end]) for side, end in zip(("at least", "at most"), ends, strict=True)}
    return found


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--dialects", default="openpi,starvla,vla-eval")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args(arguments)
    table: dict[str, dict[str, float]] = {}
    for batch in map(int, options.batches.split(",")):
        found = measure(options.run, batch, options.dialects.split(","), options.repeats, options.against)
        for name, row in found.items():
            print(f"{name}:", "  ".join(f"{what} {value:.2f} ms" for what, value in row.items()), flush=True)
        table |= found
        if options.out:
            options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
