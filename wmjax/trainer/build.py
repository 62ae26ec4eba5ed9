"""The programs of a training and the layout of all that they take, known before any array exists.

The mesh may consist of devices that are not there: programs can be lowered and compiled for them, but not run.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from wmjax.core.rng import named_key
from wmjax.core.specs import ActionSpec, EncoderSpec
from wmjax.models.nn.layout import activations_on
from wmjax.models.parameters import from_named, split_model, to_named, trainable_filter
from wmjax.trainer.config import Inputs, TrainConfig
from wmjax.trainer.guard import GuardState, guarded, initial_guard
from wmjax.trainer.optimizer import OptimizerConfig, make_optimizer
from wmjax.trainer.sharding import MeshConfig, shardings
from wmjax.trainer.step import Parameters, TrainState, initial_state, make_eval_step, make_train_step

BuildModel = Callable[[nnx.Rngs], nnx.Module]


class DataSpecs(NamedTuple):
    """What the programs need to know of the data; ``cameras`` are the indices of the latents' cameras."""

    action: ActionSpec
    encoder: EncoderSpec | None
    cameras: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, inputs: Inputs) -> "DataSpecs":
        """Those of a training's inputs."""
        return cls(inputs.action_spec, inputs.encoder_spec, inputs.cameras)


class Arrays(NamedTuple):
    """What lives from step to step, or its shapes: trained state, guard, frozen parameters."""

    state: TrainState
    guard: GuardState
    frozen: Parameters

    def named(self) -> "Arrays":
        """The same with parameters and moments by name, as the jitted steps take them and checkpoints store them.

        jax takes a dictionary apart in C++, and NNX states in Python, which is most of what a call would cost.
        """
        return Arrays(self.state.named(), self.guard, to_named(self.frozen))


@dataclasses.dataclass(frozen=True)
class Built:
    """Programs and layout.

    Attributes:
        shapes: of the arrays, a ShapeDtypeStruct with its sharding for each, in NNX states.
        draw: jitted, without arguments: the items of the first :class:`Arrays`, in NNX states, without frozen ones
            that published weights replace.
        initialise: ``() -> Arrays``, by ``draw``; what that leaves out are shapes.
        update: the guarded training step, not jitted. Both steps take and return arrays by name (``Arrays.named``).
        train_step: the same, jitted; it takes over the memory of state and guard.
        eval_step: jitted.
        graph, optimizer: what the steps are made of, see :func:`make_steps`.

    """

    shapes: Arrays
    draw: Any
    initialise: Callable[[], Arrays]
    update: Callable[..., Any]
    train_step: Any
    eval_step: Any
    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation


def build(
    build_model: BuildModel,
    mesh: Mesh,
    specs: DataSpecs,
    config: TrainConfig,
    optimizer_config: OptimizerConfig,
    mesh_config: MeshConfig,
    *,
    max_shift: int,
) -> Built:
    """The programs of one training on one mesh.

    Args:
        build_model: makes the model from random keys.
        mesh: of devices that are there, or of a description of others.
        specs: of the data.
        config: seed, averages and what is trained.
        optimizer_config: AdamW and its schedule.
        mesh_config: whether frozen parameters are split.
        max_shift: augmentation, pixels.

    Raises:
        UserError: nothing is trainable.

    """
    optimizer = make_optimizer(optimizer_config, config.steps, config.accumulate)
    trainable = trainable_filter(config.trainable)

    def initialise() -> Arrays:
        model = build_model(nnx.Rngs(named_key(config.seed, "parameters")))
        _, params, frozen = split_model(model, trainable)
        made = Arrays(initial_state(params, optimizer), initial_guard(), frozen)
        # A weak type, as of jnp.full(shape, 0.1), would be gone after the first step, which would be compiled twice.
        return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), made)

    graph = split_model(nnx.eval_shape(lambda: build_model(nnx.Rngs(0))), trainable)[0]
    shapes = jax.eval_shape(initialise)
    frozen = shardings(shapes.frozen, mesh, replicate=not mesh_config.shard_frozen)
    layout = Arrays(shardings(shapes.state, mesh), shardings(shapes.guard, mesh), frozen)
    placed = jax.tree.map(lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, layout)
    update, evaluate = make_steps(graph, placed, optimizer, mesh, specs, config, max_shift=max_shift, seed=config.seed)
    # XLA leaves out what no result depends on, which at 3B is most of the program.
    kept = slice(2 if config.published else 3)
    draw = jax.jit(lambda: initialise()[kept], out_shardings=layout[kept])
    return Built(
        shapes=placed,
        draw=draw,
        initialise=functools.partial(_initialise, draw, placed.frozen if config.published else None),
        update=update,
        # Donating the state halves its memory; out_shardings keep the layout from drifting.
        train_step=jax.jit(update, donate_argnums=(0, 1), out_shardings=(*layout.named()[:2], None)),
        eval_step=jax.jit(evaluate),
        graph=graph,
        optimizer=optimizer,
    )


def _initialise(draw: Any, given: nnx.State | None) -> Arrays:
    """The first arrays; for what is ``given``, because published weights take its place, shapes stand."""
    return Arrays(*draw(), *([] if given is None else [given]))


def make_steps(
    graph: nnx.GraphDef,
    shapes: Arrays,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    specs: DataSpecs,
    config: TrainConfig,
    *,
    max_shift: int,
    seed: int | jax.Array,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The guarded training step and the evaluation step on arrays by name, not jitted.

    ``seed`` may be an array that jax traces; ``shapes`` has the NNX states that the names belong to.
    """
    step = make_train_step(
        graph,
        optimizer,
        specs.action,
        specs.encoder,
        seed=seed,
        ema_decay=config.ema_decay,
        max_shift=max_shift,
        state_noise=config.state_noise,
        crop=config.crop,
        colours=config.colours,
        cameras=specs.cameras,
    )
    guarded_step = guarded(step, config.spike_factor)
    score = make_eval_step(graph, specs.action, specs.encoder, seed=seed)

    def update(state: TrainState, guard: GuardState, frozen: dict[str, Any], *data: Any) -> Any:
        base = from_named(shapes.frozen, frozen)
        new, guard, metrics = guarded_step(state.in_states(shapes.state), guard, base, *data)
        return new.named(), guard, metrics

    def evaluate(params: dict[str, Any], frozen: dict[str, Any], *data: Any) -> Any:
        return score(from_named(shapes.state.params, params), from_named(shapes.frozen, frozen), *data)

    return _on(mesh, update), _on(mesh, evaluate)


def _on(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose activations are laid out over the mesh when it is traced."""

    @functools.wraps(function)
    def laid_out(*arguments: Any) -> Any:
        with activations_on(mesh):
            return function(*arguments)

    return laid_out
