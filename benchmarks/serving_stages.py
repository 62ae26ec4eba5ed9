"""Where a served decision's time goes: the stages between a client's question and its answer, through ``openpi``.

    python benchmarks/serving_stages.py RUN [--repeats 150] [--asleep] [--out FILE]

The server is this file as a process of its own, ``python -m wmjax.serve`` with time stamps (Linux's monotonic clock is
the same in all processes). ``--asleep`` lets the policy sleep for 90 ms instead of computing: what then remains of the
waiting for a thread comes from other programs of the machine. Medians and fastest tenths in milliseconds; the sum of
the latter is what an exchange takes if no thread has to wait for a core.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

STAGES = {
    "client packs and sends": ("asked", "sent"),
    "until the server's loop runs": ("sent", "answer"),
    "server unpacks": ("answer", "decide"),
    "until the policy runs": ("decide", "make"),
    "policy": ("make", "make done"),
    "until its client's session runs": ("make done", "decide done"),
    "server packs": ("decide done", "answer done"),
    "server sends, until the client has it": ("answer done", "answered"),
}
"""From which stamp to which."""
SLEEP_S = 0.09


def stamped(owner: Any, name: str, note: Callable[[str, float], None], asynchronous: bool) -> None:
    """Makes a method note when it begins and ends."""
    inside: Callable[..., Any] = getattr(owner, name)
    label = name.strip("_")

    async def waits(*given: Any) -> Any:
        note(label, time.perf_counter())
        found = await inside(*given)
        note(f"{label} done", time.perf_counter())
        return found

    def calls(*given: Any) -> Any:
        note(label, time.perf_counter())
        found = inside(*given)
        note(f"{label} done", time.perf_counter())
        return found

    setattr(owner, name, waits if asynchronous else calls)


def serve(run: str, port: int, stamps_file: Path, asleep: bool) -> None:
    """The server with stamps, which it writes at once: it may be stopped before it could write them at its end."""
    import wmjax.serve
    from wmjax.policy.policy_actor import PolicyActor
    from wmjax.serving.batcher import Batcher
    from wmjax.serving.dialects.openpi import OpenPI

    file = stamps_file.open("w", encoding="utf-8", buffering=1)  # a line at a time

    def note(label: str, moment: float) -> None:
        file.write(json.dumps([label, moment]) + "\n")

    if asleep:
        propose, plans = PolicyActor.propose, []

        def sleep(self: PolicyActor, decisions: Any) -> Any:
            if not plans or not decisions[0].number:
                plans[:] = propose(self, decisions)
            time.sleep(SLEEP_S)
            return plans

        PolicyActor.propose = sleep  # type: ignore[method-assign]
    stamped(OpenPI, "answer", note, True)
    stamped(Batcher, "decide", note, True)
    stamped(Batcher, "_make", note, False)
    wmjax.serve.main(["--run", run, "--listen", f"openpi:{port}"])


def ask(url: str, repeats: int) -> list[dict[str, float]]:
    """The client's stamps of each decision."""
    from benchmarks.serving import decisions
    from wmjax.serving.clients.client import CLIENTS, View
    from wmjax.serving.clients.served_policy import connected, own_spec, resolved

    client = connected(CLIENTS.resolve("openpi"), url)
    chosen, spec, found = resolved(client, {}), own_spec(client), []
    frames, horizon = client.card["frames_per_decision"], client.card["open_loop_horizon"]
    for number in range(repeats):
        (decision,) = decisions(spec, frames, 1, number, horizon)
        due = decision.frames if number else decision.frames[-1:]
        images = [due[:, camera] for camera in range(due.shape[1])]
        state, step = decision.state.astype(np.float64), number * horizon
        asked = time.perf_counter()
        client.ask(View(images, state, decision.instruction, decision.episode, step, number == 0), chosen)
        sent = time.perf_counter()
        client.answer()
        found.append({"asked": asked, "sent": sent, "answered": time.perf_counter()})
    client.close()
    return found


def stages(run: str, repeats: int, asleep: bool) -> dict[str, tuple[float, float]]:
    """See :func:`summary`; starts the server and asks it."""
    from benchmarks.serving import answers, free_ports

    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stamps.jsonl"
        line = [sys.executable, __file__, run, "--serve", f"{port}:{file}", *["--asleep"] * asleep]
        process = subprocess.Popen(line)
        try:
            while not answers(port):
                if process.poll() is not None:
                    raise SystemExit("the server did not start; see its lines above")
                time.sleep(0.2)
            asked = ask(f"ws://127.0.0.1:{port}", repeats)
        finally:
            process.terminate()
            process.wait(60)
        return summary(asked, [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--repeats", type=int, default=150)
    parser.add_argument("--asleep", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # PORT:FILE, in the server's process
    options = parser.parse_args(arguments)
    if options.serve:
        port, _, file = options.serve.partition(":")
        serve(options.run, int(port), Path(file), options.asleep)
        return
    table = stages(options.run, options.repeats, options.asleep)
    for name, (median, fast) in table.items():
        print(f"{name:<38} {median:8.2f} {fast:8.2f}")
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def summary(asked: list[dict[str, float]], stamps: list[tuple[str, float]]) -> dict[str, tuple[float, float]]:
    """Median and fastest tenth of each stage, and of all but the policy; the first tenth of the decisions warms up."""
    rows = []
    for each in asked[len(asked) // 10 :]:
        within = {name: moment for name, moment in stamps if each["asked"] <= moment <= each["answered"]} | each
        # A client that loses its core right after sending notes it late: the server may have begun by then.
        within["sent"] = min(within["sent"], within["answer"])
        rows.append([1e3 * (within[end] - within[begin]) for begin, end in STAGES.values()])
    times = np.array(rows)
    table = {name: (np.median(column), np.quantile(column, 0.1)) for name, column in zip(STAGES, times.T, strict=True)}
    rest = np.delete(times, list(STAGES).index("policy"), axis=1)
    beside = rest.sum(1)
    table["beside the policy"] = (np.median(beside), np.quantile(beside, 0.1))
    table["sum of the fastest tenths"] = (np.nan, np.quantile(rest, 0.1, axis=0).sum())
    return {name: (float(median), float(fast)) for name, (median, fast) in table.items()}


if __name__ == "__main__":
    main()
