"""Training on stored features of a frozen vision tower: the step is that on images, within the store's rounding."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import wmjax
from tests.extending.runs import SHORT, first_chunk, losses
from tests.tiny import tiny_config
from wmjax.core.errors import UserError
from wmjax.core.rng import named_key
from wmjax.core.settings import merge
from wmjax.data.latents import LatentStore
from wmjax.data.loader import Batch, make_loader
from wmjax.data.packing import SCALE, VALUES, unpack
from wmjax.data.shift import shift_images
from wmjax.data.store import TrainingStore
from wmjax.data.union import UnionStore
from wmjax.experiment.checks import require_consistent
from wmjax.experiment.config import Experiment, load
from wmjax.experiment.plan import RunPlan, StartingWeights
from wmjax.models.backbones.frozen_vision import FrozenVision
from wmjax.models.backbones.qwen2_5_vl import weights
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.nn.lora import LoRAConfig
from wmjax.models.parameters import split_model, to_named, trainable_filter
from wmjax.models.prompts import PromptConfig
from wmjax.models.vla import VLA
from wmjax.pipeline.latents import latents_or_views
from wmjax.pipeline.train import train_policy
from wmjax.pipeline.vision_features import frozen_vision, vision_features
from wmjax.scaling.shapes import feature_bytes
from wmjax.trainer.config import Inputs
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.step import decode, initial_state, make_train_step

FROZEN: dict[str, Any] = {
    "train": {"trainable": "adapters", "backbone_weights": "random", "same_shift": True},
    "encoder": {"max_shift": 2},
}
BOUNDS = {"float32": 1e-5, "bfloat16": 4e-3, "int8": 1e-2}
"""Largest distance between the gradients of a step on features and of the step on images, relative to their norm."""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cached_vision"))


def experiment(store: TrainingStore, cached: str, **changes: Any) -> Experiment:
    """A frozen random backbone with adapters on its decoder, on a store of noise, with the settings of the command."""
    given = {"data": {"path": str(store.folder)}, "train": {"cached_vision": cached}, **changes}
    loaded = load("e0_mse", overrides=merge(merge(SHORT, FROZEN), given))
    model = tiny_config("e0", "regression", lora=LoRAConfig(rank=2))
    return dataclasses.replace(loaded, model=model, prompt=PromptConfig(length=56))


def drawn(draw: Callable[[], nnx.Module]) -> Any:
    """The module, drawn in one program."""
    return nnx.merge(nnx.split(nnx.eval_shape(draw))[0], jax.jit(lambda: nnx.split(draw())[1])())


def initial_model(given: Experiment) -> VLA:
    return drawn(lambda: VLA(given.model, rngs=nnx.Rngs(named_key(given.train.seed, "parameters"))))


def seen(tower: nnx.Module, images: np.ndarray) -> np.ndarray:
    graph, params = nnx.split(tower)
    return np.asarray(jax.jit(lambda params, images: nnx.merge(graph, params)(images))(params, images))


def inputs_of(given: Experiment, store: TrainingStore) -> Inputs:
    features = vision_features(given, StartingWeights(), store)
    views = latents_or_views(given, store, None)
    return make_inputs(store, views, given.prompt, given.model, given.train, features=features)


def first_batch(given: Experiment, store: TrainingStore) -> tuple[Inputs, Batch]:
    """The first batch of a training, with features as the step decodes them."""
    inputs = inputs_of(given, store)
    loader = dataclasses.replace(inputs.loader, batch_size=8)
    batch = next(iter(make_loader(store, inputs.latents, inputs.train_episodes, loader, inputs.features)))
    assert np.abs(batch["shift"]).max() == 2 and ("images" in batch) != ("features" in batch)
    if inputs.features is not None:
        packed = {VALUES: batch["features"], SCALE: batch.pop("feature_scale", None)}
        arrays = [None if part is None else jnp.asarray(part) for part in packed.values()]
        batch["features"] = np.asarray(decode(*arrays), np.float32)
        assert np.array_equal(batch["features"], unpack(packed, inputs.features.dtype))
    return inputs, batch


def test_a_step_on_features_is_the_step_on_images(store: TrainingStore) -> None:
    given = experiment(store, "none")
    inputs, images = first_batch(given, store)
    model, optimizer = initial_model(given), optax.sgd(1.0)
    graph, params, frozen = split_model(model, trainable_filter("adapters"))
    noise = {"ema_decay": 0.9, "max_shift": 2, "state_noise": 0.02}
    step = jax.jit(make_train_step(graph, optimizer, inputs.action_spec, None, seed=0, **noise, cameras=inputs.cameras))

    def gradients(batch: Batch) -> tuple[float, np.ndarray]:
        """Loss and gradients: what plain descent at rate 1 subtracts."""
        after, metrics = step(initial_state(params, optimizer), frozen, batch, inputs.prompts)
        before, moved = to_named(params), to_named(after.params)
        return float(metrics["loss"]), np.concatenate([np.ravel(moved[name] - before[name]) for name in before])

    (loss, exact), errors = gradients(images), {}
    for cached, bound in BOUNDS.items():
        other, found = gradients(first_batch(experiment(store, cached), store)[1])
        errors[cached] = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
        assert errors[cached] < bound and abs(other - loss) < bound * abs(loss), (cached, errors, other, loss)
    assert errors["float32"] < errors["bfloat16"] / 10, errors


def test_the_store_has_the_features_of_every_frame_camera_and_view(store: TrainingStore) -> None:
    given = experiment(store, "float32")
    features = vision_features(given, StartingWeights(), store)
    assert features is not None and features.latents.shape == (2, len(store.frame_step), 8, 48)
    size = features.latents.nbytes / 2 / len(store.frame_step)
    recorded = dataclasses.replace(given, data=dataclasses.replace(given.data, path=""))
    assert feature_bytes(recorded) == (112 / 56) ** 2 * size
    frame, view, model = 17, 1, initial_model(given)
    shift = features.views[store.frame_episode[frame], view]
    images = np.stack([shift_images(image, *map(int, shift)) for image in np.asarray(store.frames[frame])])
    expected = seen(model.backbone.vision, images).reshape(8, 48)
    np.testing.assert_allclose(features.latents[view, frame], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(features.latents[0, frame] - expected).max() > 0.1


def test_features_are_made_once_and_for_one_tower(store: TrainingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(given: Experiment, stores: TrainingStore) -> LatentStore:
        found = vision_features(given, StartingWeights(), stores)
        assert found is not None
        return found

    first = made(experiment(store, "int8"), store)
    other = made(experiment(store, "int8", train={"cached_vision": "int8", "seed": 3}), store)
    assert first.folder != other.folder and first.hash != other.hash
    monkeypatch.setattr(FrozenVision, "encode", None)
    assert made(experiment(store, "int8"), store).hash == first.hash
    twice = UnionStore([store, store])
    views = np.concatenate([first.views, first.views])
    joined = made(experiment(store, "int8"), twice)
    assert np.array_equal(joined.views, views) and joined.scale[1, len(store.frame_step)][0] == first.scale[1, 0][0]


def test_published_weights_are_those_of_the_tower(store: TrainingStore, tmp_path: Path) -> None:
    given = experiment(store, "float32")
    plain = dataclasses.replace(given.model.backbone, lora=LoRAConfig())
    published = drawn(lambda: Qwen2_5_VL(plain, rngs=nnx.Rngs(7)))
    weights.save(published, tmp_path)
    tower = frozen_vision(given, StartingWeights(tmp_path, "1234"), store.spec)
    assert tower.spec.weights_hash == "1234"
    images = np.asarray(store.frames[:3, 0])
    np.testing.assert_allclose(tower.encode(images[:, None]), seen(published.vision, images), rtol=1e-4, atol=1e-5)


def test_it_trains_on_features_and_acts_on_images(store: TrainingStore, tmp_path: Path) -> None:
    lengths = {"steps": 2, "eval_every": 2, "eval_batches": 1}
    given = experiment(store, "int8", train={"cached_vision": "int8", **lengths})
    plan = RunPlan(given, tmp_path / "run", store, None, StartingWeights(), None)
    train_policy(plan, store, latents_or_views(given, store, None))
    assert np.isfinite(losses(tmp_path / "run")).all() and len(losses(tmp_path / "run")) == 2
    policy = wmjax.load_policy(tmp_path / "run", batch_size=1)
    assert np.isfinite(first_chunk(policy, store)).all()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train": {"crop": 0.95}}, "train.crop is 0.95"),
        ({"train": {"colours": {"contrast": 0.1}}}, "train.colours changes the images"),
        ({"train": {"trainable": "all"}}, "train.trainable is all"),
        ({"train": {"same_shift": False}}, "images of robot0_eye_in_hand are shifted at random"),
        ({"train": {"seeds": 2}}, "train.seeds is 2"),
        ({"model": {"backbone": {"lora": {"rank": 2, "vision_targets": ["qkv"]}}}}, "2 arrays of adapters"),
        ({"model": {"backbone": {"kind": "tests.extending.bag_of_words:BagOfWords"}}}, "no vision tower"),
    ],
)
def test_what_would_change_the_features_is_refused(changes: dict[str, Any], reason: str) -> None:
    given = merge(merge(FROZEN, {"train": {"cached_vision": "int8"}}), changes)
    with pytest.raises(UserError, match=rf"train\.cached_vision.*{reason}"):
        require_consistent(load("e0_flow", "smoke", overrides=given), evaluates=False)


def test_still_images_need_no_shared_shift() -> None:
    still = {"train": {"cached_vision": "int8", "same_shift": False}, "encoder": {"max_shift": 0}}
    require_consistent(load("e0_flow", "smoke", overrides=merge(FROZEN, still)), evaluates=False)
