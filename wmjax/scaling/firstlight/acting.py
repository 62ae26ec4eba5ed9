"""Checks of acting: decisions, the latent export, rendering, the simulator, replays and rollouts."""

import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from wmjax.core.errors import UserError
from wmjax.encoders.base import ENCODERS
from wmjax.encoders.encode import BATCH
from wmjax.pipeline.evaluate_checkpoint import evaluate_checkpoint
from wmjax.pipeline.evaluate_scripted import evaluate_scripted
from wmjax.pipeline.machine_check import check_rendering as first_frame
from wmjax.rollout.actors import REPLAYS_SUCCEED
from wmjax.rollout.protocol import Protocol, load_protocol
from wmjax.rollout.settings import EvaluateSettings
from wmjax.scaling.clock import clocked, timed
from wmjax.scaling.firstlight.bench import Bench, square
from wmjax.scaling.firstlight.request import Finding, MissingPieceError, judged
from wmjax.scaling.firstlight.training import overfitted
from wmjax.scaling.latency import decide
from wmjax.sim import speed
from wmjax.sim.libero import simulator_version

DECISIONS, WARM_UP = 20, 2
EXPORT_ROUNDS = 3
SIMULATOR_SECONDS = 4.0


def check_decision(bench: Bench) -> Finding:
    """Milliseconds of a decision for one simulator, new frames and all: from arrays on the host to the chunk."""
    call = decide(bench.policy(1))
    chunk, first = clocked(call)
    times = sorted([1e3 * clocked(call)[1] for _ in range(WARM_UP + DECISIONS)][WARM_UP:])
    median, slow = statistics.median(times), times[int(0.95 * len(times))]
    text = f"{median:.1f} ms at batch 1 (median of {len(times)}, 95 % {slow:.1f} ms), the first {first:.1f} s"
    return judged(bool(np.isfinite(chunk).all()), text, median_ms=median, p95_ms=slow, first_s=first)


def check_export(bench: Bench) -> Finding:
    """Frames/s of the latent export in jax, from clips on the host to latents on the host."""
    config = bench.encoder()
    encoder, clips = ENCODERS.resolve(config.kind).for_export(config), square(bench, BATCH)
    finite = bool(np.isfinite(np.asarray(encoder.encode(clips))).all())
    seconds, _ = timed(lambda: np.asarray(encoder.encode(clips)), lambda latents: latents, EXPORT_ROUNDS, warm_up=0)
    rate = len(clips) / seconds
    name = Path(getattr(config, "model", config.kind)).name
    text = f"{rate:.1f} frames/s, {len(clips)} clips of {clips.shape[1]} frames at a time, encoder {name}"
    return judged(finite, text, frames_per_s=rate, batch=len(clips))


def check_render(bench: Bench) -> Finding:
    """The first frame of an episode against the one that ships, as ``wmjax.doctor`` checks it."""
    _require_simulator()
    found, seconds = clocked(first_frame)
    return judged(found.status == "ok", found.text.removeprefix("rendering: "), reset_s=seconds)


def check_simulator(bench: Bench) -> Finding:
    """Control steps/s of one simulator, and of as many side by side as there are cores (16 at most)."""
    _require_simulator()
    size, several = bench.experiment.data.observation.image_size, min(os.cpu_count() or 1, 16)
    rates = {n: speed.measure(n, size, SIMULATOR_SECONDS) for n in dict.fromkeys((1, several))}
    listed = ", ".join(f"{found['steps_per_s']:.1f} by {n}" for n, found in rates.items())
    one = rates[1]
    text = f"control steps/s: {listed}; rendering takes {one['render_ms']:.0f} ms ({one['renderer']})"
    good = all(found["answered"] == n for n, found in rates.items())
    return judged(good, text, steps_per_s={str(n): found["steps_per_s"] for n, found in rates.items()}, **_plain(one))


def check_replay(bench: Bench) -> Finding:
    """Replays the demonstration's actions in open loop; they must succeed again."""
    store = bench.demonstration()
    _require_simulator()
    tasks = sorted({int(entry["task_id"]) for entry in store.episodes[:1]})
    protocol = _protocol(bench, tasks)
    settings = EvaluateSettings(workers=1, videos=0)
    found = evaluate_scripted("replay", protocol, bench.scratch / "replay", settings, data=store.folder)
    text = f"{found.overall.successes} of {found.overall.finished} replays succeed"
    return judged(found.overall.rate >= REPLAYS_SUCCEED, text, rate=found.overall.rate)


def check_rollouts(bench: Bench) -> Finding:
    """A few short episodes of the policy that was trained on one episode; they must run, but need not succeed."""
    run = overfitted(bench)
    _require_simulator()
    protocol = _protocol(bench, list(bench.experiment.data.tasks))
    out, settings = bench.scratch / "rollouts", EvaluateSettings(workers=2, videos=0, batch=2)
    found, seconds = clocked(lambda: evaluate_checkpoint(run, protocol, out, settings))
    over = found.overall
    good = over.finished == len(protocol.episodes())
    text = f"{over.finished} of {len(protocol.episodes())} episodes of {protocol.max_steps} steps in {seconds:.0f} s"
    text += f" with the compilation, {over.successes} succeeded, {over.crashes} crashed, {over.timeouts} hung"
    return judged(good, text, episodes=over.finished, crashes=over.crashes, timeouts=over.timeouts, run_s=seconds)


def _protocol(bench: Bench, tasks: list[int]) -> Protocol:
    """The protocol ``smoke`` on these tasks of the demonstration's suite."""
    return load_protocol("smoke", suite=bench.experiment.data.suite, tasks=tasks)


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("render_ms", "step_ms", "renderer")}


def _require_simulator() -> None:
    """Skips the check where no simulator is installed; one that does not start is a failure."""
    try:
        simulator_version()
    except UserError as error:
        raise MissingPieceError(str(error)) from error
