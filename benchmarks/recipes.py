"""Parameters, FLOPs and step time of every recipe at one scale, beside those of e0 with the same head.

    python benchmarks/recipes.py                            mini: parameters and FLOPs, counted without computing
    python benchmarks/recipes.py --scale 3b                 the same at full size: no weights, no data, no memory
    python benchmarks/recipes.py --repeats 20 --out r.json  and the seconds of a training step, all taken in turns

FLOPs per sample are those of a training step with the latents at hand (forward, backward, remat); FLOPs per decision
those of one action chunk, the flow's steps included, without and with the encoder, which a rollout runs on every new
frame (every variant but e0 and e0plus). Random data.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wmjax.encoders.vjepa2 import PRESETS, VJEPA2Encoder, latents
from wmjax.experiment.config import Experiment, load, recipe_names, split_recipe
from wmjax.experiment.dimensions import of_store
from wmjax.models.inputs import ModelInput
from wmjax.models.parameters import count, split_model, trainable_filter
from wmjax.models.prompts import make_prepare
from wmjax.models.vla import VLA
from wmjax.rollout.protocol import load_protocol
from wmjax.scaling.arrays import random_batch
from wmjax.scaling.flops import flops
from wmjax.scaling.shapes import batch_shapes, decision_shapes, image_size, plain_specs, prompt_shapes
from wmjax.trainer.optimizer import make_optimizer
from wmjax.trainer.step import TrainState, initial_state, make_train_step

WARM_UP = 2
INSTRUCTION = "pick up the black bowl next to the plate and place it on the plate"


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one recipe. ``step`` is FLOPs per training sample, ``decision`` FLOPs per action chunk.

    ``rollout`` is ``decision`` with the encoder on the new frames of a decision, which every variant but e0 and e0plus
    looks at (e2aux only to log how its prediction came true).
    """

    parameters: int
    trainable: int
    step: int
    decision: int
    rollout: int
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class System:
    """A recipe's model and training step, not computed yet."""

    experiment: Experiment
    graph: nnx.GraphDef
    initialise: Callable[[], tuple[TrainState, nnx.State]]
    step: Callable[..., Any]


def build(experiment: Experiment) -> System:
    """As ``wmjax.trainer.loop.train`` builds it, for LIBERO's states and actions."""
    experiment = of_store(experiment, None)
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps)
    trains = trainable_filter(experiment.train.trainable)

    def initialise() -> tuple[TrainState, nnx.State]:
        _, params, frozen = split_model(VLA(experiment.model, rngs=nnx.Rngs(0)), trains)
        return initial_state(params, optimizer), frozen

    graph = split_model(nnx.eval_shape(lambda: VLA(experiment.model, rngs=nnx.Rngs(0))), trains)[0]
    step = make_train_step(
        graph,
        optimizer,
        *plain_specs(experiment),
        seed=0,
        ema_decay=experiment.train.ema_decay,
        max_shift=experiment.encoder.max_shift,
        state_noise=experiment.train.state_noise,
    )
    return System(experiment, graph, initialise, step)


def step_flops(system: System) -> int:
    """FLOPs of a training step per sample, counted."""
    experiment, batch = system.experiment, system.experiment.train.batch_size
    shapes = batch_shapes(experiment, batch), prompt_shapes(experiment, 1)
    return flops(system.step, *jax.eval_shape(system.initialise), *shapes) // batch


def costs(system: System) -> Costs:
    """Counted, not measured."""
    experiment = system.experiment
    state, frozen = jax.eval_shape(system.initialise)

    def decide(params: nnx.State, frozen: nnx.State, inputs: ModelInput, key: jax.Array) -> jax.Array:
        return nnx.merge(system.graph, params, frozen).sample(inputs, key)[0]

    trained = count(state.params)
    decision = flops(decide, state.params, frozen, decision_shapes(experiment, 1), jax.random.key(0))
    looks = experiment.model.memory.reads_latents
    encoder = new_frames(experiment) * encoder_flops(experiment) if looks else 0
    return Costs(
        parameters=trained + count(frozen),
        trainable=trained,
        step=step_flops(system),
        decision=decision,
        rollout=decision + encoder,
    )


def new_frames(experiment: Experiment) -> int:
    """Frames that a policy sees between two decisions of its protocol, at least one."""
    horizon = load_protocol(experiment.evaluation.protocol).open_loop_horizon
    return max(1, horizon // experiment.data.observation.frame_stride)


def encoder_flops(experiment: Experiment) -> int:
    """FLOPs of the rollout's encoder for one new frame."""
    config = next(value for name, value in PRESETS.items() if name in experiment.encoder.model)
    graph, state = nnx.split(nnx.eval_shape(lambda: VJEPA2Encoder(config, rngs=nnx.Rngs(0))))
    size = image_size(experiment)
    clip = jax.ShapeDtypeStruct((1, experiment.encoder.clip_length, size, size, 3), jnp.uint8)
    encode = functools.partial(latents, grid=experiment.encoder.pooling_grid)
    return flops(lambda state, clip: encode(nnx.merge(graph, state), clip), state, clip)


def stepper(system: System, seed: int = 0) -> Callable[[], None]:
    """A function that takes one training step on random data and waits for it."""
    experiment = system.experiment
    spec = dataclasses.replace(experiment.data.observation, image_size=image_size(experiment))
    prompts = make_prepare(experiment.prompt, experiment.model, spec)(INSTRUCTION)
    batch = random_batch(experiment, experiment.train.batch_size, seed)
    step = jax.jit(system.step, donate_argnums=0)
    state, frozen = jax.jit(system.initialise)()
    box = [state]

    def call() -> None:
        box[0], metrics = step(box[0], frozen, batch, prompts)
        jax.block_until_ready((box[0], metrics))

    return call


def step_times(systems: dict[str, System], repeats: int) -> dict[str, float]:
    """Median seconds of a training step; the recipes take turns, so that a busy machine slows them all alike."""
    calls = {name: stepper(system) for name, system in systems.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + WARM_UP):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if repeat >= WARM_UP:
                times[name].append(time.perf_counter() - started)
    return {name: float(np.median(values)) for name, values in times.items()}


def baseline(recipe: str) -> str:
    """e0 with the same head, of the predecessor's family if the recipe is one of it."""
    variant, head = split_recipe(recipe)
    return f"{'prior_' if variant.startswith('prior_') else ''}e0_{head}"


def over(table: dict[str, Costs], recipe: str, field: str) -> float | None:
    """How much more than its baseline a recipe costs, as a share; None without either value."""
    mine, base = (getattr(table[name], field) if name in table else None for name in (recipe, baseline(recipe)))
    return None if mine is None or base is None else mine / base - 1.0


def render(table: dict[str, Costs]) -> str:
    """A plain-text table."""
    head = f"{'recipe':<14}{'parameters':>16}{'trainable':>14}{'GFLOP/sample':>20}{'GFLOP/decision':>20}"
    head += f"{'with encoder':>20}{'s/step':>16}"
    lines = [head, "-" * len(head)]
    for name, row in table.items():
        cells = [f"{row.step / 1e9:,.3f} {_share(table, name, 'step')}"]
        cells += [f"{row.decision / 1e9:,.3f} {_share(table, name, 'decision')}"]
        cells += [f"{row.rollout / 1e9:,.3f} {_share(table, name, 'rollout')}"]
        cells += ["-" if row.seconds is None else f"{row.seconds:.3f} {_share(table, name, 'seconds')}"]
        numbers = f"{name:<14}{row.parameters:>16,}{row.trainable:>14,}"
        lines.append(numbers + "".join(f"{cell:>20}" for cell in cells[:3]) + f"{cells[3]:>16}")
    return "\n".join(lines)


def _share(table: dict[str, Costs], name: str, field: str) -> str:
    value = over(table, name, field)
    return "" if value is None else f"{100 * value:+6.1f} %"


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--recipes", nargs="+", default=recipe_names())
    parser.add_argument("--repeats", type=int, default=0, help="timed steps of each recipe (default: none)")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args(arguments)
    systems = {name: build(load(name, options.scale)) for name in options.recipes}
    table = {}
    for name, system in systems.items():
        table[name] = costs(system)
    if options.repeats:
        seconds = step_times(systems, options.repeats)
        table = {name: dataclasses.replace(row, seconds=seconds[name]) for name, row in table.items()}
    print(render(table))
    encoder = encoder_flops(next(iter(systems.values())).experiment)
    frames = new_frames(next(iter(systems.values())).experiment)
    print(f"V-JEPA encoder (not in e0, e0plus): {encoder / 1e9:,.3f} GFLOP a frame, {frames} per decision")
    if options.out:
        rows = {name: dataclasses.asdict(row) for name, row in table.items()}
        content = {"scale": options.scale, "encoder_per_frame": encoder, "recipes": rows}
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
