"""Small versions of the loader's and the export's benchmark: both sides deliver the same. Nothing is timed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.synthetic import make_store
from wmjax.data.store import TrainingStore

torch = pytest.importorskip("torch")

from benchmarks import export, loader, loader_scaling  # noqa: E402

pytestmark = pytest.mark.torch
ROOT = Path(__file__).resolve().parents[2]


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
        export.measure(small, export.make_encoder("torch", "mini", "float32", small.spec.cameras), 1)


LEAK = """
import json
from benchmarks import loader_scaling
found = loader_scaling.memory((1_000, 10_000), 10_000)
kept = list(zip(range(40), loader_scaling.stream(loader_scaling.placeholder_store(10_000)), strict=False))
print(json.dumps([*found.values(), loader_scaling.anonymous_megabytes(), len(kept)]))
"""


def test_memory_does_not_grow_with_the_samples_read() -> None:
    """9,000 samples of 75 kB in between: a loader that kept one in ten would grow by 68 MB.

    In a process of its own: memory that other tests have freed would hide what is kept.
    """
    done = subprocess.run([sys.executable, "-c", LEAK], cwd=ROOT, capture_output=True, text=True, check=True)
    first, last, kept, batches = json.loads(done.stdout.splitlines()[-1])
    assert last - first < 30.0
    assert kept - last > 60.0 and batches == 40  # the measure sees batches that are kept


def test_an_index_of_any_size_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "flat.json"
    sizes = ["--entries", "100", "5000", "--samples", "64", "128"]
    loader_scaling.main([*sizes, "--seconds", "0.01", "--out", str(out)])
    found = json.loads(out.read_text())
    assert set(found["samples_per_second"]) == {"images", "images and latents"}
    assert all(set(values) == {"100", "5000"} for values in found["samples_per_second"].values())
    assert set(found["anonymous_megabytes"]) == {"64", "128"}
    printed = capsys.readouterr().out
    assert "5,000 index entries" in printed and "images and latents: the fastest size is" in printed
    assert (
        next(loader_scaling.stream(loader_scaling.placeholder_store(100)))["future"].shape[2:] == loader_scaling.LATENT
    )
    ids = np.concatenate(
        [
            batch["sample_id"]
            for _, batch in zip(range(10), loader_scaling.stream(loader_scaling.placeholder_store(300)), strict=False)
        ]
    )
    assert set(ids[:300].tolist()) == set(range(300))
