"""The composition: what may reach the actions, what trains what, and how often the VLM runs."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr

from tests.models.vla_helpers import (
    CHUNK,
    HIDDEN,
    TinyBackbone,
    fit,
    head_config,
    make_actions,
    make_inputs,
    make_vla,
    tiny_config,
    wake,
)
from tests.variants import VARIANTS
from wmjax.core.errors import UserError
from wmjax.models.heads.base import HeadLoss
from wmjax.models.heads.flow import FlowHead
from wmjax.models.heads.regression import RegressionHead
from wmjax.models.parameters import to_named
from wmjax.models.vla import VLA
from wmjax.models.world.config import WorldMemoryConfig
from wmjax.models.world.memory import corrupt
from wmjax.models.world.prophet import WorldLossConfig

KEY = jax.random.key(5)
INPUTS, NOISE = make_inputs(), jax.random.key(2)
ACTION, MASK = make_actions()
LAYERS: tuple[tuple[int, ...], ...] = ((), (0, 1))
"""Where the memory enters: after the VLM's last layer, or after both layers of the real one."""
PATHS = [(kind, layers) for kind in ("regression", "flow") for layers in LAYERS]
LONG = pytest.mark.long


@functools.partial(jax.jit, static_argnames="corruption")
def sample(model: Any, inputs: Any, corruption: str = "none", memory: Any = None) -> Any:
    return model.sample(inputs, NOISE, corruption=corruption, memory=memory, corruption_key=KEY)


@jax.jit
def loss(model: Any, inputs: Any) -> Any:
    return model.loss(inputs, ACTION, MASK, KEY, train=True)


@functools.cache
def awake(variant: str, kind: str = "regression", layers: tuple[int, ...] = (), **changes: Any) -> Any:
    """A policy whose zero-initialised outputs are open; do not change it, it is shared."""
    return wake(make_vla(variant, layers=layers, head=head_config(kind), **changes))


@pytest.mark.parametrize("kind", [pytest.param("regression", marks=LONG), "flow"])
def test_with_the_gate_at_zero_actions_do_not_depend_on_the_memory_bit_for_bit(kind: str) -> None:
    other = INPUTS._replace(latents=INPUTS.latents + 1.0)
    closed, opened = awake("e2", kind, gate=0.0), awake("e2", kind, gate=1.0)
    np.testing.assert_array_equal(sample(closed, INPUTS)[0], sample(closed, other)[0])
    assert jnp.abs(sample(opened, INPUTS)[0] - sample(opened, other)[0]).max() > 1e-3
    # Another graph, hence another rounding.
    np.testing.assert_allclose(sample(opened, INPUTS, "closed")[0], sample(closed, INPUTS)[0], atol=1e-5)


def test_corruptions_change_the_memory_as_they_say() -> None:
    model = awake("e2", gate=1.0)
    clean, info = sample(model, INPUTS)
    assert info["prediction"].shape == INPUTS.future.shape
    zero = sample(model, INPUTS, "zero")[0]
    np.testing.assert_allclose(zero, sample(model, INPUTS, memory=jnp.zeros_like(info["prediction"]))[0], atol=1e-5)
    others = jax.jit(lambda m, i: m.recall(i))(model, INPUTS._replace(latents=INPUTS.latents[jnp.array([1, 2, 0])]))
    np.testing.assert_allclose(others, jnp.roll(info["prediction"], -1, axis=0), atol=1e-5)
    shuffled = sample(model, INPUTS, "shuffled", memory=others)[0]
    np.testing.assert_allclose(shuffled, sample(model, INPUTS, memory=others)[0], atol=1e-5)
    assert min(jnp.abs(zero - clean).max(), jnp.abs(shuffled - clean).max()) > 1e-3
    assert jnp.abs(sample(model, INPUTS, "noise")[0] - clean).max() > 1e-3
    assert (sample(model, INPUTS, "closed")[1]["memory/ratio"] == 0.0).all()


@jax.jit
def action_path(model: Any, inputs: Any) -> Any:
    """All that leads to an action: tokens of training and of acting, the sampled chunk, the action loss."""
    tokens = [model.action_tokens(inputs, key=KEY, train=train).tokens for train in (True, False)]
    return tokens, sample(model, inputs)[0], loss(model, inputs)[1]["action/loss"]


@jax.jit
def by_future(model: Any, future: jax.Array) -> dict[str, jax.Array]:
    """The gradients of the action loss, the world loss and their sum by the true future."""

    def gradient(name: str) -> jax.Array:
        return jax.grad(lambda f: loss(model, INPUTS._replace(future=f))[1][name])(future)

    return {name: gradient(name) for name in ("action/loss", "world/loss", "loss")}


@pytest.mark.parametrize(
    ("variant", "kind", "layers"),
    [
        ("e1", "regression", ()),
        pytest.param("e2aux", "regression", (), marks=LONG),
        *(pytest.param("e2", *path, marks=() if path in (PATHS[0], PATHS[-1]) else LONG) for path in PATHS),
    ],
)
def test_no_true_future_reaches_the_actions(variant: str, kind: str, layers: tuple[int, ...]) -> None:
    """By output and by gradient, bit for bit; the world loss and an oracle show that the test can fail."""
    model = awake(variant, kind, layers, gate=1.0 if VARIANTS[variant].inject else None)
    # Its negative: the memory's LayerNorm would hide another offset or scale.
    other = INPUTS._replace(future=-INPUTS.future, future_mask=~INPUTS.future_mask)
    jax.tree.map(np.testing.assert_array_equal, action_path(model, INPUTS), action_path(model, other))
    if VARIANTS[variant].inject:
        oracle, false = (sample(model, INPUTS, memory=inputs.future)[0] for inputs in (INPUTS, other))
        assert jnp.abs(oracle - false).max() > 1e-3

    gradient = by_future(model, INPUTS.future)
    np.testing.assert_array_equal(gradient["action/loss"], 0.0)
    assert jnp.abs(gradient["world/loss"]).max() > 1e-4
    assert bool(jnp.any(gradient["loss"] != 0.0)) == (variant != "e1")


ORACLE = WorldMemoryConfig(input="future", world_loss=0.0)


def test_only_the_oracle_is_shown_the_true_future() -> None:
    """In training it is the recorded one, in acting the one that it is given, and without one it does not act."""
    model = wake(make_vla("e1copy", memory=ORACLE, gate=1.0))
    assert model.world.prophet is None
    recorded = sample(model, INPUTS._replace(future_mask=jnp.ones_like(INPUTS.future_mask)))[0]
    given = sample(model, INPUTS._replace(future=None, future_mask=None), memory=INPUTS.future)[0]
    np.testing.assert_allclose(recorded, given, atol=1e-5)  # another graph, hence another rounding
    gradient = jax.jit(jax.grad(lambda f: loss(model, INPUTS._replace(future=f))[0]))(INPUTS.future)
    assert jnp.abs(gradient).max() > 1e-4
    with pytest.raises(UserError, match=r"future latents are missing; memory.input 'future' needs them"):
        jax.eval_shape(lambda: model.sample(INPUTS._replace(future=None, future_mask=None), NOISE))


def test_the_last_frame_that_can_be_foreseen_stands_for_the_rest() -> None:
    world = make_vla("e1copy", memory=ORACLE).world
    found = world.true_future(INPUTS.latents, INPUTS.future, np.array([[True, True], [True, False], [False, True]]))
    np.testing.assert_array_equal(found[0], INPUTS.future[0])
    np.testing.assert_array_equal(found[1], INPUTS.future[1][np.array([0, 0])])
    np.testing.assert_array_equal(found[2], INPUTS.latents[2][np.array([-1, -1])])


@pytest.mark.parametrize("future", [2, 4])
def test_a_memory_of_the_history_is_the_frames_that_were_seen(future: int) -> None:
    shape = dataclasses.replace(make_vla("e1copy").config.prophet, future=future)
    world = make_vla("e1copy", memory=WorldMemoryConfig(input="history", world_loss=0.0), prophet=shape).world
    found = world.recall(INPUTS.latents, 3)
    np.testing.assert_array_equal(found, INPUTS.latents[:, {2: [-2, -1], 4: [-3, -2, -1, -1]}[future]])


def test_a_policy_without_images_sees_through_its_memory_alone() -> None:
    blind = wake(make_vla("e2", use_images=False, gate=1.0))
    images = INPUTS._replace(images=INPUTS.images + jnp.uint8(40))
    np.testing.assert_array_equal(sample(blind, INPUTS)[0], sample(blind, images)[0])
    latents = INPUTS._replace(latents=INPUTS.latents + 1.0)
    assert jnp.abs(sample(blind, INPUTS)[0] - sample(blind, latents)[0]).max() > 1e-3


def jaxprs(jaxpr: Jaxpr) -> list[Jaxpr]:
    """A jaxpr and everything inside it."""
    found = [jaxpr]
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
                found += jaxprs(inner) if isinstance(inner, Jaxpr) else []
    return found


def started(variant: str, kind: str) -> Any:
    """The values that an arm starts training from at seed 0; every other test's come from elsewhere."""

    @jax.jit
    def build() -> Any:
        rngs = nnx.Rngs(0)
        config = tiny_config(variant, head=head_config(kind))
        return nnx.as_pure(nnx.split(VLA(config, rngs=rngs, backbone=TinyBackbone(rngs)))[1])

    return jax.device_get(build())


@pytest.mark.parametrize("kind", ["regression", pytest.param("flow", marks=LONG)])
def test_what_the_variants_share_starts_from_the_same_values(kind: str) -> None:
    variants = {variant: started(variant, kind) for variant in VARIANTS}
    for variant, state in variants.items():
        for part in ("backbone", "state_in", "queries", "head"):
            jax.tree.map(np.testing.assert_array_equal, state[part], variants["e2"][part])
        shared = {"e0plus": ("injection", "prophet"), "e1": ("injection", "prophet"), "e1copy": ("injection",)}
        for part in shared.get(variant, ()):
            jax.tree.map(np.testing.assert_array_equal, state["world"][part], variants["e2"]["world"][part])
    assert {variant for variant in VARIANTS if "injection" in variants[variant].get("world", ())} == {
        "e0plus",
        "e1copy",
        "e1",
        "e2",
    }
    assert any(leaf.std() > 0.0 for leaf in jax.tree.leaves(variants["e2"]["world"]["injection"]))


@pytest.mark.parametrize("kind", [pytest.param("regression", marks=LONG), "flow"])
def test_e1_and_e2_have_the_same_parameters_and_the_same_graph(kind: str) -> None:
    """Same tree, same primitives on the same shapes, hence the same FLOPs; only the loss weight differs."""
    e1, e2 = (make_vla(variant, head=head_config(kind)) for variant in ("e1", "e2"))
    assert nnx.state(e1).flat_state().paths == nnx.state(e2).flat_state().paths

    def graph(model: Any) -> list[tuple[str, str]]:
        split, params = nnx.split(model)
        gradient = jax.grad(lambda p: nnx.merge(split, p).loss(INPUTS, ACTION, MASK, KEY)[0])
        inside = jaxprs(jax.make_jaxpr(gradient)(params).jaxpr)
        return [(e.primitive.name, str([v.aval for v in e.outvars])) for j in inside for e in j.eqns]

    assert graph(e1) == graph(e2)
    assert graph(e1) != graph(make_vla("e0", head=e1.config.head))


def gradients(variant: str, *path: Any, **setting: Any) -> list[dict[str, jax.Array]]:
    """Those of the loss by every parameter's name, with open gates, for each value of one setting of the memory."""
    ((name, values),) = setting.items()
    memories = [dataclasses.replace(VARIANTS[variant], **{name: value}) for value in values]
    models = [awake(variant, *path, gate=1.0 if memory.inject else None, memory=memory) for memory in memories]
    graphs, params = [nnx.split(model)[0] for model in models], nnx.state(models[0])

    @jax.jit  # One program: what the gradients share is compiled once, and rounded in one way.
    def by(params: nnx.State) -> list[nnx.State]:
        return [jax.grad(lambda p, graph=graph: loss(nnx.merge(graph, p), INPUTS)[0])(params) for graph in graphs]

    return [to_named(gradient) for gradient in by(params)]


def part(name: str) -> str:
    """The part of the policy that a parameter belongs to, by its name."""
    return name.removeprefix("world/").split("/")[0]


def test_in_e2aux_the_world_loss_shapes_the_vlm() -> None:
    without, with_loss = gradients("e2aux", world_loss=(0.0, 1.0))
    vlm = [name for name in without if part(name) == "backbone"]
    assert vlm and all(jnp.abs(without[name] - with_loss[name]).max() > 1e-6 for name in vlm)


@pytest.mark.parametrize(("kind", "layers"), [pytest.param(*path, marks=LONG if path[1] else ()) for path in PATHS])
def test_in_e2_the_world_loss_trains_the_prophet_and_nothing_else(kind: str, layers: tuple[int, ...]) -> None:
    """At weight 0 and 1 the gradient of every other parameter has the same bits, that of each of its own differs."""
    without, with_loss = gradients("e2", kind, layers, world_loss=(0.0, 1.0))
    same = {name for name, leaf in without.items() if np.array_equal(leaf, with_loss[name])}
    assert same == {name for name in without if part(name) != "prophet"}
    trained = {part(name) for name in same if jnp.any(without[name] != 0.0)}
    assert trained == {"backbone", "state_in", "queries", "head", "injection"}


def test_the_action_gradient_into_the_prophet_is_a_setting() -> None:
    reached, stopped = gradients("e1", action_gradient=(True, False))
    assert jnp.abs(reached["world/prophet/out/kernel/value"]).max() > 1e-6
    assert all(jnp.all(leaf == 0.0) for name, leaf in stopped.items() if part(name) == "prophet")


@pytest.mark.parametrize("layers", [LAYERS[0], pytest.param(LAYERS[1], marks=LONG)])
def test_both_heads_are_fed_the_same_tokens(layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """In training and acting those of ``action_tokens``; heads that return what they are given leave one graph."""
    for head in (RegressionHead, FlowHead):
        monkeypatch.setattr(head, "loss", lambda head, tokens, *rest: HeadLoss(jnp.zeros(()), {"tokens": tokens}))
        monkeypatch.setattr(head, "sample", lambda head, tokens, key: tokens)

    @jax.jit
    def fed(model: Any) -> Any:
        trained = model.action_tokens(INPUTS, key=KEY, train=True).tokens
        acted, closed = (model.action_tokens(INPUTS, corruption=name).tokens for name in ("none", "closed"))
        given = model.loss(INPUTS, ACTION, MASK, KEY)[1]["tokens"], model.sample(INPUTS, NOISE)[0]
        return given, (trained, acted), closed

    regression, flow = (
        wake(make_vla(gate=1.0, layers=layers, head=head_config(kind))) for kind in ("regression", "flow")
    )
    for shared in ("backbone", "state_in", "queries", "world"):
        setattr(flow, shared, getattr(regression, shared))
    given, expected, closed = fed(regression)
    for found in (given, fed(flow)[0]):
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jnp.abs(expected[1] - closed).max() > 1e-2


@pytest.mark.parametrize(
    ("variant", "kind", "use_state"),
    [
        # e1 has the graph of e2.
        *(pytest.param(name, "regression", True, marks=LONG if name == "e1" else ()) for name in VARIANTS),
        pytest.param("e0", "flow", True, marks=LONG),
        ("e2", "flow", True),
        pytest.param("e2", "flow", False, marks=LONG),
    ],
)
def test_every_parameter_moves(variant: str, kind: str, use_state: bool) -> None:
    """With the gate closed and the outputs at zero, as they start, within a few steps."""
    model = make_vla(variant, head=head_config(kind), use_state=use_state)
    graph, params = nnx.split(model)

    def objective(params: Any, key: jax.Array) -> Any:
        value, metrics = nnx.merge(graph, params).loss(INPUTS, ACTION, MASK, key)
        return value, metrics

    trained, metrics = fit(params, objective, 6)
    before, after = nnx.as_pure(params), nnx.as_pure(trained)
    still = [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
        if not bool(jnp.any(a != b))
    ]
    assert not still
    assert bool(jnp.all(jnp.isfinite(metrics["loss"])))
    assert metrics["loss"][-1] < metrics["loss"][0]


def test_the_vlm_occurs_once_in_a_sample_and_not_in_the_loop() -> None:
    """The real Qwen2.5-VL (tiny): one equation reads its embedding table, one embeds patches, none in a loop."""
    model = make_vla("e2", real=True)
    graph, params = nnx.split(model)
    closed = jax.make_jaxpr(lambda p: nnx.merge(graph, p).sample(INPUTS, NOISE))(params)
    inside = jaxprs(closed.jaxpr)
    reads = [
        e for j in inside for e in j.eqns if e.primitive.name == "gather" and e.invars[0].aval.shape == (48, HIDDEN)
    ]
    patches = model.backbone.vision.patch_embed.kernel.shape
    looks = [
        e
        for j in inside
        for e in j.eqns
        if e.primitive.name == "dot_general" and e.invars[1].aval.shape in (patches, (patches[0] // 2, patches[1]))
    ]
    decoders = [e for j in inside for e in j.eqns if e.primitive.name == "scan" and e.params["length"] == 2]
    loops = [e for j in inside for e in j.eqns if e.primitive.name in ("while", "scan") and e not in decoders]
    assert len(reads) == len(decoders) == len(looks) == 1
    assert len(loops) >= 1
    # A loop's body occurs once as well, however often it runs: nothing of the VLM may be in one.
    bodies = [body for e in loops for v in e.params.values() if isinstance(v, ClosedJaxpr) for body in jaxprs(v.jaxpr)]
    assert bodies and not [e for body in bodies for e in body.eqns if e in reads or e in decoders or e in looks]


def test_the_real_vlm_trains_with_state_and_queries_in_place() -> None:
    model = make_vla("e2", real=True, head=head_config("regression"))
    graph, params = nnx.split(model)
    gradient = jax.jit(jax.grad(lambda p: nnx.merge(graph, p).loss(INPUTS, ACTION, MASK, KEY)[0]))(params)
    pure = nnx.as_pure(gradient)
    for part in ("state_in", "queries", "head", "backbone"):
        assert all(bool(jnp.any(leaf != 0.0)) for leaf in jax.tree.leaves(pure[part])), part


def test_the_state_is_a_switch() -> None:
    other = INPUTS._replace(state=INPUTS.state + 1.0)
    model = awake("e0")
    assert jnp.abs(sample(model, INPUTS)[0] - sample(model, other)[0]).max() > 1e-3
    blind = make_vla("e0", use_state=False, head=head_config("regression"))
    np.testing.assert_array_equal(sample(blind, INPUTS)[0], sample(blind, other)[0])


@pytest.mark.parametrize("layers", [LAYERS[0], pytest.param(LAYERS[1], marks=LONG)])
def test_memory_dropout_closes_the_gates_for_some_samples_in_training_only(layers: tuple[int, ...]) -> None:
    """Between layers a sample that is dropped is dropped after all of them."""
    inputs = make_inputs(batch=64)

    @functools.partial(jax.jit, static_argnames=("train", "corruption"))
    def act(model: Any, train: bool, corruption: str = "none") -> Any:
        out = model.action_tokens(inputs, key=KEY, train=train, corruption=corruption)
        return out.tokens, out.metrics["memory/ratio"]

    open_gates, no_gates = (awake("e2", layers=layers, gate=g, memory=WorldMemoryConfig(dropout=0.25)) for g in (1, 0))
    (tokens, ratio), (plain, all_ratios) = act(open_gates, True), act(open_gates, False)
    dropped = np.asarray(ratio == 0.0)
    assert 0.1 < dropped.mean() < 0.4 and (all_ratios > 0.0).all()
    np.testing.assert_array_equal(tokens[dropped], act(no_gates, True)[0][dropped])
    # Other graphs, hence another rounding.
    np.testing.assert_allclose(tokens[dropped], act(open_gates, False, "closed")[0][dropped], atol=1e-5)
    np.testing.assert_allclose(tokens[~dropped], plain[~dropped], atol=1e-5)
    assert jnp.abs(tokens - plain)[dropped].max(axis=(1, 2)).min() > 1e-2


def test_variants_that_need_no_latents_act_without_them() -> None:
    bare = INPUTS._replace(latents=None, future=None, future_mask=None)
    for variant in ("e0", "e0plus", "e2aux"):
        action, _ = sample(awake(variant), bare)
        assert action.shape == (3, CHUNK, 7)
    with pytest.raises(UserError, match=r"latents are missing; memory.input 'copy'"):
        make_vla("e1copy").action_tokens(bare)


def test_bad_inputs_are_named() -> None:
    model = make_vla("e2")
    with pytest.raises(UserError, match=r"future latents are missing"):
        jax.eval_shape(lambda: model.loss(INPUTS._replace(future=None), ACTION, MASK, KEY))
    with pytest.raises(UserError, match=r"action is \(3, 4, 6\)"):
        jax.eval_shape(lambda: model.loss(INPUTS, ACTION[..., :6], MASK, KEY))
    with pytest.raises(UserError, match=r"prophet.history needs 3"):
        jax.eval_shape(lambda: model.action_tokens(INPUTS._replace(latents=INPUTS.latents[:, :2])))
    with pytest.raises(UserError, match=r"set prophet.tokens and prophet.latent_dim"):
        jax.eval_shape(lambda: model.action_tokens(INPUTS._replace(latents=INPUTS.latents[..., :5])))
    with pytest.raises(UserError, match=r"did you mean noise"):
        corrupt(INPUTS.latents, "noisy", KEY)
    with pytest.raises(UserError, match=r"'shuffled' needs a memory"):
        jax.eval_shape(lambda: model.sample(INPUTS, NOISE, corruption="shuffled"))
    with pytest.raises(UserError, match=r"state has 7"):
        jax.eval_shape(lambda: model.hidden(INPUTS._replace(state=INPUTS.state[:, :7])))
    with pytest.raises(UserError, match=r"memory.inject is true with memory.input 'hidden'"):
        WorldMemoryConfig(input="hidden")
    with pytest.raises(UserError, match=r"memory.target is 'past' with memory.input 'hidden'"):
        WorldMemoryConfig(input="hidden", inject=False, target="past")
    with pytest.raises(UserError, match=r"unknown memory.target 'now'"):
        WorldMemoryConfig(target="now")
    with pytest.raises(UserError, match=r"memory.world_loss is 0.5 with memory.input 'copy'"):
        WorldMemoryConfig(input="copy")


def test_the_predecessors_pooled_cosine_prophet_runs() -> None:
    """One pooled vector per frame, delta, cosine."""
    config = make_vla("e2").config
    pooled = type(config.prophet)(**{**vars(config.prophet), "tokens": 1})
    objective = WorldLossConfig(cosine=1.0, normalised_mse=0.0)
    value, metrics = loss(make_vla("e2", prophet=pooled, world=objective), INPUTS)
    assert bool(jnp.isfinite(value))
    assert metrics["world/loss"] == pytest.approx(1.0, abs=1e-3)  # A zero delta has no direction.
