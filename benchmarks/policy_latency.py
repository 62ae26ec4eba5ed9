"""Latency of one jitted decision at batch 1, 2 and 8, and what each flow step costs.

    python benchmarks/policy_latency.py RUN [RUN ...] [--repeats 30] [--out results.json]

All variants of a run are timed in turns, medians in milliseconds. For a flow head also the sampler alone: with 10 Euler
steps against 1, the difference over the cost of one step of the head (the VLM, the encoder and the memory are
computed once per chunk, so it should be 9).
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wmjax.policy.policy import Policy, load_policy
from wmjax.scaling.latency import decide

BATCHES = (1, 2, 8)
STEPS = (1, 10)


def sampler(policy: Policy, steps: int, batch: int = 1) -> Callable[[], Any]:
    """The head's sampler alone, on random tokens."""
    config = dataclasses.replace(policy.experiment.model.head, steps=steps)
    graph, state = nnx.split(policy._model.head)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.normal(size=(batch, 8, policy.experiment.model.backbone.text.hidden)), jnp.float32)
    noise = jnp.asarray(rng.normal(size=(batch, 8, 7)), jnp.float32)

    @jax.jit
    def run(state: Any, tokens: Any, noise: Any) -> Any:
        head = nnx.merge(graph, state)
        head.config = config
        return head.integrate(tokens, noise)

    return lambda: jax.block_until_ready(run(state, tokens, noise))


def head_step(policy: Policy, batch: int = 1) -> Callable[[], Any]:
    """One evaluation of the velocity network, conditioning included in neither."""
    graph, state = nnx.split(policy._model.head)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.normal(size=(batch, 8, policy.experiment.model.backbone.text.hidden)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(batch, 1, 8, policy._model.head.regressed_dim)), jnp.float32)
    time_ = jnp.full((batch, 1), 0.3)
    condition = jax.jit(lambda s, t: nnx.merge(graph, s).condition(t))(state, tokens)
    run = jax.jit(lambda s, x, t, c: nnx.merge(graph, s).velocity(x, t, c))
    return lambda: jax.block_until_ready(run(state, x, time_, condition))


def medians(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each call, all taken in turns after two warm-up rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 2):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if repeat >= 2:
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: float(np.median(values)) for name, values in times.items()}


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    table: dict[str, dict[str, float]] = {}
    for run in options.runs:
        policies = {batch: load_policy(run, batch_size=batch) for batch in BATCHES}
        calls: dict[str, Callable[[], Any]] = {f"batch {batch}": decide(policy) for batch, policy in policies.items()}
        flow = policies[1].experiment.model.head.kind == "flow"
        if flow:
            calls |= {f"sampler {steps} steps": sampler(policies[1], steps) for steps in STEPS}
            calls["head step"] = head_step(policies[1])
        found = medians(calls, options.repeats)
        if flow:
            extra = found["sampler 10 steps"] - found["sampler 1 steps"]
            found["(t10 - t1) / head step"] = extra / found["head step"]
        table[run.name] = found
        print(run.name, "  ".join(f"{name}: {value:.2f}" for name, value in found.items()), flush=True)
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
