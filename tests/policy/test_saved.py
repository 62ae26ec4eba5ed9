"""A policy's folder: the same parameters as the run's, in one small file that is checked when it is read."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rollout.runs import save_run
from wmjax import export
from wmjax.core.errors import UserError
from wmjax.core.files import hash_json
from wmjax.data.observation import Observation
from wmjax.pipeline.evaluate_checkpoint import identity
from wmjax.policy import saved
from wmjax.policy.policy import load_policy
from wmjax.policy.saved import PARAMETERS, SETTINGS, find_policy, save_policy


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run"), "e0", "flow")


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    save_policy(run, tmp_path / "policy", "float32")
    return tmp_path / "policy"


def test_a_policys_folder_holds_the_runs_parameters(run: Path, folder: Path) -> None:
    one, other = find_policy(run).parameters(), find_policy(folder).parameters()
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])
    assert {path.name for path in folder.iterdir()} == {SETTINGS, PARAMETERS}


@pytest.mark.slow
def test_bfloat16_rounds_and_acts_in_float32(run: Path, tmp_path: Path) -> None:
    assert export.main(["--run", str(run), "--out", str(tmp_path / "half"), "--policy", "bfloat16"]) == 0
    exact, rounded = find_policy(run).parameters(), find_policy(tmp_path / "half").parameters()
    for name, value in exact.items():
        assert rounded[name].dtype == jnp.float32
        np.testing.assert_array_equal(value.astype(jnp.bfloat16).astype(jnp.float32), rounded[name])


def test_a_name_that_ships_is_found_unless_a_folder_has_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved, "SHIPPED", folder.parent)
    monkeypatch.chdir(tmp_path.parent)
    assert find_policy("policy").hash == find_policy(folder).hash
    policy = load_policy("policy", batch_size=1)
    assert policy.prompt("pick up the black bowl").tokens.shape[0] == 1
    (Path.cwd() / "policy").mkdir()
    with pytest.raises(UserError, match="none is complete"):
        load_policy("policy")


def test_both_have_an_identity(run: Path, folder: Path) -> None:
    one, other = identity(run), identity(folder)
    assert one["recipe_hash"] == other["recipe_hash"] and one["checkpoint"]["step"] == other["checkpoint"]["step"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / PARAMETERS).write_bytes((f / PARAMETERS).read_bytes()[:-1]), "sha256 is not that in policy"),
        (lambda f: (f / PARAMETERS).unlink(), "No such file or directory; export the policy again"),
        (lambda f: (f / SETTINGS).write_text("{"), "not valid JSON .*; export the policy again"),
        (lambda f: (f / SETTINGS).write_text("[]"), r"is \[\].*; export the policy again"),
        (lambda f: (f / SETTINGS).write_text(""), "export the policy again"),
        (lambda f: change(f, step="3"), "step is '3'.*; export the policy again"),
        (lambda f: change(f, meta=[]), r"meta is \[\].*; export the policy again"),
        (lambda f: change(f, seal="0"), r"its content is not that which was written \(seal 0\)"),
        (lambda f: digit(f, 0.41, 2.41), "its content is not that which was written"),
        (lambda f: digit(f, "e0_flow", "e0_fLow"), "its content is not that which was written"),
        (lambda f: change(f, format_version=0), "format_version is not 1"),
    ],
)
def test_damage_is_one_line(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_policy(folder, batch_size=1)


def change(folder: Path, **values) -> None:
    """Another content, sealed as if it had been written."""
    path = folder / SETTINGS
    content = json.loads(path.read_text()) | values
    content["seal"] = values.get("seal") or hash_json({k: v for k, v in content.items() if k != "seal"})
    path.write_text(json.dumps(content))


def digit(folder: Path, before: float | str, after: float | str) -> None:
    """A value that a flipped bit changed, in a file that is valid otherwise."""
    path = folder / SETTINGS
    content = json.loads(path.read_text())
    if isinstance(before, str):
        content["meta"]["experiment"]["recipe"] = after
    else:
        content["meta"]["specs"]["action"]["scale"] = [after] * 7
    path.write_text(json.dumps(content))


def test_parameters_of_another_network_are_named(folder: Path, tmp_path: Path) -> None:
    other = save_run(tmp_path / "other", "e0", "regression")
    save_policy(other, tmp_path / "regression", "float32")
    shutil.copyfile(tmp_path / "regression" / PARAMETERS, folder / PARAMETERS)
    digest = json.loads((tmp_path / "regression" / SETTINGS).read_text())["sha256"]
    change(folder, sha256=digest)
    with pytest.raises(UserError, match=r"head/.* has the shape .*; export the policy again with this version"):
        find_policy(folder).parameters()


def test_a_folder_that_holds_files_is_not_overwritten(run: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="is not an empty folder"):
        save_policy(run, folder)


def test_the_policy_that_ships_acts() -> None:
    policy = load_policy("mini", batch_size=1)
    spec = policy.observation_spec
    frames = np.full((1, policy.frames_per_decision, 2, spec.image_size, spec.image_size, 3), 128, np.uint8)
    prompt = policy.prompt("pick up the black bowl next to the ramekin and place it on the plate")
    observation = Observation(frames, np.zeros((1, spec.state_dim), np.float32), prompt, np.ones(1, bool))
    _, actions, info = policy(policy.initial_carry(), observation, jax.random.split(jax.random.key(0), 1))
    assert actions.shape == (1, 8, 7) and np.isfinite(actions).all() and np.abs(actions).max() <= 1.0
    assert 0.1 < float(info["memory/gate"][0]) < 1.0
