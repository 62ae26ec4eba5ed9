"""Training from another run's checkpoint: what is taken over, what is listed as new, and what is refused."""

import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.data.synthetic import make_episode, make_latents, make_store
from tests.tiny import LATENT_DIM, tiny_config
from tests.trainer.test_loop import CONFIG, OPTIMIZER
from wmjax.core.errors import UserError
from wmjax.core.rng import named_key
from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.data.store import TrainingStore, finalize, write_part
from wmjax.experiment.config import Experiment, load, to_dict
from wmjax.models.parameters import split_model, to_named, trainable_filter
from wmjax.models.prompts import PromptConfig
from wmjax.models.vla import VLA, VLAConfig
from wmjax.pipeline.start import Start, end_parameters, starting_point
from wmjax.trainer.config import Inputs
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.loop import train
from wmjax.trainer.sharding import MeshConfig


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    store = make_store(tmp_path_factory.mktemp("store"))
    latents = make_latents(tmp_path_factory.mktemp("latents"), store, dim=LATENT_DIM)
    return make_inputs(store, latents, PromptConfig(length=56), tiny_config(), CONFIG)


@pytest.fixture(scope="module")
def run(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps."""
    folder, model = tmp_path_factory.mktemp("run"), tiny_config()
    config = dataclasses.replace(CONFIG, steps=3)
    meta = {"experiment": to_dict(experiment(model))}
    train(lambda rngs: VLA(model, rngs=rngs), inputs, folder, config, OPTIMIZER, MeshConfig(), max_shift=3, meta=meta)
    return folder


def experiment(model: VLAConfig) -> Experiment:
    return dataclasses.replace(load("e2_flow", "smoke"), model=model)


JOINTS = tuple(f"joint{index}" for index in range(10))
OTHER = ObservationSpec(("front", "wrist"), JOINTS, ("rad",) * 10, control_hz=30.0, image_size=56)
OTHER_ACTION = ActionSpec(JOINTS[:9], ("rad",) * 9, grippers=(3, 8), gripper_open=(1.0, 1.0), gripper_closed=(0.0, 0.0))
OTHER_MODEL = dataclasses.replace(tiny_config(), state_dim=10, action_dim=9, grippers=2)


@pytest.fixture(scope="module")
def other_robot(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Of a robot with other states, other actions and other cameras."""
    folder, rng = tmp_path_factory.mktemp("other"), np.random.default_rng(0)
    for index, length in enumerate((29, 41, 33)):
        joints = rng.normal(size=(length, 10)).astype(np.float32)
        action = joints[:, :9]
        action[:, [3, 8]] = action[:, [3, 8]] > 0
        episode = make_episode(index, length, tasks=1)
        episode = dataclasses.replace(episode, state=joints, action=action, executed=action)
        write_part(folder, f"episode-{index:03d}", episode, OTHER, OTHER_ACTION)
    store = finalize(folder, OTHER, OTHER_ACTION)
    latents = make_latents(tmp_path_factory.mktemp("latents"), store, dim=LATENT_DIM)
    return make_inputs(store, latents, PromptConfig(length=56), OTHER_MODEL, CONFIG)


def found_start(run: Path) -> Start:
    start = starting_point(str(run))
    assert start is not None
    return start


def fresh(model: VLAConfig, seed: int) -> tuple[nnx.State, nnx.State]:
    built = VLA(model, rngs=nnx.Rngs(named_key(seed, "parameters")))
    return split_model(built, trainable_filter("all"))[1:]


def test_parameters_are_those_of_the_checkpoint(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    start = starting_point(str(run))
    assert start is not None and start.folder == run / "checkpoints" / "00000003"
    with caplog.at_level(logging.INFO, "wmjax.train"):
        found, _ = start.load(*fresh(tiny_config(), seed=5))
        again, _ = start.load(*fresh(tiny_config(), seed=6))
    assert jax.tree.all(jax.tree.map(np.array_equal, found, again))
    assert not jax.tree.all(jax.tree.map(np.array_equal, found, fresh(tiny_config(), seed=5)[0]))
    assert not any(" new: " in line or " left out: " in line for line in caplog.messages)


def test_what_fits_only_in_part_is_listed(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    start = starting_point(str(run))
    assert start is not None
    params, frozen = fresh(tiny_config(head="regression"), seed=5)
    with caplog.at_level(logging.INFO, "wmjax.train"):
        found, _ = start.load(params, frozen)
    before, after = to_named(params), to_named(found)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert any(name.startswith("backbone") for name in moved)
    assert not any(name.startswith("head/mlp") for name in moved)
    assert any(" new: head/" in line for line in caplog.messages)
    assert any(" left out: head/" in line for line in caplog.messages)


def test_the_checkpoints_units_are_kept(run: Path, inputs: Inputs) -> None:
    start = starting_point(str(run))
    assert start is not None
    others = dataclasses.replace(inputs.action_spec, offset=(*(0.5,) * 6, 0.0))
    assert start.adopt_statistics(dataclasses.replace(inputs, action_spec=others)).action_spec == inputs.action_spec
    assert inputs.encoder_spec is not None
    stored = dataclasses.replace(inputs.encoder_spec, mean=(0.5,) * LATENT_DIM)
    assert start.adopt_statistics(dataclasses.replace(inputs, encoder_spec=stored)).encoder_spec == inputs.encoder_spec
    another = dataclasses.replace(stored, weights_hash="another")
    assert start.adopt_statistics(dataclasses.replace(inputs, encoder_spec=another)).encoder_spec == another
    longer = dataclasses.replace(inputs, action_spec=dataclasses.replace(inputs.action_spec, chunk=16))
    with pytest.raises(UserError, match=r"model\.chunk is 16, the policy of train\.init_from .* has 8; use that"):
        start.adopt_statistics(longer)


@pytest.mark.parametrize(
    ("head", "ends"),
    [
        ("flow", {"head/action_in/kernel/value", "head/out/kernel/value", "head/out/bias/value"}),
        ("regression", {"head/mlp/down/kernel/value", "head/mlp/down/bias/value"}),
    ],
)
def test_the_ends_are_the_parameters_whose_size_is_a_robots(head: str, ends: set[str]) -> None:
    state = {"state_in/up/kernel/value"}
    gripper = {f"head/gripper/mlp/down/{name}/value" for name in ("kernel", "bias")}
    found = experiment(tiny_config(head=head))
    assert end_parameters(found, ("state", "action")) == state | ends | gripper
    assert end_parameters(found, ("state",)) == state
    assert end_parameters(found, ()) == frozenset()


def test_another_robot_gets_new_ends_and_the_rest(
    run: Path, other_robot: Inputs, caplog: pytest.LogCaptureFixture
) -> None:
    start, params = found_start(run), fresh(OTHER_MODEL, seed=5)
    assert start.new_ends(other_robot) == ("state", "action")
    with caplog.at_level(logging.INFO, "wmjax.train"):
        fitted = start.adopt_statistics(other_robot)
        found = to_named(start.load(*params, end_parameters(experiment(OTHER_MODEL), ("state", "action")))[0])
    assert fitted.action_spec == other_robot.action_spec  # its own units
    before, saved = to_named(params[0]), start.saved.parameters()
    ends = {name for name in before if before[name].shape != saved[name].shape}
    assert len(ends) == 6
    for name in before:
        np.testing.assert_array_equal(found[name], (before if name in ends else saved)[name], err_msg=name)
    said = next(line for line in caplog.messages if "another robot" in line)
    assert "states of 10 values (there 8), actions of 9 (there 7); observations differ in cameras, state," in said
    assert f"6 new: {', '.join(sorted(ends))}" in caplog.messages
    assert f"6 left out: {', '.join(sorted(ends))}" in caplog.messages


def test_an_end_of_the_same_size_is_new_if_it_is_of_another_robot(run: Path, inputs: Inputs) -> None:
    """Here the actions are the source's, and keep its units; the states have other names."""
    spec = dataclasses.replace(inputs.store.spec, state=tuple(f"joint{index}" for index in range(8)))
    store = TrainingStore(inputs.store.folder)
    store.spec = spec
    shifted = dataclasses.replace(inputs.action_spec, offset=(0.5,) * 7, state_offset=(0.25,) * 8)
    start, data = found_start(run), dataclasses.replace(inputs, store=store, action_spec=shifted)
    assert start.new_ends(data) == ("state",)
    fitted = start.adopt_statistics(data).action_spec
    assert fitted.offset == (*inputs.action_spec.offset[:6], 0.5) and fitted.state_offset == (0.25,) * 8
    params = fresh(tiny_config(), seed=5)
    found = to_named(start.load(*params, end_parameters(experiment(tiny_config()), ("state",)))[0])
    np.testing.assert_array_equal(found["state_in/up/kernel/value"], to_named(params[0])["state_in/up/kernel/value"])
    np.testing.assert_array_equal(found["head/out/kernel/value"], start.saved.parameters()["head/out/kernel/value"])


def test_actions_that_are_differences_are_others(run: Path, inputs: Inputs) -> None:
    """The same robot, whose actions were targets for the source."""
    data = dataclasses.replace(
        inputs, action_spec=dataclasses.replace(inputs.action_spec, relative_to=(0,) + (-1,) * 6)
    )
    start = found_start(run)
    assert start.new_ends(inputs) == () and start.new_ends(data) == ("action",)
    assert start.adopt_statistics(data).action_spec.relative_to == data.action_spec.relative_to


def test_a_run_that_took_units_over_is_read_with_them(run: Path, inputs: Inputs) -> None:
    """Its own data have other statistics."""
    start = found_start(run)
    data = dataclasses.replace(inputs, action_spec=dataclasses.replace(inputs.action_spec, offset=(0.5,) * 7))
    fitted = start.adopt_statistics(data)
    assert fitted.action_spec.offset[:6] == inputs.action_spec.offset[:6]
    started = to_dict(dataclasses.replace(load("e2_flow", "smoke", overrides={"train": {"init_from": "mini"}})))
    meta = {**fitted.meta(), "experiment": started}
    assert data.as_in(meta).action_spec == fitted.action_spec
    with pytest.raises(UserError, match=r"ActionSpec\.offset differs"):
        data.as_in({**meta, "experiment": to_dict(load("e2_flow", "smoke"))})


def test_a_policy_that_ships_with_wmjax_is_a_start() -> None:
    start = starting_point("mini")
    assert start is not None and not start.is_world
    assert start.experiment.recipe == "e2_flow" and start.saved.parameters().keys() >= {"state_in/up/kernel/value"}


def test_nothing_to_start_from_is_refused(tmp_path: Path) -> None:
    assert starting_point("") is None
    with pytest.raises(UserError, match=r"train\.init_from: run .*missing' is not a folder"):
        starting_point(str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"train\.init_from: checkpoints .* none is complete"):
        starting_point(str(tmp_path))
