"""Exporting processes for ``test_export_killed``: ``python -m tests.data.export_job MODE DATA OUT [...]``.

``deaths``: a process per moment at which an export makes something durable, and one for each file that it removes at
its end, dies right there by SIGKILL; prints how each ended. ``slow DTYPE``: an export that takes its time. ``shard
i/n``: a shard that waits until all have encoded, so that they finish at once.
"""

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.data.test_encode_vjepa2 import FakeEncoder
from wmjax.core.shards import parse_shard
from wmjax.data.latents import LatentWriter
from wmjax.data.store import TrainingStore
from wmjax.encoders.encode import encode_store

VIEWS = 2


def dies_at(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, but its ``count``-th call is the process's death."""
    calls = itertools.count(1)

    def call(*arguments: Any, **options: Any) -> Any:
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return call


def deaths(store: TrainingStore, out: Path, syncs: int, removals: int) -> None:
    """Kills at each fsync and each unlink of an export; each in a folder of its own."""
    ends = {}
    for name, function, count in (("fsync", os.fsync, syncs), ("unlink", os.unlink, removals)):
        for moment in range(1, count + 1):
            if not (child := os.fork()):
                setattr(os, name, dies_at(moment, function))
                encode_store(store, out / f"{name}-{moment}", FakeEncoder(), views=VIEWS)
                os._exit(0)
            ends[f"{name}-{moment}"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(ends))


class SlowEncoder(FakeEncoder):
    """Takes a while, so that a kill from outside finds it at work."""

    def encode(self, clips):
        time.sleep(0.2)
        return super().encode(clips)


def shard(store: TrainingStore, out: Path, part: str) -> None:
    """Encodes, waits for the other shards, and merges slowly."""
    index, count = parse_shard(part)

    def wait(done: int, total: int) -> None:
        if done == total:
            (out.parent / f"arrived-{index}").touch()
            while len(list(out.parent.glob("arrived-*"))) < count:
                time.sleep(0.005)

    merge = LatentWriter._merge
    LatentWriter._merge = lambda self, latents: time.sleep(0.5) or merge(self, latents)  # type: ignore[method-assign]
    found = encode_store(store, out, FakeEncoder(), views=VIEWS, shard=(index, count), progress=wait)
    print("finished" if found is not None else "others are at work")


def main(mode: str, data: str, out: str, *rest: str) -> None:
    store = TrainingStore(Path(data))
    if mode == "deaths":
        deaths(store, Path(out), *map(int, rest))
    elif mode == "slow":
        encode_store(store, Path(out), SlowEncoder(), views=VIEWS, dtype=rest[0])
    else:
        shard(store, Path(out), *rest)


if __name__ == "__main__":
    main(*sys.argv[1:])
