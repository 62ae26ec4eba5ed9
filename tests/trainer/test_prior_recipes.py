"""The recipes of the predecessor's stated configuration: what they see, what they predict, and that they train."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.data.synthetic import make_latents, make_store
from tests.tiny import LATENT_DIM, tiny_config
from wmjax.core.errors import UserError
from wmjax.diagnostics.passes import batches
from wmjax.experiment.config import load
from wmjax.models.prompts import PromptConfig
from wmjax.models.vla import VLA, VLAConfig
from wmjax.trainer.config import Inputs, TrainConfig
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.loop import train
from wmjax.trainer.optimizer import OptimizerConfig
from wmjax.trainer.sharding import MeshConfig
from wmjax.trainer.step import model_input

PRIOR = ("prior_e0_mse", "prior_e0_flow", "prior_e2_mse", "prior_e2_flow")


def small(recipe: str) -> VLAConfig:
    """All that the recipe owns, at tiny sizes."""
    model, tiny = load(recipe).model, tiny_config()
    owned = {name: getattr(model.prophet, name) for name in ("history", "future", "tokens")}
    return dataclasses.replace(
        model,
        backbone=tiny.backbone,
        prophet=dataclasses.replace(tiny.prophet, **owned),
        injection=tiny.injection,
        head_sizes=tiny.head_sizes,
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inputs]:
    store = make_store(tmp_path_factory.mktemp("store"))
    latents = make_latents(tmp_path_factory.mktemp("latents"), store, dim=LATENT_DIM)
    made = {}
    for recipe in PRIOR:
        config = TrainConfig(batch_size=4, validation_fraction=0.2, normalisation=load(recipe).train.normalisation)
        made[recipe] = make_inputs(store, latents, PromptConfig(length=56), small(recipe), config)
    return made


def test_they_are_what_the_predecessor_said() -> None:
    for recipe in PRIOR:
        experiment = load(recipe)
        model = experiment.model
        assert (model.cameras, model.use_state, experiment.train.normalisation) == (1, False, "none")
        assert model.head.kind == ("flow" if recipe.endswith("flow") else "regression")
        assert (model.memory.input, model.memory.inject) == (("latents", True) if "e2" in recipe else ("none", False))
    e2 = load("prior_e2_mse").model
    assert (e2.prophet.tokens, e2.prophet.history, e2.prophet.future, e2.prophet.layers) == (1, 3, 8, 2)
    assert (e2.world.cosine, e2.world.normalised_mse, e2.world.target) == (1.0, 0.0, "delta")
    assert e2.memory.world_loss == 0.2


def test_their_scale_has_the_sizes_that_the_predecessor_stated() -> None:
    """And what the recipes own is the same at every scale."""
    for recipe in PRIOR:
        whole = load(recipe, "prior_3b")
        model, backbone = whole.model, whole.model.backbone
        assert (backbone.text.hidden, backbone.text.depth, backbone.lora.rank) == (2048, 36, 16)
        assert (whole.train.trainable, whole.train.batch_size, whole.optimizer.learning_rate) == ("adapters", 8, 3e-5)
        assert (model.prophet.layers, model.prophet.latent_dim) == (2, 1408)
        assert whole.encoder.model == "facebook/vjepa2-vitg-fpc64-256"
        for scale in ("mini", "3b", "7b"):
            other = load(recipe, scale)
            owned = [
                (x.model.memory, x.model.world, x.model.head, x.model.cameras, x.model.use_state, x.train.normalisation)
                for x in (whole, other)
            ]
            assert owned[0] == owned[1]
            shapes = [(p.tokens, p.history, p.future, p.condition) for p in (model.prophet, other.model.prophet)]
            assert shapes[0] == shapes[1]


def test_actions_stay_as_they_are_and_one_camera_is_in_the_prompt(inputs: dict[str, Inputs]) -> None:
    found = inputs["prior_e0_mse"]
    assert found.action_spec.offset == (0.0,) * 7 and found.action_spec.scale == (1.0,) * 7
    image = small("prior_e0_mse").backbone.image_token
    both = make_inputs(
        found.store, found.latents, PromptConfig(length=56), tiny_config(), TrainConfig(validation_fraction=0.2)
    )
    assert 2 * (found.prompts.tokens == image).sum() == (both.prompts.tokens == image).sum() > 0


def test_neither_the_wrist_camera_nor_the_state_reaches_the_network(inputs: dict[str, Inputs]) -> None:
    found = inputs["prior_e2_mse"]
    graph, state = jax.jit(lambda: nnx.split(VLA(small("prior_e2_mse"), rngs=nnx.Rngs(0))))()
    batch = next(batches(found, "train", 1, 2, 0))
    prompts = jax.tree.map(jax.numpy.asarray, found.prompts)

    @jax.jit
    def hidden(batch: dict) -> jax.Array:
        seen = model_input(batch, prompts, found.action_spec, found.encoder_spec)
        return nnx.merge(graph, state).hidden(seen).tokens

    plain, images = np.asarray(hidden(batch)), batch["images"]
    wrist, front = images.copy(), images.copy()
    wrist[:, 1], front[:, 0] = 255 - wrist[:, 1], 255 - front[:, 0]
    unseen = batch | {"images": wrist, "state": batch["state"] + 1.0}
    np.testing.assert_array_equal(np.asarray(hidden(unseen)), plain)
    assert np.abs(np.asarray(hidden(batch | {"images": front})) - plain).max() > 1e-3


@pytest.mark.long  # the smoke preset trains; what is the predecessor's is tested above
@pytest.mark.parametrize("recipe", ["prior_e0_mse", "prior_e2_flow"])
def test_they_train(recipe: str, inputs: dict[str, Inputs], tmp_path: Path) -> None:
    """The other two differ from these in the head or the memory only."""
    config = TrainConfig(
        steps=3,
        batch_size=4,
        validation_fraction=0.2,
        normalisation="none",
        log_every=1,
        eval_every=3,
        eval_batches=1,
        checkpoint_every=3,
        threads=1,
    )
    optimizer, model = OptimizerConfig(learning_rate=1e-3, warmup_steps=1), small(recipe)
    last = train(
        lambda rngs: VLA(model, rngs=rngs),
        inputs[recipe],
        tmp_path,
        config,
        optimizer,
        MeshConfig(),
        max_shift=2,
        meta={},
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert last.name == "00000003" and len(losses) == 3 and np.isfinite(losses).all() and losses[2] != losses[0]
    if "e2" in recipe:
        # 1 - cos of the changes: a Prophet that starts at no change is at 1, and 8 future frames are scored.
        assert lines[0]["world/loss"] == pytest.approx(1.0, abs=0.02) and "world/skill_8" in lines[0]


def test_more_cameras_than_there_are_is_one_clear_line(inputs: dict[str, Inputs]) -> None:
    found = inputs["prior_e0_mse"]
    with pytest.raises(UserError, match=r"model.cameras is 0; it must be at least 1"):
        dataclasses.replace(tiny_config(), cameras=0)
    model = dataclasses.replace(tiny_config(), cameras=3)
    with pytest.raises(UserError, match=r"model.cameras is 3; the data have 2 \(agentview"):
        make_inputs(found.store, found.latents, PromptConfig(length=56), model, TrainConfig())
