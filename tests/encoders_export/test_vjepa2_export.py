"""The real PyTorch export on a tiny store, against the Flax one; both frameworks stay apart."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from wmjax.core.errors import UserError
from wmjax.core.files import hash_file
from wmjax.data.latents import LatentStore
from wmjax.data.store import EpisodeData, TrainingStore, finalize, write_part
from wmjax.encode import main as jax_main
from wmjax.encoders.encode import LATENT_BOUNDS, EpisodeClips, difference, verify_latents
from wmjax.encoders.vjepa2.encoder import VJEPA2, VJEPA2Settings
from wmjax.encoders.vjepa2.files import MINI_FOLDER, encoder_spec
from wmjax.experiment.latent_settings import open_latents
from wmjax.policy.restore import restore_encoder
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from encoders_export.vjepa import TorchEncoder  # noqa: E402
from encoders_export.vjepa import main as torch_main  # noqa: E402

SPEC = OBSERVATION_SPEC
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
    return finalize(folder, SPEC, ACTION_SPEC)


@pytest.fixture(scope="module")
def stores(store: TrainingStore, tmp_path_factory) -> dict[str, LatentStore]:
    """The same frames encoded by both commands."""
    out = tmp_path_factory.mktemp("latents")
    for name, main in (("torch", torch_main), ("jax", jax_main)):
        assert main(["--data", str(store.folder), "--out", str(out / name), "--views", "2"]) == 0
    return {name: LatentStore(out / name) for name in ("torch", "jax")}


@pytest.fixture(scope="module")
def encoders() -> dict[str, TorchEncoder | VJEPA2]:
    """The shipped encoder in both frameworks."""
    settings = VJEPA2Settings(cameras=("agentview",))
    return {"torch": TorchEncoder(settings), "jax": VJEPA2(settings)}


def test_backends_agree_within_the_stated_bound(store: TrainingStore, stores: dict[str, LatentStore], encoders):
    a, b = (stores[name].latents.astype(np.float32) for name in ("torch", "jax"))
    assert a.shape == (2, 6, 16, 192) and stores["torch"].backend == "torch"
    assert np.abs(a - b).max() / np.sqrt((b**2).mean()) < LATENT_BOUNDS["float32"]
    assert a.std() > 0.1
    assert verify_latents(store, stores["torch"], encoders["jax"]) < LATENT_BOUNDS["float32"]
    assert verify_latents(store, stores["jax"], encoders["torch"]) < LATENT_BOUNDS["float32"]


def test_float32_latents_of_the_backends_agree_tightly(store: TrainingStore, encoders):
    clips = EpisodeClips(np.array(store.frames[:4, 0]), [(2, -3)], 4)[:]
    a, b = encoders["torch"].encode(clips), encoders["jax"].encode(clips)
    assert np.abs(a - b).max() / np.sqrt((b**2).mean()) < 1e-4


def test_a_future_frame_does_not_reach_the_latent(store: TrainingStore, encoders):
    frames = np.array(store.frames[:4, 0])
    changed = frames.copy()
    changed[3] = 255 - changed[3]
    for encoder in encoders.values():
        before, after = (encoder.encode(EpisodeClips(f, [(0, 0)], 4)[:]) for f in (frames, changed))
        np.testing.assert_array_equal(before[:3], after[:3])
        assert np.abs(before[3] - after[3]).max() > 1e-3


def test_resized_frames_are_preprocessed_alike():
    from encoders_export.vjepa import preprocess as torch_preprocess
    from wmjax.encoders.vjepa2 import preprocess, preset

    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 200, 200, 3), np.uint8)
    a = torch_preprocess(torch.from_numpy(frames), preset("vitl")).permute(0, 1, 3, 4, 2).numpy()
    difference = np.abs(a - np.asarray(preprocess(jnp.asarray(frames), preset("vitl"))))
    assert (difference > 1e-5).mean() < 1e-3 and difference.max() < 0.0176


def test_an_encoder_is_its_weights_that_are_loaded_and_its_preprocessing(tmp_path: Path):
    mine = shutil.copytree(MINI_FOLDER, tmp_path / "mine")
    plain = encoder_spec(str(mine), ("agentview",))
    assert plain.parameters["resize"] == 112 and plain.weights_hash == encoder_spec("mini", ("agentview",)).weights_hash
    (mine / "model_older.safetensors").write_bytes(b"never read")
    (mine / "pytorch_model.bin").write_bytes(b"a pickle")
    assert encoder_spec(str(mine), ("agentview",)) == plain
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps(config | {"resize": 128}))
    assert encoder_spec(str(mine), ("agentview",)) == dataclasses.replace(
        plain, parameters={**plain.parameters, "resize": 128}
    )
    (mine / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"needs config\.json and model\.safetensors"):
        TorchEncoder(VJEPA2Settings(cameras=("agentview",), model=str(mine)))


MAINS = {"torch": torch_main, "jax": jax_main}


@pytest.mark.parametrize("backend", MAINS)
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--grid", "3", "grid 3 does not divide"),
        ("--grid", "-1", "grid is '-1'; give a number"),
        ("--grid", "all", "grid is 'all'; give a number"),
        ("--grid", "4x2", "grid is '4x2'; give a number"),
        ("--grid", "3x3", "grid 3 does not divide"),
        ("--shard", "2/2", "shard '2/2' is not i/n"),
        ("--camera", "sky", "camera 'sky' is not in"),
        ("--views", "0", "encoder.views is 0; it must be at least 1"),
        ("--max-shift", "-1", "encoder.max_shift is -1; it must be at least 0"),
        ("--batch", "0", "--batch is '0'; give a whole number from 1"),
        ("--clip", "0", "encoder.clip_length is 0; it must be at least 1"),
        ("--clip", "-2", "encoder.clip_length is -2; it must be at least 1"),
        ("--verify", "0", "--verify is '0'; give a whole number from 1"),
        ("--verify", "3", "no wmjax latent store there"),
    ],
)
def test_commands_refuse_in_one_line(store: TrainingStore, tmp_path: Path, capsys, backend, option, value, message):
    assert MAINS[backend](["--data", str(store.folder), "--out", str(tmp_path / "z"), option, value]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "z").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("backend", MAINS)
@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("config.json", lambda path: path.write_text("{"), "config.json: not valid JSON"),
        ("config.json", lambda path: path.write_bytes(b"\xff\xfe"), "config.json: not UTF-8 text"),
        ("config.json", lambda path: path.write_text("[1]"), "config.json: the file is [1]; expected dict"),
        (
            "config.json",
            lambda path: path.write_text('{"hidden_size": "a"}'),
            "hidden_size is 'a', expected a positive",
        ),
        ("config.json", lambda path: path.write_text('{"patch_size": 0}'), "patch_size is 0, expected a positive int"),
        ("model.safetensors", cut, "copy it again"),
        ("model.safetensors", lambda path: path.write_bytes(b"weights"), "copy it again"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(store, tmp_path, capsys, backend, file, damage, message):
    shutil.copytree(MINI_FOLDER, tmp_path / "model")
    damage(tmp_path / "model" / file)
    line = ["--data", str(store.folder), "--out", str(tmp_path / "z"), "--model", str(tmp_path / "model")]
    assert MAINS[backend](line) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith(f"error: {tmp_path / 'model'}") and message in error


def test_an_existing_store_is_verified_and_a_changed_one_fails(store, stores, tmp_path, capsys):
    folder = shutil.copytree(stores["torch"].folder, tmp_path / "z")
    line = ["--data", str(store.folder), "--out", str(folder), "--verify", "40"]
    for main in MAINS.values():
        assert main(line) == 0
        assert "all hashes are right; of 40 random latents" in capsys.readouterr().out
    changed = np.load(folder / "latents.npy")
    changed *= np.float16(1.02)
    np.save(folder / "latents.npy", changed)
    assert torch_main(line) == 2 and "latents.npy: sha256 is" in capsys.readouterr().err
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["latents.npy"]["sha256"] = hash_file(folder / "latents.npy")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert torch_main(line) == 2 and "of the RMS from the encoder's" in capsys.readouterr().err


def test_every_token_can_be_kept_in_float32(store, stores, tmp_path, capsys):
    line = ["--data", str(store.folder), "--out", str(tmp_path / "z"), "--grid", "none", "--dtype", "float32"]
    assert torch_main([*line, "--views", "1"]) == 0
    printed, whole = capsys.readouterr().out, LatentStore(tmp_path / "z")
    settings = f"--encoder.path {tmp_path / 'z'} --encoder.views 1 --encoder.pooling_grid 8"
    assert settings in printed
    assert whole.latents.shape == (1, 6, 64, 192) and whole.latents.dtype == np.float32
    pooled = whole.latents[0].reshape(6, 4, 2, 4, 2, 192).mean((2, 4)).reshape(6, 16, 192)
    stored = stores["torch"].latents[0].astype(np.float32)
    assert np.abs(pooled - stored).max() / np.sqrt((stored**2).mean()) < LATENT_BOUNDS["float32"]


def test_latents_in_bfloat16_are_another_store(store, encoders, tmp_path, capsys):
    out = tmp_path / "half"
    line = ["--data", str(store.folder), "--out", str(out), "--views", "1", "--precision", "bfloat16"]
    assert jax_main(line) == 0 and "--encoder.precision bfloat16" in capsys.readouterr().out
    half = LatentStore(out)
    assert half.spec.precision == "bfloat16"
    # Both frameworks compute it, and so does a policy that is trained on it, whatever its settings say.
    given = VJEPA2Settings(cameras=("agentview",))
    online, torch_half = restore_encoder(given, half.spec), TorchEncoder(given.with_spec(half.spec))
    for encoder in (online, torch_half):
        assert verify_latents(store, half, encoder) < LATENT_BOUNDS["bfloat16"]
    clips = EpisodeClips(np.array(store.frames[:4, 0]), [(0, 0)], 4)[:]
    exact, *rounded = (np.asarray(each.encode(clips)) for each in (encoders["jax"], online, torch_half))
    for latents in rounded:
        assert latents.dtype == np.float32
        assert min(difference(a - b, b, "bfloat16") for a, b in zip(latents, exact, strict=True)) > 2e-3
    # Without the setting they are refused.
    with pytest.raises(UserError, match=r"EncoderSpec\.precision differs: 'bfloat16' .*, 'float32' in the encoder"):
        verify_latents(store, half, encoders["jax"])
    exactly = VJEPA2Settings(cameras=("agentview",), views=1, path=str(out))
    message = "precision is float32, .* has bfloat16; set --encoder.precision bfloat16, or .* --precision float32"
    with pytest.raises(UserError, match=message):
        open_latents(exactly, VJEPA2.describe(exactly))


def test_without_tf32_its_latents_are_those_of_float32(store, encoders):
    clips = EpisodeClips(np.array(store.frames[:4, 0]), [(0, 0)], 4)[:]
    settings = VJEPA2Settings(cameras=("agentview",), precision="tf32")
    for name, encoder in (("jax", VJEPA2(settings)), ("torch", TorchEncoder(settings))):
        assert encoder.spec.precision == "tf32"
        np.testing.assert_array_equal(np.asarray(encoder.encode(clips)), np.asarray(encoders[name].encode(clips)))


@pytest.mark.parametrize("name", ["vitl", "vitg"])
def test_short_names_are_published_encoders(monkeypatch, name):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda hub, **_: asked.append(hub) or str(MINI_FOLDER))
    spec = encoder_spec(name, ("agentview",))
    assert asked == [spec.name] == [f"facebook/vjepa2-{name}-fpc64-256"]
    assert spec == encoder_spec(spec.name, ("agentview",))


def test_the_frameworks_do_not_import_each_other():
    code = "import sys, {}; assert not [m for m in {} if m in sys.modules], sys.modules"
    for module, forbidden in (
        ("encoders_export.vjepa", ["jax", "flax"]),
        ("wmjax.encode", ["jax", "torch", "transformers"]),
        ("wmjax.encoders.encode", ["jax", "torch"]),
    ):
        done = subprocess.run([sys.executable, "-c", code.format(module, forbidden)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
