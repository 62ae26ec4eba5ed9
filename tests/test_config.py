"""Experiments from files and the command line: precedence, ownership, errors that name the key."""

import itertools
import json
import re
from pathlib import Path

import pytest

from tests.docs.commands import check_shell
from tests.variants import ONE_SETTING_APART, VARIANTS
from wmjax.core.errors import UserError
from wmjax.core.paths import resource_folder
from wmjax.core.settings import parse_overrides
from wmjax.experiment import config
from wmjax.experiment.config import from_dict, load, owner, read_axis, recipe_names, to_dict
from wmjax.experiment.plan import save_settings

RECIPES = recipe_names()


HEADS = {"mse": ("regression", "mse"), "l1": ("regression", "l1"), "flow": ("flow", None)}


def test_a_recipe_is_a_variant_and_a_head() -> None:
    variants = [*VARIANTS, *ONE_SETTING_APART, "prior_e0", "prior_e2"]
    assert sorted(RECIPES) == sorted(f"{variant}_{head}" for variant in variants for head in HEADS)
    for variant, memory in VARIANTS.items():
        for name, (kind, loss) in HEADS.items():
            model = load(f"{variant}_{name}").model
            assert model.memory == memory and model.head.kind == kind
            assert loss is None or model.head.regression_loss == loss


def test_a_variant_may_change_a_head() -> None:
    for variant in ("prior_e0", "prior_e2"):
        assert {load(f"{variant}_{head}").model.head.gripper for head in HEADS} == {"regress"}
        flow = load(f"{variant}_flow").model.head
        assert (flow.kind, flow.draws, flow.time_beta) == ("flow", 1, (1.0, 1.0))
    assert {load(f"e2_{head}").model.head.gripper for head in HEADS} == {"binary"}


@pytest.mark.parametrize(("axis", "name"), [(axis, name) for axis in config.AXES for name in config.axis_names(axis)])
def test_a_file_begins_with_its_command_its_time_and_its_success(axis: str, name: str) -> None:
    lines = (resource_folder("train") / axis / f"{name}.toml").read_text().splitlines()
    comment = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    commands = [line.removeprefix("#").strip() for line in comment if line.startswith("#   python -m wmjax.")]
    check_shell("\n".join(commands))
    (words,) = [command.split() for command in commands if command.startswith("python -m wmjax.train --config ")]
    given = dict(itertools.pairwise(words))
    chosen = {"scales": given.get("--scale"), "data": given.get("--dataset")}
    assert name in (config.split_recipe(given["--config"]) if axis in ("variants", "heads") else [chosen[axis]])
    assert any("Time on two cores: " in line for line in comment) and any("Success" in line for line in comment)


@pytest.mark.parametrize(
    ("pair", "axis"),
    [(("e0_mse", "e2_mse"), "variants"), (("e2_mse", "e2_l1"), "heads"), (("e2_mse", "e2_flow"), "heads")],
)
def test_two_recipes_of_one_axis_differ_in_what_it_owns_and_nothing_else(pair: tuple[str, str], axis: str) -> None:
    one, other = (config.dotted(to_dict(load(name))) for name in pair)
    differing = {key for key in {*one, *other} if one.get(key) != other.get(key)} - {"recipe"}
    assert differing and {owner(key) for key in differing} == {axis}


@pytest.mark.parametrize("head", ["mse", "flow"])
def test_variants_differ_in_their_memory_only(head: str) -> None:
    """Variants are controlled: e1 differs from e2 in one number, and no variant has other settings."""
    settings = {variant: config.dotted(to_dict(load(f"{variant}_{head}"))) for variant in VARIANTS}
    for variant, mine in settings.items():
        differing = {key for key, value in settings["e2"].items() if mine[key] != value}
        assert {key for key in differing if not key.startswith("model.memory.")} <= {"recipe"}
        assert variant != "e1" or differing == {"recipe", "model.memory.world_loss"}


def test_e0state_differs_from_e0_only_in_the_rolled_state() -> None:
    one, other = (config.dotted(to_dict(load(name))) for name in ("e0_l1", "e0state_l1"))
    assert {key for key in one if one[key] != other[key]} == {"recipe", "model.roll_state"}


def test_the_command_line_wins_over_recipe_and_scale() -> None:
    changed = load("e2_flow", overrides=parse_overrides(["--model.memory.world_loss", "0.1", "--train.steps=7"]))
    assert (changed.model.memory.world_loss, changed.train.steps) == (0.1, 7)
    assert changed.train.batch_size == load("e2_flow").train.batch_size
    assert load("e2_flow", "smoke").train.steps != load("e2_flow").train.steps


def test_a_backbone_preset_expands_and_can_be_changed_field_by_field() -> None:
    changed = load("e0_flow", overrides={"model": {"backbone": {"lora": {"rank": 4}}}}).model.backbone
    plain = load("e0_flow").model.backbone
    assert changed.lora.rank == 4 and changed.text == plain.text


@pytest.mark.parametrize(("scale", "depth", "latents"), [("mini", 4, 192), ("3b", 36, 1024), ("7b", 28, 1408)])
def test_a_scale_is_one_file(scale: str, depth: int, latents: int) -> None:
    experiment = load("e2_flow", scale)
    assert experiment.model.backbone.text.depth == depth and experiment.model.prophet.latent_dim == latents
    assert bool(experiment.train.backbone_weights) == (scale != "mini")


def test_a_frozen_backbone_needs_weights_and_names_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen(weights: str, rank: int = 16) -> config.Experiment:
        overrides = {"train": {"backbone_weights": weights}, "model": {"backbone": {"lora": {"rank": rank}}}}
        return load("e2_flow", "mini_lora", overrides=overrides)

    with pytest.raises(UserError, match=r"train\.backbone_weights is empty.* or 'random' for a frozen random backbone"):
        load("e2_flow", "mini_lora")
    (tmp_path / "mini_object").mkdir()
    monkeypatch.chdir(tmp_path)
    one, other, control = frozen("mini_object"), frozen("mini_object", 8), frozen("random")
    assert one.train.published == one.train.backbone_weights == str(tmp_path / "mini_object")
    assert (control.train.backbone_weights, control.train.published) == ("random", None)
    assert [x.name.removeprefix("e2_flow-mini_lora-spatial-s0-") for x in (one, other, control)] == [
        "mini_object-r16",
        "mini_object-r8",
        "random-r16",
    ]


def test_frozen_mini_is_mini_with_the_adapters_of_3b() -> None:
    weights = {"train": {"backbone_weights": "random"}}
    mini, frozen, full = (load("e2_flow", scale, "spatial", weights) for scale in ("mini", "mini_lora", "3b"))
    one, other = config.dotted(to_dict(mini)), config.dotted(to_dict(frozen))
    assert {key for key in one if one[key] != other[key]} == {
        "scale",
        "train.trainable",
        "model.backbone.lora.rank",
        "model.backbone.lora.alpha",
    }
    assert frozen.model.backbone.lora == full.model.backbone.lora and frozen.train.trainable == full.train.trainable


def test_a_dataset_may_name_the_protocol_of_its_suite() -> None:
    assert load("e0_mse", "mini", "object").evaluation.protocol == "object_dev"
    assert load("e0_mse", "mini", "spatial").evaluation.protocol == load("e0_mse").evaluation.protocol == "spatial_dev"
    assert load("e0_mse", "3b", "libero").evaluation.protocol == "libero_spatial"
    chosen = load("e0_mse", "mini", "object", {"evaluation": {"protocol": "libero_object"}})
    assert chosen.evaluation.protocol == "libero_object"


def test_a_run_from_before_a_setting_resumes_with_its_default(tmp_path: Path) -> None:
    values = to_dict(load("e2_flow"))
    older = json.loads(json.dumps(values))
    del older["train"]["delay"]
    assert from_dict(older) == load("e2_flow")  # what a checkpoint holds
    (tmp_path / "config.json").write_text(json.dumps(older))
    (tmp_path / "metrics.jsonl").write_text("")  # something was trained there
    changed = to_dict(load("e2_flow", overrides={"train": {"delay": 8}}))
    with pytest.raises(UserError, match=r"was started with train\.delay = 0, now it is 8"):
        save_settings(tmp_path, changed)
    save_settings(tmp_path, values)
    assert json.loads((tmp_path / "config.json").read_text()) == values


def test_variants_differ_in_nothing_that_would_confound_them() -> None:
    """Gradients of the action loss into the Prophet and dropout of the memory are the same wherever there is one."""
    for scale in ("mini", "smoke", "3b", "7b"):
        matched = [name for name in RECIPES if not name.startswith(("prior", "e2stop"))]
        variants = [load(name, scale).model for name in matched]
        assert {model.memory.action_gradient for model in variants} == {True}
        assert {model.memory.dropout for model in variants if model.memory.inject} == {0.1}
        assert len({(model.injection, model.prophet, model.world, model.backbone) for model in variants}) == 1
    assert load("prior_e2_mse").model.memory.action_gradient is True


@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_experiment_reads_back_equal(name: str) -> None:
    assert from_dict(to_dict(load(name))) == load(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("e2_flo",), "unknown recipe 'e2_flo'; did you mean e2_flow"),
        (("e2_hubr",), "unknown recipe 'e2_hubr'; did you mean e2_"),
        (("e2",), "recipe 'e2' names no head; write e2_flow or e2_l1 or e2_mse"),
        (("e2_flow", "minni"), "unknown scale 'minni'; did you mean mini"),
        (("e2_flow", "mini", "spacial"), "unknown data 'spacial'; did you mean spatial"),
        (("e2_flow", "mini", None, {"train": {"step": 3}}), "unknown setting 'train.step'; did you mean train.steps"),
        (("e2_flow", "mini", None, {"train": {"steps": "many"}}), "train.steps is 'many'; expected int"),
        (("e2_flow", "mini", None, {"model": {"memory": {"input": "futur"}}}), "input is 'futur'; choose one of"),
        (("e2_flow", "mini", None, {"recipe": "e0_flow"}), "recipe is not a setting; choose it with --config"),
        (("e0_flow", "mini", None, {"model": {"memory": {"world_loss": 0.5}}}), "world_loss is 0.5"),
        (("e2_flow", "mini", None, {"train": {"log_every": 0}}), "train.log_every is 0; it must be at least 1"),
        (("e2_flow", "mini", None, {"encoder": {"views": 0}}), "encoder.views is 0; it must be at least 1"),
        (("e2_flow", "mini", None, {"encoder": {"max_shift": -1}}), "encoder.max_shift is -1; it must be at least 0"),
        (("e2_flow", "mini", None, {"encoder": {"clip_length": 0}}), "encoder.clip_length is 0; it must be at least 1"),
        (
            ("e2_flow", "mini", None, {"encoder": {"pooling_grid": -1}}),
            "encoder.pooling_grid is -1; it must be at least",
        ),
        (("e0_flow", "mini", None, {"train": {"delay": -4}}), "train.delay is -4; it must be at least 0"),
    ],
)
def test_bad_settings_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        load(*arguments)


@pytest.mark.parametrize(
    ("axis", "text", "message"),
    [
        ("variants", "[train]\nsteps = 3", "train.steps belongs in train/scales, not in train/variants"),
        ("variants", "[model.head]\nsteps = 3", "model.head.steps belongs in train/heads, not in train/variants"),
        ("variants", "[heads.flwo]\nsteps = 3", "unknown head in new.toml, [heads] 'flwo'; did you mean flow"),
        ("heads", "[model.memory]\ninput = 'none'", "model.memory.input belongs in train/variants"),
        ("data", "dataset = 'object'", "dataset belongs in train/scales, not in train/data"),
        ("scales", "[model.memory]\ninput = 'none'", "model.memory.input belongs in train/variants"),
        ("variants", "extends = 'prior_e2'", "only one level"),
        ("variants", "=", "not valid TOML"),
    ],
)
def test_an_axis_keeps_to_its_own_settings(
    axis: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("variants", "heads", "scales", "data"):
        (tmp_path / name).mkdir()
    for name in ("variants/prior_e2", "heads/mse", "heads/l1", "heads/flow"):
        (tmp_path / f"{name}.toml").write_text((resource_folder("train") / f"{name}.toml").read_text())
    (tmp_path / axis / "new.toml").write_text(text)
    monkeypatch.setattr(config, "resource_folder", lambda name: tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        read_axis(axis, "new")
