"""Latency per decision through openpi's client beside the same policy in process, at batch 1 and 8.

    python benchmarks/serving.py RUN [--batches 1,8] [--repeats 50] [--out results.json]

The server is a process of its own (``python -m wmjax.serve``), the clients are threads here, as many as the batch has
rows, which ask at the same moment. Medians in milliseconds: ``in process`` is one call for a full batch, ``served`` the
time until each client has its actions, ``added`` the difference.
"""

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from wmjax.core.specs import ObservationSpec
from wmjax.policy.policy import load_policy
from wmjax.policy.policy_actor import PolicyActor
from wmjax.rollout.actors import Decision
from wmjax.serving.sessions import named_episode

STARTUP_S = 900.0
INSTRUCTION = "pick up the black bowl next to the plate and place it on the plate"


def decisions(spec: ObservationSpec, frames: int, batch: int, number: int) -> list[Decision]:
    """Random observations of so many episodes."""
    rng = np.random.default_rng(number)
    shape = (frames, len(spec.cameras), spec.image_size, spec.image_size, 3)
    return [
        Decision(
            row, named_episode(f"benchmark-{row}"), number, number, rng.integers(0, 256, shape, np.uint8),
            rng.normal(size=spec.state_dim).astype(np.float32), INSTRUCTION,
        )
        for row in range(batch)
    ]  # fmt: skip


def message(decision: Decision, spec: ObservationSpec) -> dict[str, Any]:
    """What a client sends for it."""
    images = {f"observation/{camera}": decision.frames[:, i] for i, camera in enumerate(spec.cameras)}
    own = {"prompt": decision.instruction, "wmjax/episode": decision.episode.key}
    return {**images, "observation/state": decision.state, **own}


@contextlib.contextmanager
def served(run: Path, batch: int) -> Iterator[int]:
    """A server's port, while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "wmjax.serve", "--run", str(run), "--listen", f"openpi:{port}"]
    process = subprocess.Popen([*line, "--max-batch", str(batch), "--max-wait-ms", "20"])
    try:
        deadline = time.monotonic() + STARTUP_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server did not start; see its lines above")
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _answers(port: int) -> bool:
    try:
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).read())
    except OSError:
        return False


def in_process(run: Path, batch: int, repeats: int) -> tuple[float, ObservationSpec, int]:
    """Median milliseconds of a full batch, and what the policy sees."""
    policy = load_policy(run, batch_size=batch)
    actor, spec, frames = PolicyActor(policy), policy.observation_spec, policy.frames_per_decision
    actor.prepare(batch, policy.open_loop_horizon, policy.action_spec)
    times = []
    for number in range(repeats + 2):
        asked = decisions(spec, frames, batch, number)
        began = time.perf_counter()
        actor.act(asked)
        times.append(1e3 * (time.perf_counter() - began))
    return float(np.median(times[2:])), spec, frames


def through_clients(port: int, spec: ObservationSpec, frames: int, batch: int, repeats: int) -> float:
    """Median milliseconds until a client has its actions, when as many ask as the batch has rows."""
    clients = [WebsocketClientPolicy("127.0.0.1", port) for _ in range(batch)]
    together, times = threading.Barrier(batch), np.zeros((repeats + 2, batch))

    def ask(row: int) -> None:
        for number in range(repeats + 2):
            sent = message(decisions(spec, frames, batch, number)[row], spec)
            together.wait(STARTUP_S)
            began = time.perf_counter()
            clients[row].infer(sent)
            times[number, row] = 1e3 * (time.perf_counter() - began)

    threads = [threading.Thread(target=ask, args=(row,)) for row in range(batch)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return float(np.median(times[2:]))


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    table: dict[str, dict[str, float]] = {}
    for batch in map(int, options.batches.split(",")):
        here, spec, frames = in_process(options.run, batch, options.repeats)
        with served(options.run, batch) as port:
            there = through_clients(port, spec, frames, batch, options.repeats)
        table[f"batch {batch}"] = row = {"in process": here, "served": there, "added": there - here}
        print(f"batch {batch}:", "  ".join(f"{name} {value:.2f} ms" for name, value in row.items()), flush=True)
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
