"""The files that LeRobot reads beside a policy's own. The plug-in itself is tried with LeRobot, by its ``try.sh``."""

import ast
import dataclasses
import json
import tomllib
from pathlib import Path

import pytest

from tests.rollout.runs import save_run
from wmjax import export
from wmjax.policy.lerobot_files import lerobot_config, write_lerobot_files
from wmjax.policy.saved import find_policy
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

PLUGIN = Path(__file__).parents[2] / "integrations" / "lerobot_policy_wmjax"
BASE = {"n_obs_steps", "input_features", "output_features", "device", "push_to_hub"}
"""Fields of LeRobot's PreTrainedConfig."""
ACTION = dataclasses.replace(ACTION_SPEC, chunk=8)


def test_libero_has_the_features_of_lerobots_environment() -> None:
    found = lerobot_config(OBSERVATION_SPEC, ACTION)
    assert found["type"] == "wmjax" and found["open_loop_horizon"] == 8
    assert found["cameras"] == ["observation.images.image", "observation.images.image2"]
    assert found["input_features"]["observation.images.image2"] == {"type": "VISUAL", "shape": [3, 112, 112]}
    assert found["input_features"]["observation.state"] == {"type": "STATE", "shape": [8]}
    assert found["output_features"] == {"action": {"type": "ACTION", "shape": [7]}}


def test_another_robot_has_lerobots_plain_names_in_the_policys_order() -> None:
    spec = dataclasses.replace(OBSERVATION_SPEC, cameras=("wrist", "agentview"), frame_stride=3)
    found = lerobot_config(spec, ACTION)
    assert found["cameras"] == ["observation.images.wrist", "observation.images.agentview"]
    assert found["open_loop_horizon"] == 6  # a multiple of the stride, at most the chunk


def test_the_plug_in_has_the_fields_that_are_written() -> None:
    package = PLUGIN / "lerobot_policy_wmjax"
    tree = ast.parse((package / "configuration_wmjax.py").read_text())
    (config,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    own = {
        node.target.id for node in config.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert own | BASE | {"type"} == set(lerobot_config(OBSERVATION_SPEC, ACTION))
    # LeRobot derives the policy's module and class, and the processors' function, from these names.
    assert config.name == "WmjaxConfig" and "register_subclass('wmjax')" in ast.unparse(config.decorator_list[0])
    assert "class WmjaxPolicy(" in (package / "modeling_wmjax.py").read_text()
    assert "def make_wmjax_pre_post_processors(" in (package / "processor_wmjax.py").read_text()
    assert tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]["name"] == package.name


def test_the_processors_name_what_lerobot_eval_overrides(tmp_path: Path) -> None:
    write_lerobot_files(tmp_path, OBSERVATION_SPEC, ACTION)
    steps = json.loads((tmp_path / "policy_preprocessor.json").read_text())["steps"]
    assert {"device_processor", "rename_observations_processor"} <= {step["registry_name"] for step in steps}
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "policy_preprocessor.json",
        "policy_postprocessor.json",
    }


@pytest.mark.slow
def test_the_export_is_a_policys_folder_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = save_run(tmp_path / "run", "e0", "regression"), tmp_path / "out"
    assert export.main(["--run", str(run), "--out", str(out), "--format", "lerobot"]) == 0
    assert "a policy for LeRobot's --policy.path in float32" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["type"] == "wmjax"
    assert find_policy(out).step == 1 and (out / "README.md").is_file()
