"""Exporting processes that are killed, at any moment, and that finish at once: the store is the undisturbed one."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.export_job import VIEWS
from tests.data.test_encode_vjepa2 import FakeEncoder, make_store
from wmjax.data.latents import LatentStore
from wmjax.data.store import TrainingStore
from wmjax.encoders.encode import encode_store

ROOT = Path(__file__).parents[2]
MAY_BE = {".lock", ".verified.json"}
"""The lock of a dead process is free, and what it could not write down as verified is hashed once more."""
DEADLINE = 300
"""Seconds; a guard, not a measure."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrainingStore:
    return make_store(tmp_path_factory.mktemp("data"), lengths=(5, 9, 4))


def counted(counts: dict[str, int], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        counts[name] += 1
        return function(*arguments, **options)

    return call


@pytest.fixture(scope="module")
def calls(store: TrainingStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How often an undisturbed export calls what the killed ones die at; the export is in ``whole``."""
    counts = {"fsync": 0, "unlink": 0}
    with pytest.MonkeyPatch.context() as patch:
        for name in counts:
            patch.setattr(os, name, counted(counts, name, getattr(os, name)))
        encode_store(store, tmp_path_factory.getbasetemp() / "whole", FakeEncoder(), views=VIEWS)
    return counts


@pytest.fixture(scope="module")
def whole(calls: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return LatentStore(tmp_path_factory.getbasetemp() / "whole")


def start(*arguments: object) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "tests.data.export_job", *map(str, arguments)]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> str:
    """What a process that must succeed printed."""
    printed, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors
    return printed.strip()


def assert_same(folder: Path, whole: LatentStore) -> None:
    """The store in ``folder`` is bit for bit that of ``whole``, and nothing is left beside it."""
    files = {"manifest.json", *whole.manifest["files"]}
    for name in files:
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes(), (folder, name)
    assert {path.name for path in folder.iterdir()} - MAY_BE == files
    LatentStore(folder).verify()


def test_a_kill_at_any_moment_loses_nothing(store, calls, whole, tmp_path):
    ends = json.loads(end(start("deaths", store.folder, tmp_path, calls["fsync"], calls["unlink"])))
    assert calls["fsync"] >= 14 and calls["unlink"] >= 4 and set(ends.values()) == {-9}, ends
    late = 0
    for name in ends:
        finished = (tmp_path / name / "manifest.json").exists()
        written = len(list(tmp_path.glob(f"{name}/parts/[0-9]*.npz")))
        again = FakeEncoder()
        encode_store(store, tmp_path / name, again, views=VIEWS)
        # 2 to 3 frames in 2 views are padded to 8 clips.
        assert again.seen == (0 if finished else 8 * (len(store.episodes) - written)), name
        assert_same(tmp_path / name, whole)
        late += finished and written > 0
    assert late, "no kill came after the manifest, before the parts were gone"


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_kill_from_outside_costs_one_episode_at_most(store, tmp_path, dtype):
    out, undisturbed = tmp_path / "z", encode_store(store, tmp_path / "w", FakeEncoder(), views=VIEWS, dtype=dtype)
    process, deadline = start("slow", store.folder, out, dtype), time.monotonic() + DEADLINE
    while not (found := list(out.glob("parts/[0-9]*.npz"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    again = FakeEncoder()
    encode_store(store, out, again, views=VIEWS, dtype=dtype)
    assert again.seen <= 8 * (len(store.episodes) - len(found))
    assert_same(out, undisturbed)


def test_shards_that_end_at_once_make_one_store(store, whole, tmp_path):
    out = tmp_path / "z"
    processes = [start("shard", store.folder, out, f"{index}/2") for index in range(2)]
    assert [end(process) for process in processes] == ["finished", "finished"]
    assert_same(out, whole)


def test_a_lock_whose_holder_died_is_free(store, whole, tmp_path):
    out = tmp_path / "z"
    out.mkdir()
    for stale in (out / ".lock", out / ".staging-dead" / "latents.npy"):
        stale.parent.mkdir(exist_ok=True)
        stale.touch()
    encode_store(store, out, FakeEncoder(), views=VIEWS)
    assert_same(out, whole)
