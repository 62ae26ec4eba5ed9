"""Training: what moves and what does not, bit-exact resume, the same numbers on any mesh."""

import dataclasses
import json
import logging
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from tests.data.synthetic import make_latents
from tests.tiny import LATENT_DIM, tiny_config
from wmjax.core.errors import UserError
from wmjax.core.rng import named_key
from wmjax.core.specs import to_dict
from wmjax.data.latents import LatentStore
from wmjax.data.store import TrainingStore
from wmjax.experiment.config import load
from wmjax.models.nn.lora import ADAPTER, LoRAConfig
from wmjax.models.parameters import split_model, to_named, trainable_filter
from wmjax.models.prompts import PromptConfig
from wmjax.models.vla import VLA, VLAConfig
from wmjax.policy.restore import restore_model, sharing
from wmjax.trainer import checkpoint
from wmjax.trainer.config import Inputs, TrainConfig
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.loop import train
from wmjax.trainer.optimizer import OptimizerConfig
from wmjax.trainer.sharding import MeshConfig, make_mesh

CONFIG = TrainConfig(
    steps=6,
    batch_size=4,
    validation_fraction=0.2,
    log_every=1,
    eval_every=6,
    eval_batches=1,
    checkpoint_every=3,
    threads=1,
)
# Without weight decay, which moves what has no gradient too.
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=1, weight_decay=0.0)


@pytest.fixture(scope="module")
def inputs(store: TrainingStore, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    latents = make_latents(tmp_path_factory.mktemp("latents"), store, dim=LATENT_DIM)
    return make_inputs(store, latents, PromptConfig(length=56), tiny_config(), CONFIG)


def fit(inputs: Inputs, run: Path, config: TrainConfig = CONFIG, model: VLAConfig | None = None, **kw) -> Path:
    model = model or tiny_config()
    mesh = kw.pop("mesh", MeshConfig())
    build = lambda rngs: VLA(model, rngs=rngs)  # noqa: E731
    return train(build, inputs, run, config, OPTIMIZER, mesh, max_shift=3, meta={"name": "test"}, **kw)


def saved(folder: Path, model: VLAConfig, trainable: str = "all") -> dict[str, np.ndarray]:
    shapes = split_model(nnx.eval_shape(lambda: VLA(model, rngs=nnx.Rngs(0))), trainable_filter(trainable))[1]
    return jax.device_get(checkpoint.restore(folder, "ema", to_named(shapes)))


def test_no_seed_learns_from_episodes_that_another_is_scored_on(inputs: Inputs) -> None:
    assert inputs.latents is not None
    others = [dataclasses.replace(CONFIG, seed=seed) for seed in range(1, 5)]
    made = [
        make_inputs(inputs.store, inputs.latents, PromptConfig(length=56), tiny_config(), config) for config in others
    ]
    assert {tuple(each.val_episodes) for each in made} == {tuple(inputs.val_episodes)}


@pytest.fixture(scope="module")
def finished(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that was left alone, and what it logged."""
    run, handler, logger = tmp_path_factory.mktemp("run"), BufferingHandler(10_000), logging.getLogger("wmjax")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    fit(inputs, run)
    logger.setLevel(level)
    logger.removeHandler(handler)
    return run, [record.getMessage() for record in handler.buffer]


@pytest.mark.slow
def test_every_parameter_moves_and_metrics_are_written(finished: tuple[Path, list[str]]) -> None:
    run, logged = finished
    assert logged and not [line for line in logged if "compiled again" in line]
    model, last = tiny_config(), checkpoint.latest(run / "checkpoints")
    start = VLA(model, rngs=nnx.Rngs(named_key(CONFIG.seed, "parameters")))
    before, after = to_named(split_model(start, trainable_filter("all"))[1]), saved(last, model)
    still = [name for name in before if np.array_equal(before[name], after[name])]
    assert still == []
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    val = next(line for line in lines if line["split"] == "val")
    assert {f"r2/{i}" for i in range(7)} <= val.keys()
    assert np.isfinite([v for k, v in val.items() if k != "split"]).all()


class KilledError(Exception):
    """Ends a training from inside."""


def kill(step: int, *_: Any) -> None:
    """Ends a training at its first checkpoint."""
    raise KilledError


def require_exact_resume(inputs: Inputs, folder: Path) -> None:
    """A run that was ended at its first checkpoint and started again ends with the parameters of one that was not."""
    straight = saved(fit(inputs, folder / "straight"), tiny_config())

    with pytest.raises(KilledError):
        fit(inputs, folder / "killed", on_checkpoint=kill)
    assert checkpoint.complete_steps(folder / "killed" / "checkpoints") == [3]
    seen: list[int] = []
    resumed = saved(fit(inputs, folder / "killed", on_checkpoint=lambda step, *_: seen.append(step)), tiny_config())
    assert seen == [3, 6]  # 3 again: what was to be done with it may have been killed too
    for name, value in straight.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


@pytest.mark.long  # test_distributed.py kills and resumes the real command, test_survival.py a small network
def test_a_killed_run_resumes_bit_for_bit(inputs: Inputs, tmp_path: Path) -> None:
    require_exact_resume(inputs, tmp_path)


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_data_encoder_and_prompts_only(
    inputs: Inputs, finished: tuple[Path, list[str]]
) -> None:
    run, last = finished[0], checkpoint.latest(finished[0] / "checkpoints")
    assert inputs.encoder_spec is not None
    other = dataclasses.replace(inputs.encoder_spec, weights_hash="another")
    changed = {
        "EncoderSpec.weights_hash differs": dataclasses.replace(inputs, encoder_spec=other),
        "tokenizer differs": dataclasses.replace(inputs, prompt_hashes=inputs.prompt_hashes | {"tokenizer": "another"}),
    }
    for message, theirs in changed.items():
        with pytest.raises(UserError, match=message):
            fit(theirs, run)
    meta = checkpoint.read_meta(last)
    with pytest.raises(UserError, match=r"store differs: .* in the training data, 'extended' in the checkpoint"):
        inputs.require_same(meta | {"store": "extended"})


def test_statistics_of_latents_are_of_the_training_episodes(inputs: Inputs) -> None:
    """Another split is another identity: other statistics, and a checkpoint that is refused."""
    store, latents = inputs.store, inputs.latents
    assert isinstance(latents, LatentStore) and len(inputs.val_episodes)
    for fraction in (0.2, 0.8):  # the frames of the smaller side are read
        split = dataclasses.replace(CONFIG, validation_fraction=fraction)
        made = make_inputs(store, latents, PromptConfig(length=56), tiny_config(), split)
        rows = np.isin(store.frame_episode, made.train_episodes)
        values = np.asarray(latents.latents[0])[rows].astype(np.float64).reshape(-1, LATENT_DIM)
        assert made.encoder_spec is not None
        np.testing.assert_allclose(made.encoder_spec.mean, values.mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(made.encoder_spec.std, values.std(axis=0), rtol=1e-5, atol=1e-6)
        assert made.meta()["specs"]["encoder"] == to_dict(made.encoder_spec) != to_dict(latents.spec)
    assert made.encoder_spec.mean != inputs.encoder_spec.mean
    with pytest.raises(
        UserError, match=r"mean and deviation of these latents .* restore what the run was started with"
    ):
        made.as_in(inputs.meta() | {"specs": inputs.meta()["specs"] | {"action": to_dict(made.action_spec)}})


@pytest.mark.long  # three trainings
def test_a_run_goes_on_with_the_statistics_of_its_checkpoint(inputs: Inputs, tmp_path: Path) -> None:
    """The policy that ships has those of all episodes; what it learned is in units of those."""
    assert isinstance(inputs.latents, LatentStore)
    older = dataclasses.replace(inputs, encoder_spec=inputs.latents.spec)
    straight = saved(fit(older, tmp_path / "straight"), tiny_config())
    with pytest.raises(KilledError):
        fit(older, tmp_path / "stopped", on_checkpoint=kill)
    last = fit(inputs, tmp_path / "stopped")
    assert checkpoint.read_meta(last)["specs"]["encoder"] == to_dict(inputs.latents.spec)
    for name, value in saved(last, tiny_config()).items():
        np.testing.assert_array_equal(value, straight[name], err_msg=name)
    # Latents of other values, under the same spec.
    width = LATENT_DIM
    others = dataclasses.replace(inputs.latents.spec, mean=(0.5,) * width, std=(2.0,) * width)
    meta = checkpoint.read_meta(last)
    with pytest.raises(UserError, match="they have other values"):
        inputs.as_in(meta | {"specs": meta["specs"] | {"encoder": to_dict(others)}})


@pytest.mark.long  # models/test_lora.py trains adapters on a base that keeps its bits
def test_frozen_backbone_stays_and_adapters_move(inputs: Inputs, tmp_path: Path) -> None:
    """Every frozen leaf has the same bits in training and in the policy that acts; every other parameter trained."""
    model = tiny_config(lora=LoRAConfig(rank=2), param_dtype="bfloat16")
    config = dataclasses.replace(CONFIG, trainable="adapters", backbone_weights="random")
    before: dict[str, np.ndarray] = {}

    def keep(params: nnx.State, frozen: nnx.State) -> tuple[nnx.State, nnx.State]:
        before.update({name: np.array(value) for name, value in to_named(frozen).items()})
        return params, frozen

    last = fit(inputs, tmp_path, config, model, load_base=keep)
    # No checkpoint holds them: who acts makes them again from the seed, in another program.
    experiment = dataclasses.replace(load("e2_flow"), model=model, train=config)
    acting = restore_model(experiment, saved(last, model, "adapters"), None)
    after = to_named(split_model(acting, trainable_filter("adapters"))[2])
    assert before.keys() == after.keys()
    changed = [name for name, value in after.items() if np.array(value).tobytes() != before[name].tobytes()]
    assert changed == []
    start = VLA(model, rngs=nnx.Rngs(named_key(CONFIG.seed, "parameters")))
    base = nnx.All(nnx.PathContains("backbone"), nnx.Not(nnx.Any(*ADAPTER)), nnx.Param)
    assert before.keys() == to_named(nnx.state(start, base)).keys()  # the whole backbone and nothing else
    first, trained = to_named(split_model(start, trainable_filter("adapters"))[1]), saved(last, model, "adapters")
    assert before.keys() | trained.keys() == to_named(nnx.state(start, nnx.Param)).keys()
    assert [name for name in trained if np.array_equal(first[name], trained[name])] == []
    assert sum("lora" in name for name in trained) == 2 * len(model.backbone.lora.targets)


@pytest.mark.slow
def test_an_evaluation_during_training_makes_no_second_copy_of_the_base() -> None:
    """It takes the arrays that every device of the training holds whole; of parts it makes a copy."""
    model = tiny_config(lora=LoRAConfig(rank=2), param_dtype="bfloat16")
    config = dataclasses.replace(CONFIG, trainable="adapters", backbone_weights="random")
    experiment = dataclasses.replace(load("e2_flow"), model=model, train=config)
    trains = trainable_filter("adapters")

    @jax.jit
    def initial() -> Any:
        return split_model(VLA(model, rngs=nnx.Rngs(named_key(CONFIG.seed, "parameters"))), trains)[1:]

    params, frozen = (to_named(state) for state in initial())
    mesh = make_mesh(MeshConfig())

    def places_of_base(spec: PartitionSpec) -> tuple[set[int], set[int]]:
        sharding = NamedSharding(mesh, spec)
        split = {name: jax.device_put(x, sharding if x.shape[0] % 2 == 0 else None) for name, x in frozen.items()}
        with sharing(split):
            acting = split_model(restore_model(experiment, params, None), trains)[2]
        for name, value in to_named(acting).items():
            np.testing.assert_array_equal(value, frozen[name])
        places = [{x.addressable_data(0).unsafe_buffer_pointer() for x in each.values()}
                  for each in (split, to_named(acting))]  # fmt: skip
        return places[0], places[1]

    training, acting = places_of_base(PartitionSpec())
    assert training == acting and len(training) > 10
    training, acting = places_of_base(PartitionSpec("data"))
    assert not training & acting


@pytest.mark.slow
def test_what_embeds_pending_actions_trains(store: TrainingStore, tmp_path: Path) -> None:
    model = dataclasses.replace(tiny_config("e0", "regression"), pending=4, roll_state=True)
    config = dataclasses.replace(CONFIG, steps=2, eval_every=2, checkpoint_every=2, delay=4)
    made = make_inputs(store, None, PromptConfig(length=56), model, config)
    start = VLA(model, rngs=nnx.Rngs(named_key(CONFIG.seed, "parameters")))
    before, after = to_named(nnx.state(start.pending_in)), saved(fit(made, tmp_path, config, model), model)
    assert len(before) == 4
    assert [name for name in before if np.array_equal(before[name], after[f"pending_in/{name}"])] == []


@pytest.mark.long  # the smoke test's sweep trains e0; e1 is e2 without a loss
@pytest.mark.parametrize("variant", ["e0", "e1"])
def test_other_variants_train(inputs: Inputs, tmp_path: Path, variant: str) -> None:
    for head in ("regression", "flow"):
        fit(inputs, tmp_path / head, dataclasses.replace(CONFIG, steps=1), tiny_config(variant, head))


def test_the_mesh_must_divide_the_batch_and_fit_the_devices(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mesh is data=-1, fsdp=3, .* 2 devices; .*: take 2, and -1"):
        fit(inputs, tmp_path, mesh=MeshConfig(fsdp=3))
    with pytest.raises(UserError, match=r"mesh is data=3, .* 2 devices; set mesh.data to 1, or to -1"):
        fit(inputs, tmp_path, mesh=MeshConfig(data=3, fsdp=2))
    with pytest.raises(UserError, match=r"train.batch_size is 3, the mesh splits it in 2; use 2 or 4"):
        fit(inputs, tmp_path, dataclasses.replace(CONFIG, batch_size=3))
