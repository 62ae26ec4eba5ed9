"""Settings that do not fit are refused before anything is recorded: one line, the setting, a value that fits."""

import dataclasses
import re
import shlex
import types
from pathlib import Path

import jax
import pytest
from flax import nnx

import wmjax.train as command
from tests.data.synthetic import make_store
from wmjax.core.errors import UserError
from wmjax.core.paths import resource_folder
from wmjax.core.settings import dotted, parse_overrides
from wmjax.data.store import TrainingStore
from wmjax.evaluate import parser
from wmjax.experiment.checks import final_protocol, given_store, require_consistent
from wmjax.experiment.config import Experiment, load, recipe_names, to_dict
from wmjax.experiment.dimensions import of_store
from wmjax.experiment.next_steps import next_steps
from wmjax.models.parameters import split_model, trainable_filter
from wmjax.models.vla import VLA
from wmjax.sim.libero import OBSERVATION_SPEC


def experiment(*settings: str, recipe: str = "e2_flow", scale: str = "mini") -> Experiment:
    return load(recipe, scale, None, parse_overrides(list(settings)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrainingStore:
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("scale", ["mini", "smoke", "3b", "7b"])
@pytest.mark.parametrize("recipe", recipe_names())
def test_shipped_recipes_are_consistent(recipe: str, scale: str) -> None:
    require_consistent(experiment(recipe=recipe, scale=scale))


REFUSED = [
    (("--train.validation_fraction", "0"), r"train\.validation_fraction is 0\.0; it must be above 0 and below 1"),
    (("--data.episodes_per_task", "1"), r"data\.episodes_per_task is 1; give at least 2"),
    (("--model.chunk", "2"), r"spatial_dev: open_loop_horizon is 4, but model\.chunk is 2; set model\.chunk to 4"),
    (("--data.observation.frame_stride", "3"), r"4, not a multiple of the frame stride .*frame_stride\), 3; change it"),
    (("--encoder.pooling_grid", "8"), r"model\.prophet\.tokens is 16, .* make 64 tokens per frame; set .* to 64"),
    (("--encoder.pooling_grid", "0"), r"model\.prophet\.tokens is 16, .* make 64 tokens"),
    (("--model.prophet.latent_dim", "96"), r"latent_dim is 96, .* make latents of 192 channels; set .* to 192"),
    (("--evaluation.protocol", "spatial_horizon16"), r"horizon16: open_loop_horizon is 16, but model\.chunk is 8"),
    (("--evaluation.protocol", "spatial_ensemble", "--model.chunk", "4"), r"chunks of model\.chunk 4 .* not overlap"),
    (("--evaluation.protocol", "spatial_dve"), "unknown protocol 'spatial_dve'; did you mean spatial_dev"),
    (("--data.tasks", "[0, 10]"), r"data\.tasks is \[0, 10\]; name tasks of libero_spatial, 0\.\.9"),
    (("--evaluation.episodes_per_task", "0"), "episodes_per_task is 0; it must be at least 1"),
    (("--evaluation.shard", "[0, 2]"), r"evaluation\.shard is \[0, 2\], but a training runs all episodes"),
    (("--evaluation.shard", "[2, 2]"), r"shard '2/2' is not i/n"),
    (("--encoder.precision", "float16"), r"encoder\.precision is 'float16'; choose one of 'float32', 'tf32'"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), REFUSED)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_inconsistent_settings_are_refused_before_anything_is_made(
    settings: tuple[str, ...],
    message: str,
    dry: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path))
    assert command.main(["--config", "e2_flow", *dry, *settings]) == 2
    shown = capsys.readouterr()
    assert re.search(message, shown.err), shown.err
    assert shown.err.count("\n") == 1 and not shown.out and not list(tmp_path.iterdir())


@pytest.mark.parametrize("run", ["mine", "a/b", "~/mine", None])
def test_a_dry_run_names_the_folder_of_the_run(
    run: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    given = [] if run is None else ["--run", run if run.startswith("~") else str(tmp_path / run)]
    assert command.main(["--config", "e0_flow", "--scale", "smoke", "--dry-run", *given]) == 0
    folders = {"~/mine": tmp_path / "home/mine", None: tmp_path / "cache/runs" / load("e0_flow", "smoke").name}
    expected = folders.get(run) or tmp_path / str(run)
    assert capsys.readouterr().out.startswith(f"run: {expected}\n")
    assert not expected.exists()


def test_demonstrations_of_another_simulator_are_refused_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path))
    store = types.SimpleNamespace(spec=dataclasses.replace(OBSERVATION_SPEC, simulator="other==1"))
    monkeypatch.setattr("wmjax.pipeline.train.demonstrations", lambda experiment: store)
    monkeypatch.setattr("wmjax.pipeline.train.latents_or_views", lambda *_: pytest.fail("encoded"))
    assert command.main(["--config", "e0_flow", "--scale", "smoke"]) == 2
    assert "ObservationSpec.simulator is 'other==1'" in capsys.readouterr().err


def test_only_used_settings_must_be_consistent() -> None:
    for recipe in ("e0_flow", "e0plus_flow"):
        require_consistent(experiment("--encoder.pooling_grid", "8", recipe=recipe))
    require_consistent(experiment("--encoder.pooling_grid", "8", recipe="prior_e2_flow"))  # its Prophet pools
    require_consistent(experiment("--encoder.model", "some/hub-id", "--encoder.pooling_grid", "0"))
    require_consistent(experiment("--model.chunk", "2"), evaluates=False)
    oracle = ("--evaluation.protocol", "spatial_oracle")
    require_consistent(experiment(*oracle))
    with pytest.raises(UserError, match=r"oracle is 0\.0, but the policy acts without a memory of the future"):
        require_consistent(experiment(*oracle, recipe="e0_flow"))
    closed = ("--evaluation.protocol", "spatial_closed")
    require_consistent(experiment(*closed))
    with pytest.raises(UserError, match="corruption is 'closed', but the policy acts without a world memory"):
        require_consistent(experiment(*closed, recipe="e2aux_flow"))
    # The first action of a chunk waits for the delay, so a delay takes nothing of the chunk.
    require_consistent(experiment("--evaluation.protocol", "spatial_delay16", "--model.chunk", "4"))


def test_real_time_execution_of_the_later_evaluation_has_to_fit_the_chunk_and_the_head(tmp_path: Path) -> None:
    path = tmp_path / "late.toml"
    lines = ['suite = "libero_spatial"', "tasks = [0]", "episodes_per_task = 1", 'init = "random"', "max_steps = 9"]
    path.write_text("\n".join([*lines, "open_loop_horizon = 4", "execution_delay = 4", 'realtime = "rtc"']))
    late = ("--evaluation.protocol", str(path))
    require_consistent(experiment(*late))
    with pytest.raises(UserError, match=r"late: realtime is 'rtc' with an execution delay of 4, but chunks of 6"):
        require_consistent(experiment(*late, "--model.chunk", "6"))
    with pytest.raises(UserError, match=r"late: realtime is 'rtc', but the policy's head .*'regression'"):
        require_consistent(experiment(*late, recipe="e2_mse"))


def test_a_learned_delay_needs_a_memory_that_reaches_its_actions() -> None:
    delay = ("--train.delay", "16", "--evaluation.protocol", "spatial_delay16")
    with pytest.raises(
        UserError, match=r"train\.delay is 16, .* end 24 control .* after 16; set .*future to 6 or more"
    ):
        require_consistent(experiment(*delay))
    require_consistent(experiment(*delay, "--model.prophet.future", "6"))
    require_consistent(experiment(*delay, recipe="e0_flow"))
    require_consistent(experiment("--train.delay", "8"))
    with pytest.raises(UserError, match=r"train\.delay is 0, .* \(model\.chunk 24\) end 24 control steps"):
        labels = ("--data.demonstrations.label_steps", "24")
        require_consistent(experiment("--model.chunk", "24", "--prompt.length", "96", *labels))


def test_pending_actions_match_the_training_delay_and_the_evaluation(store: TrainingStore) -> None:
    late = ("--train.delay", "8", "--evaluation.protocol", "spatial_delay8")
    for recipe in ("e0_l1", "e1_flow", "e0state_mse", "oracle_l1"):
        fits = late if recipe != "oracle_l1" else (*late[:3], "spatial_moving_delay8_oracle")
        require_consistent(experiment(*fits, "--model.pending", "8", recipe=recipe))
    for steps in ("4", "16"):
        with pytest.raises(
            UserError, match=rf"pending is {steps}, .* train\.delay 8 there are 8 .* set .* to 8, or to 0"
        ):
            require_consistent(experiment(*late, "--model.pending", steps))
    with pytest.raises(UserError, match=r"model\.pending is 8, but with train\.delay 0"):
        require_consistent(experiment("--model.pending", "8"))
    for told in (("--model.pending", "8"), ("--model.roll_state", "true")):
        with pytest.raises(
            UserError, match=r"spatial_dev: execution_delay is 0, but the policy takes .* the 8 control"
        ):
            require_consistent(experiment("--train.delay", "8", *told))
    slow = experiment(*late, "--data.observation.control_hz", "10", recipe="e0state_mse")
    with pytest.raises(UserError, match=r"it is not known how actions .* 10 Hz.* move the state"):
        require_consistent(slow)
    other = dataclasses.replace(store.action_spec, definition="joint positions")
    joints = types.SimpleNamespace(spec=store.spec, action_spec=other, episodes=store.episodes, tasks=store.tasks)
    joints.action_chunk = None
    with pytest.raises(UserError, match=r"how actions \(joint positions, 20 Hz\) move the state"):
        require_consistent(experiment(*late, "--prompt.length", "96", recipe="e0state_mse"), joints)


def test_something_must_train_the_prophet() -> None:
    off = ("--model.memory.action_gradient", "false")
    with pytest.raises(UserError, match=r"world_loss is 0 and model\.memory\.action_gradient false"):
        require_consistent(experiment(*off, recipe="e1_flow"))
    with pytest.raises(UserError, match=r"world_loss is 0 and model\.memory\.inject false"):
        require_consistent(experiment("--model.memory.world_loss", "0", recipe="e2aux_flow"))
    require_consistent(experiment(*off, recipe="e2_flow"))


def test_trained_parameters_are_float32() -> None:
    with pytest.raises(UserError, match=r"model\.backbone\.param_dtype is bfloat16 with train\.trainable all"):
        require_consistent(experiment("--train.trainable", "all", scale="3b"))
    require_consistent(experiment("--train.trainable", "all", "--model.backbone.param_dtype", "float32", scale="3b"))


@pytest.mark.parametrize("scale", ["mini", "3b", "7b"])
def test_shipped_scales_train_in_float32(scale: str) -> None:
    found = experiment(scale=scale)
    model = of_store(found, None).model
    shapes = nnx.eval_shape(lambda: VLA(model, rngs=nnx.Rngs(0)))
    _, trained, frozen = split_model(shapes, trainable_filter(found.train.trainable))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained)} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(frozen)} == (set() if scale == "mini" else {"bfloat16"})


def test_the_latents_are_of_the_first_camera_unless_a_setting_says_which(store: TrainingStore) -> None:
    assert experiment().encoder.cameras == ("agentview",)  # the first of LIBERO's, which is recorded
    given = experiment("--data.path", str(store.folder))
    assert given.encoder.cameras == ()
    spec = dataclasses.replace(store.spec, cameras=("top", "wrist"))
    other = types.SimpleNamespace(spec=spec, action_spec=store.action_spec, folder=store.folder)
    assert of_store(given, other).encoder.cameras == ("top",)  # type: ignore[arg-type]
    named = experiment("--data.path", str(store.folder), "--encoder.cameras", "wrist")
    assert of_store(named, other).encoder.cameras == ("wrist",)  # type: ignore[arg-type]


def test_a_given_store_is_checked_instead_of_the_recording_settings(store: TrainingStore, tmp_path: Path) -> None:
    def given(*settings: str) -> Experiment:
        return experiment("--data.path", str(store.folder), *settings)

    # What would be recorded does not matter: the store's own stride is 4.
    require_consistent(given("--data.observation.frame_stride", "3", "--data.episodes_per_task", "1"), store)
    require_consistent(experiment("--data.path", "elsewhere", "--data.observation.frame_stride", "3"))
    single = make_store(tmp_path / "single", lengths=(20, 30))
    with pytest.raises(UserError, match=r"data\.path is .*, where no task has 2 episodes"):
        require_consistent(given(), single)


def test_the_tasks_of_the_evaluation_are_those_of_the_store(store: TrainingStore) -> None:
    def tasks(*settings: str, scale: str = "mini", known: TrainingStore | None = store) -> tuple[int, ...]:
        return final_protocol(experiment(*settings, scale=scale), known).protocol.tasks

    given = ("--data.path", "given")
    assert tasks(*given, scale="3b") == (0, 1)
    assert tasks(*given, "--evaluation.protocol", "pro_spatial_object") == (0, 1)
    # Published demonstrations and other suites number their tasks in their own way.
    assert tasks(*given, "--evaluation.protocol", "object_dev") == tuple(range(10))
    assert tasks(known=None) == (0, 1, 2, 4, 6)


def test_a_plan_reads_its_protocol_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its file has it, and as it is run; the folder of the results needs both."""
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path))
    path = tmp_path / "short.toml"
    path.write_text((resource_folder("eval") / "protocols" / "spatial_dev.toml").read_text())
    found = experiment("--evaluation.protocol", str(path), "--evaluation.episodes_per_task", "3")
    evaluation = require_consistent(found)
    path.unlink()
    assert evaluation is not None and evaluation.protocol.episodes_per_task == 3
    assert evaluation.folder(tmp_path).name == "short-tasks0,1,2,4,6-n3"
    assert require_consistent(found, evaluates=False) is None


def test_missing_demonstrations_are_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--scale", "3b", "--data.path", str(tmp_path / "nowhere")]
    assert command.main(arguments) == 2
    assert "nowhere" in capsys.readouterr().err


def printed(found: Experiment, run: Path) -> list[list[str]]:
    """The next commands, as a shell would split them."""
    done = final_protocol(found, given_store(found, needed=False)).protocol
    return [shlex.split(line, comments=True) for line in next_steps(found, run, done)]


def test_the_next_commands_work_and_change_nothing_but_the_memory(store: TrainingStore, tmp_path: Path) -> None:
    given = ("--data.path", str(store.folder), "--train.steps", "7", "--mesh.fsdp", "2", "--model.memory.dropout", "0")
    found = experiment(*given, "--train.normalisation", "quantile", recipe="e2_mse", scale="3b")
    evaluation, train, _ = printed(replace(found, "spatial_dev"), tmp_path / "a run")
    assert evaluation[2] == "wmjax.evaluate"
    options, settings = parser().read(evaluation[3:])
    assert (options.run, options.protocol) == (tmp_path / "a run", "libero_spatial")
    assert settings["protocol"] == {"tasks": (0, 1)}
    assert train[:3] == ["python", "-m", "wmjax.train"]
    arguments, settings = command.parser().read(train[3:])
    again = load(arguments.config, arguments.scale, arguments.dataset, settings)
    one, other = (dotted(to_dict(x)) for x in (replace(found, "spatial_dev"), again))
    differing = {key for key in one if one[key] != other[key]}
    assert again.recipe == "e1_mse" and {key for key in differing if not key.startswith("model.memory.")} == {"recipe"}


def test_the_next_commands_of_other_runs(tmp_path: Path) -> None:
    weights = ("--train.backbone_weights", "random")
    frozen = experiment(*weights, recipe="prior_e0_flow", scale="mini_lora")
    evaluation, train, _ = printed(frozen, tmp_path)
    assert evaluation[-4:] == ["--protocol", "libero_spatial", "--tasks", "0,1,2,4,6"]
    assert train[4] == "prior_e2_flow" and train[-2:] == list(weights)
    late = ("--train.delay", "8", "--model.pending", "8", "--evaluation.protocol", "spatial_delay8")
    assert printed(experiment(*late), tmp_path)[0][-2:] == ["--delay", "8"]  # another delay would be refused
    assert "--delay" not in printed(experiment(*late[:2], *late[4:]), tmp_path)[0]
    # The benchmark was the evaluation after training already.
    assert [line[2] for line in printed(experiment(scale="3b"), tmp_path)[:-1]] == ["wmjax.train"]


def replace(found: Experiment, protocol: str) -> Experiment:
    return dataclasses.replace(found, evaluation=dataclasses.replace(found.evaluation, protocol=protocol))
