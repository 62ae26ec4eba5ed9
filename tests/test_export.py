"""A run's backbone as files: the exported parameters are those of the policy."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from tests.models.vla_helpers import initialised
from tests.rollout.runs import save_run
from tests.tiny import averaged_parameters, tiny_config
from wmjax.experiment.config import from_dict
from wmjax.export import main
from wmjax.models.backbones.qwen2_5_vl import adapters, names, weights
from wmjax.models.backbones.qwen2_5_vl.backbone import Qwen2_5_VLBackbone
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.backbones.qwen2_5_vl.prompt import PromptBuilder
from wmjax.models.nn.lora import LoRAConfig
from wmjax.models.prompts import PromptConfig
from wmjax.policy.restore import restore_model
from wmjax.trainer import checkpoint


def backbone_of(run: Path) -> Qwen2_5_VL:
    folder = checkpoint.latest(run / "checkpoints")
    experiment = from_dict(checkpoint.read_meta(folder)["experiment"])
    backbone = restore_model(experiment, averaged_parameters(folder, experiment), None).backbone
    assert isinstance(backbone, Qwen2_5_VL)
    return backbone


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("plain"), "e0", "regression")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("adapted"), "e0", "regression", lora=LoRAConfig(rank=2))


def read_back(folder: Path, like: Qwen2_5_VL) -> Qwen2_5_VL:
    return weights.load_model(folder, like.config)


def assert_same_base(a: Qwen2_5_VL, b: Qwen2_5_VL) -> None:
    left, right = names.base_leaves(a), names.base_leaves(b)
    assert left.keys() == right.keys() and len(left) > 20
    for path, leaf in left.items():
        np.testing.assert_array_equal(leaf.get_value(), right[path].get_value(), err_msg=str(path))


def test_a_backbone_without_adapters_becomes_a_checkpoint_that_loads_again(plain: Path, tmp_path: Path) -> None:
    assert main(["--run", str(plain), "--out", str(tmp_path / "out")]) == 0
    acted = backbone_of(plain)
    assert_same_base(read_back(tmp_path / "out", acted), acted)
    prompts = [PromptBuilder(tokenizer, [(56, 56)], 8, 56, acted.config) for tokenizer in ("mini", tmp_path / "out")]
    assert prompts[0].hashes == prompts[1].hashes


@pytest.mark.slow
def test_adapters_become_peft_files_and_merge_into_the_same_function(adapted: Path, tmp_path: Path) -> None:
    acted = backbone_of(adapted)
    assert main(["--run", str(adapted), "--out", str(tmp_path / "peft")]) == 0
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["r"] == 2
    fresh = nnx.merge(*nnx.split(acted))
    for leaf in names.adapter_leaves(fresh).values():
        leaf.set_value(leaf.get_value() * 0)
    adapters.load(fresh, tmp_path / "peft")
    for path, leaf in names.adapter_leaves(acted).items():
        np.testing.assert_array_equal(leaf.get_value(), names.adapter_leaves(fresh)[path].get_value())
    assert main(["--run", str(adapted), "--out", str(tmp_path / "merged"), "--merge"]) == 0
    expected = adapters.merge(acted)
    assert_same_base(read_back(tmp_path / "merged", expected), expected)


def test_bad_input_is_one_line(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(plain), "--out", str(tmp_path / "x"), "--merge"]) == 2
    assert "model.backbone.lora.rank is 0" in capsys.readouterr().err and not (tmp_path / "x").exists()
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "file").write_text("mine")
    assert main(["--run", str(plain), "--out", str(tmp_path / "y")]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


BEYOND = {
    "bos_token_id": 151643, "eos_token_id": 151645, "pad_token_id": 151643, "video_token_id": 151656,
    "vision_token_id": 151654, "max_position_embeddings": 128000, "max_window_layers": 70, "use_cache": True,
}  # fmt: skip
"""Fields of a published config.json that nothing here computes with."""


@pytest.mark.parametrize("nested", [False, True])
def test_an_exported_config_keeps_what_the_base_said_beyond_the_architecture(nested: bool, tmp_path: Path) -> None:
    config = tiny_config("e0", "regression").backbone
    backbone = initialised(lambda rngs: Qwen2_5_VLBackbone(config, rngs=rngs))
    weights.save(backbone, tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["vision_config"]["tokens_per_second"] = 2
    values |= {"text_config": {**values, **BEYOND}} if nested else BEYOND
    path.write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "out").mkdir()
    backbone.export(tmp_path / "out", PromptConfig(), str(tmp_path / "base"), merge=False)
    written = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert {name: written[name] for name in BEYOND} == BEYOND
    assert written["vision_config"]["tokens_per_second"] == 2
    assert_same_base(read_back(tmp_path / "out", backbone), backbone)
