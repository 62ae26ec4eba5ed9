"""The real PyTorch export on a tiny store, against the Flax one; both frameworks stay apart."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wmjax.data.encode import LATENT_BOUND, verify_latents, view_clips
from wmjax.data.latents import LatentStore
from wmjax.data.store import EpisodeData, TrainingStore, finalize, write_part
from wmjax.encode import JaxEncoder
from wmjax.encode import main as jax_main
from wmjax.specs import ObservationSpec

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from encoders_export.vjepa import TorchEncoder  # noqa: E402
from encoders_export.vjepa import main as torch_main  # noqa: E402

SPEC = ObservationSpec()
pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TrainingStore:
    """Two short episodes of smooth random pictures."""
    folder = tmp_path_factory.mktemp("data")
    for index, length in enumerate((13, 6)):
        rng = np.random.default_rng(index)
        steps = np.arange(0, length, 4, dtype=np.int32)
        coarse = rng.integers(0, 256, (len(steps), 2, 14, 14, 3), np.uint8)
        action = np.zeros((length, 7), np.float32)
        episode = EpisodeData(
            images=coarse.repeat(8, 2).repeat(8, 3),
            frame_step=steps,
            state=np.zeros((length, 8), np.float32),
            action=action,
            executed=action,
            settled_state=np.zeros(1),
            meta={"suite": "s", "task_id": 0, "instruction": "do"},
        )
        write_part(folder, f"{index}", episode, SPEC)
    return finalize(folder, SPEC)


@pytest.fixture(scope="module")
def stores(store: TrainingStore, tmp_path_factory) -> dict[str, LatentStore]:
    """The same frames encoded by both commands."""
    out = tmp_path_factory.mktemp("latents")
    for name, main in (("torch", torch_main), ("jax", jax_main)):
        assert main(["--data", str(store.folder), "--out", str(out / name), "--views", "2"]) == 0
    return {name: LatentStore(out / name) for name in ("torch", "jax")}


@pytest.fixture(scope="module")
def encoders() -> dict[str, TorchEncoder | JaxEncoder]:
    """The shipped encoder in both frameworks."""
    return {"torch": TorchEncoder(), "jax": JaxEncoder()}


def test_backends_agree_within_the_stated_bound(store: TrainingStore, stores: dict[str, LatentStore], encoders):
    a, b = (stores[name].latents.astype(np.float32) for name in ("torch", "jax"))
    assert a.shape == (2, 6, 16, 192) and stores["torch"].backend == "torch"
    assert np.abs(a - b).max() / np.sqrt((b**2).mean()) < LATENT_BOUND
    assert a.std() > 0.1
    assert verify_latents(store, stores["torch"], encoders["jax"]) < LATENT_BOUND
    assert verify_latents(store, stores["jax"], encoders["torch"]) < LATENT_BOUND


def test_float32_latents_of_the_backends_agree_tightly(store: TrainingStore, encoders):
    clips = view_clips(np.array(store.frames[:4, 0]), (2, -3), 4)
    a, b = encoders["torch"](clips), encoders["jax"](clips)
    assert np.abs(a - b).max() / np.sqrt((b**2).mean()) < 1e-4


def test_a_future_frame_does_not_reach_the_latent(store: TrainingStore, encoders):
    frames = np.array(store.frames[:4, 0])
    changed = frames.copy()
    changed[3] = 255 - changed[3]
    for encoder in encoders.values():
        before, after = (encoder(view_clips(f, (0, 0), 4)) for f in (frames, changed))
        np.testing.assert_array_equal(before[:3], after[:3])
        assert np.abs(before[3] - after[3]).max() > 1e-3


def test_resized_frames_are_preprocessed_alike():
    from encoders_export.vjepa import preprocess as torch_preprocess
    from wmjax.models.vjepa2 import preprocess, preset

    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 200, 200, 3), np.uint8)
    a = torch_preprocess(torch.from_numpy(frames), preset("vitl")).permute(0, 1, 3, 4, 2).numpy()
    difference = np.abs(a - np.asarray(preprocess(frames, preset("vitl"))))
    assert (difference > 1e-5).mean() < 1e-3 and difference.max() < 0.0176


def test_commands_refuse_in_one_line(store: TrainingStore, tmp_path: Path, capsys):
    for main in (torch_main, jax_main):
        bad = ["--data", str(store.folder), "--out", str(tmp_path / "z")]
        assert main([*bad, "--grid", "3"]) == 2
        assert main([*bad, "--shard", "2/2"]) == 2
        assert main([*bad, "--camera", "sky"]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 3 and "grid 3" in error[0] and "shard" in error[1] and "sky" in error[2]
    assert not (tmp_path / "z").exists()


def test_the_frameworks_do_not_import_each_other():
    code = "import sys, {}; assert not [m for m in {} if m in sys.modules], sys.modules"
    for module, forbidden in (
        ("encoders_export.vjepa", ["jax", "flax"]),
        ("wmjax.encode", ["jax", "torch", "transformers"]),
        ("wmjax.data.encode", ["jax", "torch"]),
    ):
        done = subprocess.run([sys.executable, "-c", code.format(module, forbidden)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
