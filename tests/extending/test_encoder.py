"""An encoder from outside the package: settings, a latent store, the real training step, a policy."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wmjax.encode as command
from examples.add_encoder import CHANNELS
from tests.data.synthetic import make_store
from tests.extending.runs import losses, rollout_latents, small, train_and_load
from wmjax.core.errors import UserError
from wmjax.data.latents import LatentStore
from wmjax.encoders.base import describe
from wmjax.experiment.checks import require_consistent
from wmjax.experiment.config import Experiment, from_dict, load, to_dict
from wmjax.pipeline.latents import encode

KIND = "examples.add_encoder:ColourGrid"
CAMERAS = ("agentview", "robot0_eye_in_hand")


def experiment(*cameras: str, **settings: Any) -> Experiment:
    """The claim's recipe on the latents of some cameras."""
    chosen = {"kind": KIND, "cells": 2, "cameras": list(cameras), **settings}
    prophet = {"latent_dim": CHANNELS, "tokens": 4 * len(cameras)}
    made = small("e2_flow", {"encoder": chosen, "model": {"prophet": prophet}}, "prophet")
    sizes = {"width": 24, "heads": 2, "layers": 1}
    return dataclasses.replace(
        made, model=dataclasses.replace(made.model, prophet=dataclasses.replace(made.model.prophet, **sizes))
    )


@pytest.mark.long  # docs/test_examples.py runs the example, which trains and acts with the same encoder
@pytest.mark.parametrize("cameras", [CAMERAS[1:], CAMERAS])
def test_it_encodes_trains_and_acts(cameras: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path / "cache"))
    store, made = make_store(tmp_path / "store"), experiment(*cameras)
    latents = encode(made, store)
    assert latents.spec.kind == KIND and latents.latents.shape[2:] == (4 * len(cameras), CHANNELS)
    # View 0 is not shifted: each token begins with the mean of a quarter of a camera's frame.
    frame = np.asarray(store.frames[7][[store.spec.cameras.index(name) for name in cameras]], np.float32) / 255
    colours = frame.reshape(-1, 2, 28, 2, 28, 3).mean((2, 4)).reshape(-1, 3)
    np.testing.assert_allclose(latents.latents[0, 7, :, :3], colours, atol=1e-3)
    policy = train_and_load(made, store, latents, tmp_path / "run")
    assert np.isfinite(losses(tmp_path / "run")).all()
    assert policy.predicts and policy.encoder_spec is not None
    # Its statistics are those of the training episodes, the store's those of all.
    trained, stored = (dataclasses.replace(spec, mean=(), std=()) for spec in (policy.encoder_spec, latents.spec))
    assert trained == stored and policy.encoder_spec.mean != latents.spec.mean
    frames, seen = rollout_latents(policy, store)
    np.testing.assert_allclose(seen, latents.latents[0, frames].astype(np.float32), atol=1e-3)


def test_the_export_command_makes_a_store_that_training_takes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    store = make_store(tmp_path / "store")
    line = ["--data", str(store.folder), "--out", str(tmp_path / "z"), "--encoder.kind", KIND, "--encoder.cells", "8"]
    assert command.main([*line, "--camera", ",".join(CAMERAS)]) == 0
    printed = capsys.readouterr().out
    assert f"--encoder.kind {KIND}" in printed and "--encoder.cells 8" in printed
    assert command.main([*line[:4], "--verify", "5"]) == 0
    given = load("e2_flow", overrides={"encoder": {"kind": KIND, "cells": 2, "path": str(tmp_path / "z")}})
    with pytest.raises(UserError, match=r"encoder.cameras is \[\"agentview\"\], latent store .* with --camera"):
        encode(given, store)
    both = dataclasses.replace(given.encoder, cameras=CAMERAS)
    with pytest.raises(UserError, match=r"encoder.cells is 2, latent store .* has 8; set --encoder.cells 8"):
        encode(dataclasses.replace(given, encoder=both), store)
    fitting = dataclasses.replace(both, cells=8)
    assert encode(dataclasses.replace(given, encoder=fitting), store).hash == LatentStore(tmp_path / "z").hash


def test_its_settings_are_typed_checked_and_survive_a_checkpoint() -> None:
    overrides = {"encoder": {"kind": KIND, "cells": 3}}
    made = load("e2_flow", overrides=overrides)
    assert from_dict(to_dict(made)) == made and describe(made.encoder).tokens_per_frame == 9
    with pytest.raises(UserError, match=r"model.prophet.tokens is 16, .* make 9 tokens per frame; set .* to 9"):
        require_consistent(made)
    with pytest.raises(UserError, match=r"unknown setting 'encoder.model'"):
        load("e2_flow", overrides={"encoder": {"kind": KIND, "model": "mini"}})
    with pytest.raises(UserError, match=r"encoder.cameras is \['a', 'a'\]; name each camera once"):
        load("e2_flow", overrides={"encoder": {"cameras": ["a", "a"]}})
