"""Augmentation: the pixels of the latents' camera move as its latents do, wherever that camera stands."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.synthetic import make_episode, make_latents, make_store
from tests.data.test_encode_vjepa2 import FakeEncoder
from tests.tiny import tiny_config
from wmjax.core.errors import UserError
from wmjax.data.loader import make_loader
from wmjax.data.shift import ViewTable, shift_images
from wmjax.data.store import finalize, write_part
from wmjax.encoders.encode import encode_store
from wmjax.experiment.config import load
from wmjax.experiment.plan import plan_run
from wmjax.models.prompts import PromptConfig
from wmjax.pipeline.latents import latents_or_views
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC
from wmjax.trainer.config import TrainConfig
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.step import augment


@pytest.mark.parametrize("cameras", [("agentview", "robot0_eye_in_hand"), ("robot0_eye_in_hand", "agentview")])
def test_the_camera_of_the_latents_is_shifted_as_they_were(cameras: tuple[str, ...], tmp_path: Path) -> None:
    spec = dataclasses.replace(OBSERVATION_SPEC, cameras=cameras, image_size=56, simulator="synthetic")
    for index in range(4):
        write_part(tmp_path / "store", f"{index}", make_episode(index, 30, spec.image_size), spec)
    store = finalize(tmp_path / "store", spec, ACTION_SPEC)
    latents = make_latents(tmp_path / "latents", store)
    for variant in ("e0", "e2"):  # all variants train on the same pixels
        inputs = make_inputs(store, latents, PromptConfig(length=56), tiny_config(variant), TrainConfig())
        assert inputs.cameras == (cameras.index("agentview"),)
        batch = next(iter(make_loader(store, latents, inputs.train_episodes, inputs.loader)))
        assert len(np.unique(batch["shift"], axis=0)) > 3
        shifted = augment(jax.tree.map(jnp.asarray, batch), jax.random.key(0), 6, jnp.zeros(8), inputs.cameras)[
            "images"
        ]
        for view, other in ((inputs.cameras[0], False), (1 - inputs.cameras[0], True)):
            expected = [
                np.array_equal(shift_images(image[view], *map(int, shift)), found[view])
                for image, shift, found in zip(batch["images"], batch["shift"], np.asarray(shifted), strict=True)
            ]
            assert sum(expected) < len(expected) / 2 if other else all(expected)


@pytest.mark.parametrize("recipe", ["e0_flow", "e0plus_mse", "prior_e0_mse"])
def test_what_reads_no_latents_gets_the_shifts_and_no_encoder(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shifts are those of the store that another recipe would encode."""

    def refuse(*_: object) -> None:
        raise AssertionError("an encoder was asked for")

    store = make_store(tmp_path / "store", lengths=(9, 13, 10))
    given = {"data": {"path": str(store.folder)}, "encoder": {"views": 3, "max_shift": 4, "model": "nobody/nothing"}}
    encoder = FakeEncoder()
    monkeypatch.setattr(encoder, "encode", lambda clips: np.zeros((len(clips), 4, 3), np.float32))
    encoded = encode_store(store, tmp_path / "latents", encoder, views=3, max_shift=4)
    assert encoded is not None
    for module in ("experiment.plan.latent_spec", "pipeline.latents.make_encoder", "pipeline.latents.encode"):
        monkeypatch.setattr(f"wmjax.{module}", refuse)
    plan = plan_run(load(recipe, "smoke", overrides=given), tmp_path / "run", evaluates=False)
    assert plan.latent_spec is None
    found = latents_or_views(plan.experiment, store, plan.latent_spec)
    assert isinstance(found, ViewTable) and found.cameras == ("agentview",)
    np.testing.assert_array_equal(found.views, encoded.views)
    wrong = {**given, "encoder": {**given["encoder"], "cameras": ["ceiling"]}}
    with pytest.raises(UserError, match=r"encoder.cameras has 'ceiling'"):
        latents_or_views(load(recipe, "smoke", overrides=wrong), store, None)
