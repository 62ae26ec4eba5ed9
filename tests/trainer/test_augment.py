"""Augmentation: the pixels of the latents' camera move as its latents do, wherever that camera stands."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.synthetic import make_episode, make_latents, make_store
from tests.data.test_encode_vjepa2 import FakeEncoder
from tests.tiny import tiny_config
from tests.trainer.toy import fit_toy, toy_config, toy_inputs
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
from wmjax.trainer.colours import ColourConfig, change_colours, jitter_colours
from wmjax.trainer.config import TrainConfig
from wmjax.trainer.crops import crop, crop_at_random
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


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 2, 6, 7, 3), dtype=np.uint8)


@pytest.mark.torch
@pytest.mark.parametrize(
    "factors", [(1.3, 1.0, 1.0), (1.0, 0.6, 1.0), (1.0, 1.0, 1.5), (0.7, 1.4, 0.5), (1.0, 1.0, 0.0)]
)
def test_colours_are_changed_by_the_formulas_of_torchvision(factors: tuple[float, float, float]) -> None:
    """Written out, because torchvision does not import beside a CPU build of torch."""
    torch = pytest.importorskip("torch")

    def blend(one: Any, other: Any, ratio: float) -> Any:
        return (ratio * one + (1.0 - ratio) * other).clamp(0, 255)

    def grey(image: Any) -> Any:
        red, green, blue = image.unbind(dim=-3)
        return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(dim=-3)

    expected = torch.from_numpy(IMAGES).permute(0, 1, 4, 2, 3).float()
    expected = blend(expected, torch.zeros_like(expected), factors[0])
    expected = blend(expected, grey(expected).mean(dim=(-3, -2, -1), keepdim=True), factors[1])
    expected = blend(expected, grey(expected), factors[2]).permute(0, 1, 3, 4, 2).numpy()
    found = change_colours(jnp.asarray(IMAGES), jnp.broadcast_to(jnp.array(factors, jnp.float32), (5, 2, 3)))
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, atol=0.502)  # half a step of rounding


def test_every_image_gets_its_own_colours_within_the_bounds() -> None:
    grey = jnp.full((64, 2, 4, 4, 3), 100, jnp.uint8)
    found = np.asarray(jitter_colours(grey, jax.random.key(0), ColourConfig(brightness=0.3)))
    levels = found[..., 0, 0, 0]
    assert (found == levels[..., None, None, None]).all()
    assert levels.min() >= 70 and levels.max() <= 130 and levels.min() < 75 and levels.max() > 125
    assert (levels[:, 0] != levels[:, 1]).mean() > 0.8
    again = jitter_colours(grey, jax.random.key(1), ColourConfig(brightness=0.3))
    assert (np.asarray(again) != found).any()
    assert not ColourConfig().changes and ColourConfig(saturation=0.1).changes
    unchanged = jitter_colours(jnp.asarray(IMAGES), jax.random.key(0), ColourConfig())
    np.testing.assert_array_equal(unchanged, IMAGES)


@pytest.mark.parametrize(("place", "share"), [((0.0, 1.0), 0.5), ((0.3, 0.6), 0.8), ((1.0, 0.0), 1.0)])
def test_a_crop_is_the_part_of_the_image_at_its_place(place: tuple[float, float], share: float) -> None:
    """Bilinear interpolation, written out: rows and columns one after the other, edges repeated."""
    image = IMAGES[0, 0].astype(np.float64)
    for axis, at in enumerate(place):
        size = image.shape[axis]
        where = at * (1 - share) * size + (np.arange(size) + 0.5) * share - 0.5
        image = np.apply_along_axis(lambda row, w=where, n=size: np.interp(w, np.arange(n), row), axis, image)
    found = crop(jnp.asarray(IMAGES[0, 0]), jnp.array(place), share)
    np.testing.assert_allclose(found, image, atol=1e-2)


def test_every_image_is_cropped_at_a_place_of_its_own() -> None:
    ramp = jnp.broadcast_to(jnp.arange(200, dtype=jnp.uint8)[:, None, None], (64, 2, 200, 4, 3))
    found = np.asarray(crop_at_random(ramp, jax.random.key(0), 0.9)).astype(int)
    first, last = found[:, :, 0, 0, 0], found[:, :, -1, 0, 0]
    assert (abs(last - first - 179) <= 1).all() and first.min() <= 1 and first.max() >= 18
    assert (first[:, 0] != first[:, 1]).mean() > 0.7


def test_training_sees_changed_images_and_validation_does_not(tmp_path: Path) -> None:
    store, seen = make_store(tmp_path / "store"), {}
    bright = ColourConfig(brightness=0.9)
    for name, changes in (("plain", {}), ("bright", {"colours": bright}), ("cropped", {"crop": 0.2})):
        config = toy_config(steps=4, eval_every=4, **changes)
        fit_toy(toy_inputs(store, config), tmp_path / name, config)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        seen[name] = {split: [x["pixels"] for x in lines if x["split"] == split] for split in ("train", "val")}
    for name in ("bright", "cropped"):
        assert seen["plain"]["val"] == seen[name]["val"] and len(seen["plain"]["train"]) == 4
        assert all(a != b for a, b in zip(seen["plain"]["train"], seen[name]["train"], strict=True))


def test_colours_are_a_setting_of_training() -> None:
    found = load("e2_flow", "smoke", overrides={"train": {"colours": {"contrast": 0.4}}})
    assert found.train.colours == ColourConfig(contrast=0.4)
    with pytest.raises(UserError, match=r"colours\.brightness is 1\.5"):
        load("e2_flow", "smoke", overrides={"train": {"colours": {"brightness": 1.5}}})
