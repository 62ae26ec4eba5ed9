"""Checkpoints and adapters as files: round trips, and one error that names what is wrong. No torch involved."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.models.vla_helpers import initialised
from tests.tiny import tiny_config
from wmjax.core.errors import UserError
from wmjax.models.backbones import pretrained
from wmjax.models.backbones.qwen2_5_vl import adapters, names, weights
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig, from_hf_config, load_hf_config, preset
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.nn.lora import LoRAConfig

LORA = LoRAConfig(rank=2, alpha=6.0, targets=("q_proj", "down_proj"), vision_targets=("qkv",), layers=(1,))
CONFIG = tiny_config().backbone
ADAPTED = dataclasses.replace(CONFIG, lora=LORA, added_tokens=3)
NORM, GATE = "model.norm.weight", "model.layers.1.mlp.gate_proj.weight"


def make(config: Qwen2_5_VLConfig) -> Qwen2_5_VL:
    return initialised(lambda rngs: Qwen2_5_VL(config, rngs=rngs))


def assert_equal(a: Qwen2_5_VL, b: Qwen2_5_VL, *kinds: type) -> None:
    one, other = (dict(nnx.to_flat_state(nnx.state(model, *kinds))) for model in (a, b))
    assert one.keys() == other.keys() and one
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf.get_value(), other[path].get_value(), err_msg=str(path))


@pytest.mark.parametrize("tied", [True, False])
def test_shards_are_written_and_read_back(tmp_path: Path, tied: bool) -> None:
    model = make(dataclasses.replace(CONFIG, tied=tied))
    weights.save(model, tmp_path, shard_bytes=100_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2 and load_hf_config(tmp_path) == dataclasses.replace(
        model.config, embedding_std=0.02
    )
    assert_equal(weights.load_model(tmp_path), model, nnx.Param)


def test_loading_changes_the_dtype_and_keeps_new_parameters_float32(tmp_path: Path) -> None:
    weights.save(make(CONFIG), tmp_path)
    model = weights.load_model(tmp_path, dataclasses.replace(ADAPTED, param_dtype="bfloat16"))
    assert {leaf.dtype for leaf in names.base_leaves(model).values()} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in names.adapter_leaves(model).values()} == {jnp.dtype("float32")}
    assert model.added is not None and model.added.dtype == jnp.float32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights.save(make(CONFIG), tmp_path)
    return tmp_path


def rewrite(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_every_unfitting_tensor_is_listed_in_one_error(folder: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        del tensors[NORM]
        tensors["model.extra"] = np.zeros(3, np.float32)
        tensors[GATE] = tensors[GATE][:-1]
        name = "visual.merger.ln_q.weight"
        tensors[name] = tensors[name].astype(np.int32)

    rewrite(folder / "model.safetensors", change)
    with pytest.raises(UserError) as caught:
        weights.load_model(folder)
    message = str(caught.value)
    assert "\n" not in message and f"missing {NORM}" in message and "surplus model.extra" in message
    assert f"{GATE} has shape (63, 48), expected (64, 48)" in message
    assert "visual.merger.ln_q.weight has dtype I32, expected one of F32, BF16, F16" in message


def test_truncated_missing_and_damaged_files_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or damaged"):
        weights.load_model(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors does not exist"):
        weights.load_model(folder)
    (folder / weights.INDEX).write_text("{")
    with pytest.raises(UserError, match=r"index\.json: not valid JSON"):
        weights.load_model(folder)


HF = weights.to_hf_config(CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_vl"}, "model_type is 'qwen2_vl'; only 'qwen2_5_vl' is supported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: 'silu'"),
        ({"use_sliding_window": True}, "use_sliding_window is True; supported: False"),
        ({"rope_scaling": {"type": "yarn"}}, "rope type is 'yarn'"),
        ({"hidden_size": 50}, r"text\.hidden is 50; use a positive multiple of"),
        ({"num_attention_heads": 3}, r"text\.hidden is 48|text\.heads|rope_sections"),
        ({"image_token_id": 10**6}, "image_token is 1000000, outside the vocabulary"),
        ({"vision_config": HF["vision_config"] | {"out_hidden_size": 64}}, r"vision\.out is 64 but text\.hidden is 48"),
        ({"vision_config": HF["vision_config"] | {"fullatt_block_indexes": [9]}}, r"vision\.full_attention has \[9\]"),
    ],
)
def test_a_wrong_field_of_the_config_is_named(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_hf_config(HF | change)


def test_a_missing_field_and_an_unreadable_config_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the key 'text\.hidden_size' is missing"):
        from_hf_config({k: v for k, v in HF.items() if k != "hidden_size"})
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        load_hf_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        load_hf_config(tmp_path)


@pytest.mark.parametrize("name", ["mini", "3b", "7b"])
def test_a_preset_survives_its_config_file(name: str) -> None:
    config = preset(name)
    assert from_hf_config(weights.to_hf_config(config), embedding_std=config.embedding_std) == config


@pytest.fixture
def adapted(tmp_path: Path) -> tuple[Qwen2_5_VL, Path]:
    model = make(ADAPTED)
    adapters.save(model, tmp_path / "adapters", base="Qwen/Qwen2.5-VL-3B-Instruct")
    return model, tmp_path / "adapters"


def test_adapters_and_added_tokens_come_back(adapted: tuple[Qwen2_5_VL, Path]) -> None:
    model, folder = adapted
    config = adapters.configure(dataclasses.replace(CONFIG, added_tokens=3), folder)
    assert config == ADAPTED
    other = initialised(lambda rngs: Qwen2_5_VL(config, rngs=rngs))
    for leaf in (*names.adapter_leaves(other).values(), other.added):
        leaf.set_value(jnp.zeros(leaf.shape))
    adapters.load(other, folder)
    stored = load_file(folder / adapters.WEIGHTS)
    assert {name.split(".lora_")[0] for name in stored} == {
        "base_model.model.model.language_model.layers.1.self_attn.q_proj",
        "base_model.model.model.language_model.layers.1.mlp.down_proj",
        "base_model.model.model.visual.blocks.0.attn.qkv",
        "base_model.model.model.visual.blocks.1.attn.qkv",
    }
    np.testing.assert_array_equal(other.added.get_value(), model.added.get_value())
    for path, leaf in names.adapter_leaves(model).items():
        active = slice(1, None) if path[0] == "layers" else slice(None)  # of layer 0 nothing is stored
        np.testing.assert_array_equal(
            names.adapter_leaves(other)[path].get_value()[active], leaf.get_value()[active], err_msg=str(path)
        )


def test_adapters_are_stored_as_they_are_computed_with(tmp_path: Path) -> None:
    model = make(dataclasses.replace(ADAPTED, dtype="bfloat16"))
    adapters.save(model, tmp_path)
    assert {tensor.dtype.name for tensor in load_file(tmp_path / adapters.WEIGHTS).values()} == {"bfloat16"}
    other = make(model.config)
    adapters.load(other, tmp_path)
    for path, leaf in names.adapter_leaves(model).items():
        active = slice(1, None) if path[0] == "layers" else slice(None)
        rounded = leaf.get_value()[active].astype(jnp.bfloat16).astype(jnp.float32)
        np.testing.assert_array_equal(names.adapter_leaves(other)[path].get_value()[active], rounded, err_msg=str(path))


def test_unfitting_adapters_are_listed(adapted: tuple[Qwen2_5_VL, Path]) -> None:
    _, folder = adapted
    with pytest.raises(UserError, match=r"scales by 2, the adapters in .* by 3; set rank, alpha .* to 2, 6 and false"):
        adapters.load(make(dataclasses.replace(CONFIG, lora=dataclasses.replace(LORA, alpha=4.0))), folder)
    with pytest.raises(UserError, match=r"missing base_model.*layers\.0\.self_attn\.q_proj\.lora_A"):
        adapters.load(make(dataclasses.replace(CONFIG, lora=dataclasses.replace(LORA, layers=()))), folder)
    with pytest.raises(UserError, match=r"surplus base_model.*visual\.blocks\.0\.attn\.qkv\.lora_A"):
        adapters.load(make(dataclasses.replace(CONFIG, lora=dataclasses.replace(LORA, vision_targets=()))), folder)
    with pytest.raises(UserError, match=r"added_tokens\.safetensors has rows \(3, 48\), the model \(5, 48\)"):
        adapters.load(make(dataclasses.replace(ADAPTED, added_tokens=5)), folder)
    with pytest.raises(UserError, match="there are no adapters to save"):
        adapters.save(make(CONFIG), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only 'LORA' is supported"),
        ({"use_dora": True}, "use_dora is True, which is not supported"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is {'q_proj': 8}"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"lora_dropout": 1.5}, r"lora\.dropout is 1\.5"),
    ],
)
def test_what_our_adapters_cannot_say_is_refused(adapted: tuple[Qwen2_5_VL, Path], change: dict, message: str) -> None:
    path = adapted[1] / adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        adapters.configure(CONFIG, adapted[1])


def test_damaged_adapters_are_named(adapted: tuple[Qwen2_5_VL, Path]) -> None:
    _, folder = adapted
    (folder / adapters.WEIGHTS).write_bytes((folder / adapters.WEIGHTS).read_bytes()[:100])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is truncated or damaged"):
        adapters.configure(CONFIG, folder)
    (folder / adapters.CONFIG).write_text("{}")
    with pytest.raises(UserError, match="peft_type is None"):
        adapters.configure(CONFIG, folder)
    (folder / adapters.CONFIG).unlink()
    with pytest.raises(UserError, match=r"adapter_config\.json does not exist"):
        adapters.configure(CONFIG, folder)


def test_merging_in_bfloat16_rounds_once() -> None:
    """The sum is made in float32: merged kernels are the nearest bfloat16 to it, in the adapted layer alone."""
    model = make(dataclasses.replace(ADAPTED, param_dtype="bfloat16"))
    for leaf in names.base_leaves(model).values():
        leaf.set_value(leaf.get_value().astype(jnp.bfloat16))
    merged = adapters.merge(model)
    assert merged.config == dataclasses.replace(model.config, lora=LoRAConfig())
    layer = model.layers.q_proj
    before, after = (np.asarray(m.layers.q_proj.kernel[...], np.float32) for m in (model, merged))
    np.testing.assert_array_equal(after[0], before[0])
    exact = before[1] + 3.0 * np.asarray(layer.lora_a[...])[1] @ np.asarray(layer.lora_b[...])[1]
    np.testing.assert_allclose(after[1], exact, rtol=2**-8)
    assert not np.array_equal(after[1], before[1])
    np.testing.assert_array_equal(merged.added.get_value(), model.added.get_value())


def test_a_download_asks_for_weights_and_tokenizer_and_names_its_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def found(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", found)
    assert pretrained.download("Qwen/Qwen2.5-VL-3B-Instruct", revision="abc") == tmp_path
    assert asked["name"] == "Qwen/Qwen2.5-VL-3B-Instruct" and asked["revision"] == "abc"
    assert {"*.safetensors", "*.json"} <= set(asked["allow_patterns"])

    def offline(name: str, **options: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(UserError, match=r"cannot download 'Qwen/x' \(no network\); give the folder"):
        pretrained.download("Qwen/x")
