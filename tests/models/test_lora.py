"""LoRA: what trains and what stays, dropout, chosen layers; the same under remat, an unrolled scan and sharding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.models.vla_helpers import fit, initialised, make_actions, make_inputs, make_vla, tiny_config
from tests.tiny import tiny_config as tiny_policy
from wmjax.core.errors import UserError
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.heads.regression import RegressionConfig
from wmjax.models.nn.lora import ADAPTER, VISION_PROJECTIONS, AdapterInputs, Linear, LoRAConfig
from wmjax.models.parameters import split_model, to_named, trainable_filter
from wmjax.trainer.sharding import MeshConfig, make_mesh, shardings

LORA = LoRAConfig(rank=2, vision_targets=VISION_PROJECTIONS)
TOKENS = jax.random.randint(jax.random.key(0), (2, 12), 0, 500)
POSITIONS = jnp.broadcast_to(jnp.arange(12), (2, 3, 12))
MASK = jnp.ones((2, 12), bool)


@pytest.mark.parametrize("rank", [2, 0])
def test_adapters_train_and_the_base_keeps_its_bits(rank: int) -> None:
    """With rank 0 the backbone is frozen altogether, and the rest of the policy still trains."""
    lora = dataclasses.replace(LORA, rank=rank)
    backbone = dataclasses.replace(tiny_config().backbone, lora=lora)
    model = make_vla("e0", real=True, head=RegressionConfig(), backbone=backbone)
    base = {path: np.array(leaf) for path, leaf in backbone_base(model).items()}
    graph, params, frozen = split_model(model, trainable_filter("adapters"))
    before = to_named(params)
    inputs, (action, mask) = make_inputs(), make_actions()
    after, _ = fit(params, lambda p, key: nnx.merge(graph, p, frozen).loss(inputs, action, mask, key), steps=4)
    assert [name for name, value in to_named(after).items() if np.array_equal(value, before[name])] == []
    adapted = [name for name in before if "lora_" in name]
    assert all(name.startswith("backbone") for name in adapted) and bool(adapted) == bool(rank)
    for name in adapted:  # one array holds all layers, and every layer's part must move
        assert (np.abs(to_named(after)[name] - before[name]).max(axis=(1, 2)) > 0).all(), name
    trained = nnx.merge(graph, after, frozen)
    assert base.keys() == backbone_base(trained).keys() and len(base) > 20
    for path, value in backbone_base(trained).items():
        assert np.array(value).tobytes() == base[path].tobytes(), path


def backbone_base(model: nnx.Module) -> dict:
    state = nnx.state(model, nnx.Not(nnx.Any(*ADAPTER)))
    return {path: leaf.get_value() for path, leaf in nnx.to_flat_state(state) if path[0] == "backbone"}


def linear(**lora: object) -> Linear:
    config = LoRAConfig(rank=3, **lora)  # type: ignore[arg-type]
    layer = Linear(8, 6, (None, None), rngs=nnx.Rngs(0), name="q_proj", lora=config, adapted=("q_proj",))
    assert layer.lora_b is not None
    layer.lora_b[...] = jax.random.normal(jax.random.key(1), (3, 6))
    return layer


def test_scales() -> None:
    assert LoRAConfig(rank=16, alpha=32.0).scale == 2.0
    assert LoRAConfig(rank=16, alpha=32.0, rank_stabilised=True).scale == 8.0
    assert LoRAConfig(rank=0).scale == 0.0


def test_dropout_acts_on_the_adapter_alone_and_keeps_its_mean() -> None:
    layer, x = linear(dropout=0.5), jax.random.normal(jax.random.key(2), (4, 8))
    base, plain = x @ layer.kernel[...], layer(x)
    keys = jax.random.split(jax.random.key(3), 4000)
    dropped = jax.jit(jax.vmap(lambda key: layer(x, AdapterInputs(key))))(keys)
    assert not np.allclose(dropped[0], dropped[1])
    spread = float(jnp.std(dropped, axis=0).max())
    np.testing.assert_allclose(dropped.mean(0), plain, atol=5 * spread / 4000**0.5)
    np.testing.assert_array_equal(layer(x, AdapterInputs(keys[0])), layer(x, AdapterInputs(keys[0])))
    np.testing.assert_array_equal(layer(x, AdapterInputs(keys[0], jnp.zeros(()))), base)


def make(**changes: object) -> Qwen2_5_VL:
    config = dataclasses.replace(tiny_policy().backbone, **changes)  # type: ignore[arg-type]
    return initialised(lambda rngs: Qwen2_5_VL(config, rngs=rngs))


def loss_and_gradients(model: Qwen2_5_VL, place=lambda state: state, key: jax.Array | None = None):
    """Of a decoded prompt; ``place`` puts parameters on devices."""
    graph, lora, rest = nnx.split(model, nnx.LoRAParam, ...)
    probe = np.random.default_rng(1).normal(size=(2, 12, model.config.text.hidden)).astype(np.float32)

    def loss(lora, rest):
        own = nnx.merge(graph, lora, rest)
        return jnp.sum(own.forward(own.embed(TOKENS), POSITIONS, MASK, key) * probe)

    return jax.jit(jax.value_and_grad(loss))(place(lora), place(rest))


def assert_same(found, wanted) -> None:
    for (path, a), (_, b) in zip(*map(jax.tree_util.tree_leaves_with_path, (found, wanted)), strict=True):
        scale = float(np.abs(b).max())
        assert scale > 0, path
        np.testing.assert_allclose(a, b, atol=1e-5 * scale, err_msg=str(path))


@pytest.mark.parametrize(
    "change",
    [
        {"remat": "full", "scan_unroll": 2},
        {"remat": "names"},
        pytest.param({"remat": "dots_no_batch"}, marks=pytest.mark.long),
    ],
)
def test_recomputing_and_unrolling_change_nothing(change: dict) -> None:
    lora, key = LoRAConfig(rank=2, dropout=0.3), jax.random.key(7)
    assert_same(loss_and_gradients(make(lora=lora, **change), key=key), loss_and_gradients(make(lora=lora), key=key))


def test_each_remat_policy_keeps_less_than_the_next() -> None:
    """The arrays that the forward pass leaves to the backward pass; adapters make two more products per layer."""
    lora = LoRAConfig(rank=2)

    def kept(remat: str) -> int:
        graph, trained, rest = nnx.split(make(lora=lora, remat=remat), nnx.LoRAParam, ...)

        def forward(trained: nnx.State) -> jax.Array:
            own = nnx.merge(graph, trained, rest)
            return own.forward(own.embed(TOKENS), POSITIONS, MASK)

        residuals = jax.eval_shape(lambda: jax.vjp(forward, trained)[1])
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))

    sizes = {remat: kept(remat) for remat in ("full", "names", "dots_no_batch", "dots", "none")}
    assert list(sizes.values()) == sorted(set(sizes.values())), sizes


@pytest.mark.parametrize("axis", ["fsdp", "tensor"])
def test_sharding_changes_nothing(axis: str) -> None:
    """Two devices, parameters and adapters split by the rules of the trainer.

    Adapters of scale 1: at the default's 8, filled at random, float32 loses more than 1e-5 on some CPUs by the order of
    its sums alone.
    """
    model = make(lora=LoRAConfig(rank=2, alpha=2.0))
    mesh = make_mesh(MeshConfig(**{axis: 2}))
    split = []

    def place(state: nnx.State) -> nnx.State:
        placed = jax.device_put(state, shardings(state, mesh))
        split.extend(leaf for leaf in jax.tree.leaves(placed) if not leaf.sharding.is_fully_replicated)
        return placed

    found = loss_and_gradients(model, place)
    assert len(split) > 10
    replicated = NamedSharding(mesh, P())
    assert_same(jax.device_put(found, replicated), loss_and_gradients(model))


def test_layers_that_are_not_chosen_have_no_adapter() -> None:
    model = make(lora=LoRAConfig(rank=2, layers=(1,)))
    value, gradients = loss_and_gradients(model)
    for path, leaf in nnx.to_flat_state(gradients):
        gradient = np.asarray(leaf.get_value())
        assert not gradient[0].any() and gradient[1].any(), path
    model.layers.q_proj.lora_b[...] = model.layers.q_proj.lora_b[...].at[0].multiply(50.0)
    np.testing.assert_array_equal(loss_and_gradients(model)[0], value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rank", -1, r"lora\.rank is -1"),
        ("dropout", 1.0, r"lora\.dropout is 1\.0"),
        ("targets", ("q_prj",), r"lora\.targets 'q_prj'; did you mean q_proj"),
        ("vision_targets", ("q_proj",), r"lora\.vision_targets 'q_proj'"),
    ],
)
def test_bad_settings_are_named(field: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoRAConfig(**{field: value})  # type: ignore[arg-type]


def test_layers_outside_the_model_are_named() -> None:
    with pytest.raises(UserError, match=r"lora\.layers has \[36\], outside 0\.\.35"):
        Qwen2_5_VLConfig(lora=LoRAConfig(rank=1, layers=(36,)))
