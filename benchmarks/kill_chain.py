"""Kills one training again and again and compares its end, bit for bit, with that of a training left alone.

python benchmarks/kill_chain.py --kills 50 --in-save 15 --terms 20 -- \\
    python -m wmjax.train --config e2_flow --scale smoke --no-evaluation \\
    --train.steps 400 --train.checkpoint_every 5 --train.log_every 1 --run {run}

``{run}`` is where the run's folder goes. The command runs once to its end, then in another folder as often as there are
signals: SIGKILL in the middle of a step, of a save or of an evaluation, SIGTERM in the middle of a step. Every start
must get further than the one before, and one after SIGTERM must resume at the step that was promised. Prints a JSON
summary; exits with 1 if the two runs differ. ``--seed`` decides the order of the signals and where each falls.

Compared are every array and the position in the data of the newest checkpoint, the metrics, and of the evaluations
every frame of the videos, the executed actions and the episodes' records. A run is evaluated in the middle of training
with the simulator and these options:

python benchmarks/kill_chain.py --kills 4 --in-save 1 --in-evaluation 2 --terms 1 -- \\
    python -m wmjax.train --config e2_flow --scale smoke --evaluation.every 10 --evaluation.videos 2 \\
    --train.steps 20 --train.checkpoint_every 5 --train.log_every 1 --run {run}

A long chain is run in parts, one after the other, where a process may not take long: ``--folder F --part 1/5``. The
undisturbed run is made in the first part; the last one finishes the chain and compares.
"""

import argparse
import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CLOCK = ("time", "samples_per_second", "tokens_per_second", "mfu", "memory_gb")
"""Metrics that depend on the machine."""
LATEST = {"save": 0.05, "evaluation": 20.0}
"""Seconds after the beginning of a save or an evaluation at which the signal comes at the latest."""


def trees(checkpoint: Path) -> dict[str, bytes]:
    """Every array of a checkpoint, by item and path."""
    import jax
    import orbax.checkpoint as ocp

    found = {}
    for item in sorted(path for path in checkpoint.iterdir() if path.is_dir()):
        reader, place = ocp.PyTreeCheckpointer(), item.resolve()
        saved = reader.metadata(place).item_metadata.tree
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        tree = reader.restore(place, restore_args=on_host)
        for path, value in jax.tree_util.tree_leaves_with_path(tree):
            found[f"{item.name}{jax.tree_util.keystr(path)}"] = np.asarray(value).tobytes()
    return found


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def pictures(video: Path) -> str:
    """The SHA-256 of a video's decoded frames."""
    import av

    digest = hashlib.sha256()
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            digest.update(frame.to_ndarray(format="rgb24").tobytes())
    return digest.hexdigest()


def evaluated(run: Path) -> dict[str, Any]:
    """What the evaluations of a run left, without what depends on the clock: videos, executed actions and episodes."""
    found: dict[str, Any] = {}
    for path in sorted((run / "evaluations").rglob("*")):
        name = str(path.relative_to(run))
        if path.suffix == ".mp4":
            found[name] = pictures(path)
        elif path.suffix == ".npy":
            found[name] = np.load(path).tobytes()
        elif path.name == "episodes.jsonl":
            for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
                found[f"{name} {line['key']}"] = {k: v for k, v in line.items() if k != "seconds"}
    return found


def differences(a: Path, b: Path) -> list[str]:
    """What differs between the ends of two runs: the newest checkpoint's arrays and position, metrics, evaluations."""
    last = [max((run / "checkpoints").glob("[0-9]*")) for run in (a, b)]
    if last[0].name != last[1].name:
        return [f"last checkpoints {last[0].name} and {last[1].name}"]
    (left, right), metas = (
        map(trees, last),
        [json.loads((p / "manifest.json").read_text(encoding="utf-8"))["meta"] for p in last],
    )
    found = sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
    found += ["meta"] * (metas[0] != metas[1])
    found += ["metrics.jsonl"] * (metrics(a) != metrics(b))
    one, other = evaluated(a), evaluated(b)
    return found + sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


class Chain:
    """One run that is started, ended by a signal, and started again."""

    def __init__(self, command: Sequence[str], run: Path, timeout: float) -> None:
        self._command, self.run, self._timeout = [part.replace("{run}", str(run)) for part in command], run, timeout
        self._log = run.with_name(f"{run.name}.txt")

    def start(self) -> subprocess.Popen:
        """The next process of the run; what it prints replaces what the one before did."""
        with self._log.open("w", encoding="utf-8") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log)

    def _text(self) -> str:
        """What the command has printed."""
        return self._log.read_text(encoding="utf-8")

    def finish(self, process: subprocess.Popen) -> str:
        """Waits for the end; what was printed.

        Raises:
            RuntimeError: the command failed.

        """
        if process.wait(self._timeout):
            raise RuntimeError(f"{' '.join(self._command)}: exit status {process.returncode}\n{self._text()}")
        return self._text()

    def interrupt(self, kind: str, wait: float) -> str:
        """Starts, waits until it trains (or saves, or evaluates), and sends the signal; what was printed.

        Raises:
            RuntimeError: it came to its end before, or answered the signal with another exit status.

        """
        process = self.start()
        ready = {"save": self._saves, "evaluation": self._evaluates}.get(kind, self._trains)
        while not ready():
            if process.poll() is not None:
                raise RuntimeError(f"ended before its signal; give it more steps\n{self._text()}")
            time.sleep(0.002)
        time.sleep(wait)
        number = signal.SIGTERM if kind == "term" else signal.SIGKILL
        process.send_signal(number)
        status = process.wait(self._timeout)
        expected = 128 + number if kind == "term" else -number
        if status != expected:
            raise RuntimeError(f"exit status {status} after {number.name}, not {expected}\n{self._text()}")
        return self._text()

    def newest(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        return max((int(path.name) for path in (self.run / "checkpoints").glob("[0-9]" * 8)), default=0)

    def _trains(self) -> bool:
        return re.search(r"step \d+/\d+", self._text()) is not None

    def _saves(self) -> bool:
        return self._trains() and any((self.run / "checkpoints").glob(".saving-*"))

    def _evaluates(self) -> bool:
        return re.search(r"[1-9]\d* of \d+ episodes to run", self._text()) is not None


def run_chain(
    command: Sequence[str],
    folder: Path,
    kinds: Sequence[str],
    seed: int,
    timeout: float,
    part: tuple[int, int] = (1, 1),
) -> dict[str, Any]:
    """Runs the command once undisturbed and once through a chain of signals of these kinds.

    Args:
        command: with ``{run}`` for the run's folder.
        folder: where the two runs are; those of the parts before are there.
        kinds: the signals of the whole chain: ``kill``, ``save``, ``evaluation``, ``term``.
        seed: of when they fall.
        timeout: seconds that one process may take.
        part: number, from 1, and count of the parts that the chain is run in.

    Returns:
        Counts, the step that each start left behind, faults, and after the last part the differences, which should be
        none.

    """
    alone, chain = Chain(command, folder / "alone", timeout), Chain(command, folder / "chain", timeout)
    number, count = part
    if number == 1:
        alone.finish(alone.start())
    first, end = (len(kinds) * n // count for n in (number - 1, number))
    faults, reached = [], []
    for index in range(first, end):
        draw = random.Random(f"{seed}-{index}")
        faults += disturb(chain, kinds[index], draw.uniform(0.0, LATEST.get(kinds[index], 0.5)))
        reached.append(chain.newest())
    found = {"signals": end - first, "of": len(kinds), "reached": reached, "faults": faults, "differences": []}
    if number == count:
        chain.finish(chain.start())
        found["differences"] = differences(alone.run, chain.run)
    return found


def disturb(chain: Chain, kind: str, wait: float) -> list[str]:
    """Sends one signal; what went wrong before and after it."""
    before, faults = chain.newest(), []
    printed = chain.interrupt(kind, wait)
    resumed = re.search(r"resumed at step (\d+)", printed)
    if int(resumed[1] if resumed else 0) != before:
        faults.append(f"{kind}: resumed at {resumed and resumed[1]}, the newest checkpoint was {before}")
    if kind == "term":
        saved = re.search(r"step (\d+) of \d+ is saved", printed)
        if saved is None or int(saved[1]) != chain.newest():
            faults.append(f"SIGTERM: {printed.splitlines()[-1]!r}, the newest checkpoint is {chain.newest()}")
    return faults


def read_part(text: str) -> tuple[int, int]:
    """``2/5`` as (2, 5)."""
    number, count = map(int, text.split("/"))
    if not 1 <= number <= count:
        raise ValueError(text)
    return number, count


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if the two runs end alike."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs, those in a save or an evaluation included")
    parser.add_argument("--in-save", type=int, default=15, help="how many of them fall into a save")
    parser.add_argument("--in-evaluation", type=int, default=0, help="how many of them fall into an evaluation")
    parser.add_argument("--terms", type=int, default=20, help="SIGTERMs")
    parser.add_argument("--seed", type=int, default=0, help="of the order of signals and when they fall")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds one process may take")
    parser.add_argument("--part", type=read_part, default=(1, 1), help="which part of the chain, such as 1/5")
    parser.add_argument("--folder", type=Path, help="where the two runs go (default: a temporary folder)")
    options, command = parser.parse_args(words[:split]), words[split + 1 :]
    if not any("{run}" in word for word in command):
        parser.error("give the command after --, with {run} where the run's folder goes")
    if options.part[1] > 1 and options.folder is None:
        parser.error("give --folder with --part: the parts share it")
    counts = {"save": options.in_save, "evaluation": options.in_evaluation, "term": options.terms}
    counts["kill"] = options.kills - options.in_save - options.in_evaluation
    kinds = [kind for kind in ("save", "evaluation", "kill", "term") for _ in range(counts[kind])]
    random.Random(options.seed).shuffle(kinds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        result = run_chain(command, folder, kinds, options.seed, options.timeout, options.part)
    print(json.dumps(result, indent=1))
    return 1 if result["faults"] or result["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
