"""Small versions of the loader's and the export's benchmark: both sides deliver the same. Nothing is timed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.data.synthetic import make_store
from wmjax.data.store import TrainingStore

torch = pytest.importorskip("torch")

from benchmarks import export, loader  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrainingStore:
    return make_store(tmp_path_factory.mktemp("store"), lengths=(29, 41, 18))


def test_the_loaders_deliver_the_same_samples(store: TrainingStore, tmp_path: Path) -> None:
    """The command checks every sample itself before it measures."""
    cores, out = os.sched_getaffinity(0), tmp_path / "rates.json"
    loader.main([str(store.folder), "--episodes", "2", "--seconds", "0.01", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["samples"] == 8 + 11 and found["image_size"] == 56
    assert found["ratio"] == pytest.approx(found["ours"] / found["plain"]) and os.sched_getaffinity(0) == cores


def test_a_loader_that_differs_is_found(store: TrainingStore, tmp_path: Path) -> None:
    loader.as_lerobot(store, tmp_path / "lerobot", 2)
    converted = loader.convert(str(tmp_path / "lerobot"), tmp_path / "out", image_size=56, frame_stride=1)
    dataset = loader.PlainDataset(tmp_path / "lerobot")
    assert loader.require_same(converted, dataset) == 19
    dataset.columns[1].action[10, 3] += 0.125
    with pytest.raises(AssertionError):
        loader.require_same(converted, dataset)


def test_the_export_agrees_with_the_loop(tmp_path: Path) -> None:
    small = make_store(tmp_path / "store", image_size=112, lengths=(9, 5), cameras=1)
    export.main([str(small.folder), "--rounds", "1", "--out", str(tmp_path / "rates.json")])
    found = json.loads((tmp_path / "rates.json").read_text())
    assert 0.0 <= found["difference"] < 5e-3
    assert found["ratio"] == pytest.approx(found["export"] / found["per frame"])


def test_an_export_that_disagrees_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = make_store(tmp_path / "store", image_size=112, lengths=(5,), cameras=1)
    right = export.per_frame
    monkeypatch.setattr(export, "per_frame", lambda *a: right(*a) + np.float32(0.1))
    with pytest.raises(ValueError, match="latents differ by"):
        export.measure(small, export.make_encoder("torch", "mini"), 1)
