"""The recipes that ``test_smoke.py`` does not run in closed loop, traced at full size."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.data.synthetic import make_latents, make_store
from tests.e2e.test_smoke import IN_ONE_PROCESS
from wmjax.data.latents import LatentStore
from wmjax.data.loader import make_loader
from wmjax.data.store import TrainingStore
from wmjax.experiment.config import load, recipe_names
from wmjax.models.vla import VLA
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.step import model_input

RUN_IN_FULL = {*IN_ONE_PROCESS, "e0_mse", "e2_flow"}
RECIPES = {name for name in recipe_names() if not name.endswith("_l1")} | {"e2_l1"}  # l1 is mse with another loss


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingStore, LatentStore]:
    store = make_store(tmp_path_factory.mktemp("store"), image_size=112, lengths=(20, 20, 20, 20), branch=4)
    return store, make_latents(tmp_path_factory.mktemp("latents"), store, dim=192)


def test_every_recipe_is_run_or_traced() -> None:
    assert RUN_IN_FULL < RECIPES
    assert {name.rpartition("_")[0] for name in RUN_IN_FULL} == {name.rpartition("_")[0] for name in RECIPES}


@pytest.mark.parametrize("recipe", sorted(RECIPES - RUN_IN_FULL))
def test_the_other_head_trains_and_acts(recipe: str, stores: tuple[TrainingStore, LatentStore]) -> None:
    experiment = load(recipe, "smoke")
    inputs = make_inputs(*stores, experiment.prompt, experiment.model, experiment.train)
    batch = next(iter(make_loader(*stores, inputs.train_episodes, inputs.loader)))

    def both(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = VLA(experiment.model, rngs=nnx.Rngs(key))
        given = model_input(batch, inputs.prompts, inputs.action_spec, inputs.encoder_spec)
        loss, metrics = model.loss(given, batch["action"], batch["action_mask"], key)
        oracle = jnp.asarray(given.future) if experiment.model.memory.needs_future else None
        action, info = model.sample(given._replace(future=None, future_mask=None), key, memory=oracle)
        assert ("memory/gate" in info) == ("memory/gate" in metrics) == experiment.model.memory.inject
        return loss, action

    loss, action = jax.eval_shape(both, jax.random.key(0))
    assert loss.shape == () and action.shape == batch["action"].shape
