"""Latents that the PyTorch command exported, in two shards, are trained on by the train command, and acted with."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.data.synthetic import make_store
from tests.rollout.runs import parameters, tiny_experiment
from wmjax.core.errors import UserError
from wmjax.core.specs import to_dict
from wmjax.data.latents import LatentStore
from wmjax.data.loader import make_loader
from wmjax.data.observation import Observation
from wmjax.data.store import TrainingStore
from wmjax.encoders.encode import LATENT_BOUNDS
from wmjax.encoders.vjepa2.encoder import VJEPA2Settings
from wmjax.experiment import config
from wmjax.experiment.latent_settings import latent_spec
from wmjax.pipeline import train as pipeline
from wmjax.pipeline.latents import encode
from wmjax.policy.policy import Policy
from wmjax.sim.libero import ACTION_SPEC
from wmjax.train import main
from wmjax.trainer.config import TrainConfig
from wmjax.trainer.inputs import make_inputs

pytest.importorskip("torch")
pytest.importorskip("transformers")

from encoders_export.vjepa import main as export

pytestmark = pytest.mark.torch
WRIST = "robot0_eye_in_hand"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrainingStore:
    return make_store(tmp_path_factory.mktemp("store"), image_size=112, lengths=(9, 13, 9, 13))


@pytest.fixture(scope="module")
def exported(store: TrainingStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three views of up to 2 px, by two shards."""
    out = tmp_path_factory.mktemp("latents") / "z"
    for shard in ("1/2", "0/2"):
        line = ["--data", str(store.folder), "--out", str(out), "--views", "3", "--max-shift", "2", "--shard", shard]
        assert export(line) == 0
    return out


@pytest.fixture(scope="module")
def wrist(store: TrainingStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latents") / "z"
    assert export(["--data", str(store.folder), "--out", str(out), "--views", "1", "--camera", WRIST]) == 0
    return out


def experiment(store: TrainingStore, **encoder) -> config.Experiment:
    """A tiny policy on the mini encoder's latents."""
    return dataclasses.replace(
        tiny_experiment("e2", "flow"),
        data=config.DataConfig(path=str(store.folder)),
        encoder=VJEPA2Settings(**encoder),
        train=TrainConfig(steps=2, batch_size=2, validation_fraction=0.5),
    )


def test_the_train_command_takes_the_latents_of_an_exported_store(store, exported, tmp_path, monkeypatch, capsys):
    settings, fitted = experiment(store, path=str(exported), views=3, max_shift=2), []

    def train_policy(plan, store, latents, start, copy=None):
        fitted.append(make_inputs(store, latents, settings.prompt, settings.model, settings.train))
        (plan.folder / "metrics.jsonl").touch()  # from now on the run is bound to its settings

    monkeypatch.setattr(pipeline, "load", lambda *_: settings)
    monkeypatch.setattr(pipeline, "train_policy", train_policy)
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path / "cache"))
    line = ["--run", str(tmp_path / "run"), "--no-evaluation"]
    assert main(line) == 0 and main(line) == 0
    assert not (tmp_path / "cache" / "latents").exists(), "encoded again"
    inputs, stored = fitted[1], LatentStore(exported)
    spec = stored.training_spec(store, inputs.train_episodes, inputs.val_episodes)
    assert inputs.specs()["encoder"] == to_dict(spec)
    batch = next(iter(make_loader(store, inputs.latents, inputs.train_episodes, inputs.loader)))
    episode = store.frame_episode[batch["sample_id"]]
    views = [np.argmax((stored.views[e] == shift).all(1)) for e, shift in zip(episode, batch["shift"], strict=True)]
    np.testing.assert_array_equal(batch["latents"][:, -1], stored.latents[views, batch["sample_id"]])
    assert len({*views}) > 1
    # A config that was written before there was the setting means the cache; the run needs its store again.
    path = tmp_path / "run" / "config.json"
    old = json.loads(path.read_text())
    del old["encoder"]["path"]
    path.write_text(json.dumps(old))
    assert main(line) == 2 and "was started with encoder.path = '', now it is" in capsys.readouterr().err
    path.write_text(json.dumps({**old, "encoder": {**old["encoder"], "path": str(exported)}}))
    assert main(line) == 0


def test_a_policy_encodes_the_camera_whose_latents_it_was_trained_on(store, wrist):
    latents = encode(experiment(store, path=str(wrist), views=1, max_shift=0, cameras=(WRIST,)), store)
    found = {"observation": store.spec, "encoder": latents.spec, "action": dataclasses.replace(ACTION_SPEC, chunk=8)}
    settings = tiny_experiment("e2", "flow")
    plain = {name: to_dict(spec) for name, spec in found.items()}
    policy = Policy(settings, plain, parameters(settings), batch_size=1, open_loop_horizon=4)
    carry, worst = policy.initial_carry(), 0.0
    for frame in range(store.episodes[0]["num_frames"]):
        images, state = store.frames[frame][None, None], store.state[store.frame_row[frame]][None]
        seen = Observation(images, state, policy.prompt(store.tasks[0].instruction), np.array([frame == 0]))
        carry, _, _ = policy(carry, seen, jax.random.split(jax.random.key(0), 1))
        truth = latents.latents[0, frame].astype(np.float32)
        worst = max(worst, float(np.abs(carry.latents[0, -1] - truth).max() / np.sqrt((truth**2).mean())))
    assert worst < LATENT_BOUNDS["float32"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": 2}, r"encoder.views is 2, latent store .* has 3; set --encoder.views 3, or .* --views 2"),
        ({"max_shift": 1}, r"encoder.max_shift is 1, latent store .* has 2; set --encoder.max_shift 2"),
        ({"clip_length": 2}, r"encoder.clip_length is 2, latent store .* has 4; .* with --clip 2"),
        ({"pooling_grid": 8}, r"encoder.pooling_grid is 8, latent store .* has 4; .* with --grid 8"),
        ({"cameras": (WRIST,)}, r'encoder.cameras is \["robot0_eye_in_hand"\], latent store .* has \["agentview"\]'),
        ({"path": "nowhere"}, r"nowhere: no wmjax latent store there"),
    ],
)
def test_a_store_of_other_latents_is_refused_before_recording(exported, change, message):
    settings = VJEPA2Settings(**{"path": str(exported), "views": 3, "max_shift": 2, **change})
    with pytest.raises(UserError, match=message):
        latent_spec(settings, config.DataConfig(path="given"))


def test_another_encoder_and_other_frames_are_refused(store, exported, tmp_path):
    manifest = json.loads((exported / "manifest.json").read_text())
    other = tmp_path / "z"
    other.mkdir()
    (other / "latents.npy").symlink_to(exported / "latents.npy")
    settings = experiment(store, path=str(other), views=3, max_shift=2)

    def write(**spec) -> None:
        changed = {**manifest, "encoder_spec": {**manifest["encoder_spec"], **spec}}
        (other / "manifest.json").write_text(json.dumps(changed))

    write(weights_hash="77")
    with pytest.raises(
        UserError, match=r"weights_hash differs: '\w{16}' of encoder vjepa2 'mini', '77' in latent store"
    ):
        encode(settings, store)
    write(name="a copy of mini elsewhere")  # the same weights by another name
    assert encode(settings, store).spec.name == "mini"
    shorter = make_store(tmp_path / "shorter", image_size=112, lengths=(9, 13, 9, 9))
    with pytest.raises(UserError, match="frame count differs"):
        encode(settings, shorter)


def test_a_camera_that_cannot_be_trained_on_is_refused(store):
    recorded = config.DataConfig()
    assert latent_spec(VJEPA2Settings(cameras=(WRIST,)), recorded).cameras == (WRIST,)
    with pytest.raises(UserError, match=r"encoder.cameras has 'sky'; the frames are of agentview, robot0_eye_in_hand"):
        latent_spec(VJEPA2Settings(cameras=("sky",)), recorded)
    with pytest.raises(UserError, match=r"encoder.cameras has 'sky'"):
        encode(experiment(store, cameras=("sky",)), store)


def test_settings_that_do_not_fit_the_encoder_fail_before_recording(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "demonstrations", lambda _: pytest.fail("recorded"))
    for name, value, message in (
        ("pooling_grid", "3", "grid 3 does not divide"),
        ("clip_length", "3", "clip length 3 is not a multiple"),
        ("path", "nowhere", "no wmjax latent store there"),
        ("model", str(tmp_path), "needs config.json and model.safetensors"),
    ):
        fits = ["--model.prophet.tokens", "9"] if name == "pooling_grid" else []
        given = ["--config", "e2_mse", f"--encoder.{name}", value, *fits]
        assert main([*given, "--run", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("file", ["frames.npy", "latents.npy"])
def test_a_flipped_bit_is_found_before_training(store, exported, tmp_path, file):
    data, out = shutil.copytree(store.folder, tmp_path / "data"), shutil.copytree(exported, tmp_path / "z")
    settings, copied = experiment(store, path=str(out), views=3, max_shift=2), TrainingStore(data)
    encode(settings, copied)
    (path,) = tmp_path.glob(f"*/{file}")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{file}: sha256 is"):
        encode(settings, copied)
