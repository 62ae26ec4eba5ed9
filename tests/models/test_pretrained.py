"""Published backbone weights under a policy network."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models.vla_helpers import initialised
from tests.tiny import tiny_config
from wmjax.errors import UserError
from wmjax.models.lora import LoRAConfig
from wmjax.models.parameters import split_model, trainable_filter
from wmjax.models.pretrained import backbone_folder, backbone_hash, load_backbone
from wmjax.models.qwen2_5_vl import names, weights
from wmjax.models.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.vla import VLA

CONFIG = tiny_config("e0", "regression", lora=LoRAConfig(rank=2))


@pytest.fixture(scope="module")
def source() -> Qwen2_5_VL:
    plain = dataclasses.replace(CONFIG.backbone, lora=LoRAConfig())
    return initialised(lambda rngs: Qwen2_5_VL(plain, rngs=rngs))


@pytest.fixture(scope="module")
def folder(source: Qwen2_5_VL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    weights.save(source, folder)
    return folder


@pytest.mark.parametrize("trainable", ["all", "adapters"])
def test_the_base_is_the_checkpoints_and_the_rest_is_untouched(
    trainable: str, source: Qwen2_5_VL, folder: Path
) -> None:
    model = initialised(lambda rngs: VLA(CONFIG, rngs=rngs))
    _, params, frozen = split_model(model, trainable_filter(trainable))
    loaded = load_backbone(folder, CONFIG.backbone, params, frozen)
    published = {("backbone", *path): leaf.get_value() for path, leaf in names.base_leaves(source).items()}
    seen = 0
    for before, after in zip((params, frozen), loaded, strict=True):
        assert jax.tree.structure(before) == jax.tree.structure(after)
        old, new = dict(nnx.to_flat_state(before)), dict(nnx.to_flat_state(after))
        for path, leaf in new.items():
            expected = published.get(path, old[path].get_value())
            np.testing.assert_array_equal(leaf.get_value(), expected, err_msg=str(path))
            seen += path in published
    assert seen == len(published) > 20


def test_weights_of_another_shape_and_unknown_names_are_refused(folder: Path) -> None:
    other = dataclasses.replace(CONFIG.backbone, text=dataclasses.replace(CONFIG.backbone.text, mlp=72))
    model = initialised(lambda rngs: VLA(dataclasses.replace(CONFIG, backbone=other), rngs=rngs))
    _, params, frozen = split_model(model, trainable_filter("adapters"))
    with pytest.raises(UserError, match=r"gate_proj.weight has shape \(64, 48\), expected \(72, 48\)"):
        load_backbone(folder, other, params, frozen)
    with pytest.raises(UserError, match="neither a folder nor a hub id"):
        backbone_folder("qwen-3b")


def test_the_hash_is_that_of_the_weights(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    data = bytearray((folder / "model.safetensors").read_bytes())
    (copy / "model.safetensors").write_bytes(data)
    assert backbone_hash(copy) == backbone_hash(folder)
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert backbone_hash(copy) != backbone_hash(folder)
