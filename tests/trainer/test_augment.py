"""Augmentation: the pixels of the latents' camera move as its latents do, wherever that camera stands."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.synthetic import make_episode, make_latents
from tests.tiny import tiny_config
from wmjax.data.loader import make_loader
from wmjax.data.shift import shift_images
from wmjax.data.store import finalize, write_part
from wmjax.models.prompts import PromptConfig
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
