"""Published backbone weights under a policy network."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models.vla_helpers import initialised
from tests.tiny import tiny_config
from wmjax.core.errors import UserError
from wmjax.models.backbones.pretrained import (
    backbone_folder,
    backbone_hash,
    load_backbone,
)
from wmjax.models.backbones.qwen2_5_vl import names, weights
from wmjax.models.backbones.qwen2_5_vl.backbone import require_architecture, require_tokenizer
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.backbones.qwen2_5_vl.prompt import MINI_TOKENIZER
from wmjax.models.nn.lora import LoRAConfig
from wmjax.models.parameters import split_model, trainable_filter
from wmjax.models.vla import VLA, match_embeddings

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


@pytest.mark.parametrize(
    ("size", "use_state", "trainable"),
    [(0.02, True, "all"), (0.02, False, "adapters"), (3.0, True, "adapters"), (0.5, False, "all")],
)
def test_the_policys_own_tokens_are_as_large_as_the_published_words(
    size: float, use_state: bool, trainable: str, tmp_path: Path
) -> None:
    plain = dataclasses.replace(CONFIG.backbone, lora=LoRAConfig())
    published = initialised(lambda rngs: Qwen2_5_VL(plain, rngs=rngs))
    published.embedding[...] = size * jax.random.normal(jax.random.key(0), published.embedding.shape)
    weights.save(published, tmp_path)
    config = dataclasses.replace(CONFIG, use_state=use_state)
    model = VLA(config, rngs=nnx.Rngs(0))  # with the values that training draws
    _, params, frozen = split_model(model, trainable_filter(trainable))
    before = {path: np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(params)}
    loaded = match_embeddings(config, *load_backbone(tmp_path, CONFIG.backbone, params, frozen))
    after = {path: np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(loaded[0])}
    own = [("queries",)] + [("state_in",)] * (not use_state)
    for path in own:
        assert 0.6 * config.query_std < np.std(before[path]) < 1.4 * config.query_std
        assert 0.6 * size < np.std(after[path]) < 1.4 * size
        np.testing.assert_allclose(after[path], before[path] * size / config.query_std, rtol=0.05)
    others = [path for path in before if path not in own and path[0] != "backbone"]
    assert len(others) > 5
    for path in others:
        np.testing.assert_array_equal(after[path], before[path])


def test_weights_of_another_shape_and_unknown_names_are_refused(folder: Path) -> None:
    other = dataclasses.replace(CONFIG.backbone, text=dataclasses.replace(CONFIG.backbone.text, mlp=72))
    model = initialised(lambda rngs: VLA(dataclasses.replace(CONFIG, backbone=other), rngs=rngs))
    _, params, frozen = split_model(model, trainable_filter("adapters"))
    with pytest.raises(UserError, match=r"has text\.mlp = 64, model\.backbone has 72"):
        load_backbone(folder, other, params, frozen)
    for name in ("qwen-3b", "/no/such/folder", "runs/no/such", "../folder", "~/folder"):
        with pytest.raises(UserError, match="neither a folder nor a hub id"):
            backbone_folder(name)


def test_a_function_that_shapes_do_not_tell_is_refused(folder: Path) -> None:
    """Other rotary frequencies fit every tensor and mean another function; how it is run may differ."""
    text = dataclasses.replace(CONFIG.backbone.text, rope_sections=(2, 5, 5))
    with pytest.raises(UserError, match=r"has text\.rope_sections = \(4, 4, 4\), model\.backbone has \(2, 5, 5\)"):
        require_architecture(folder, dataclasses.replace(CONFIG.backbone, text=text))
    run = dataclasses.replace(CONFIG.backbone, lora=LoRAConfig(rank=3), added_tokens=2, dtype="bfloat16", remat="full")
    require_architecture(folder, run)


def test_the_tokenizer_beside_the_weights_is_that_of_the_prompts(folder: Path, tmp_path: Path) -> None:
    require_tokenizer(folder, MINI_TOKENIZER)  # none beside them
    content = (MINI_TOKENIZER / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(content)
    require_tokenizer(tmp_path, MINI_TOKENIZER)
    (tmp_path / "tokenizer.json").write_bytes(content + b" ")
    with pytest.raises(UserError, match=f"set prompt.tokenizer to {tmp_path}"):
        require_tokenizer(tmp_path, MINI_TOKENIZER)


def test_the_hash_is_that_of_the_weights(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    data = bytearray((folder / "model.safetensors").read_bytes())
    (copy / "model.safetensors").write_bytes(data)
    assert backbone_hash(copy) == backbone_hash(folder)
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert backbone_hash(copy) != backbone_hash(folder)
