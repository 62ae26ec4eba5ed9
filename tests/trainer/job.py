"""One process of a training job: ``python -m tests.trainer.job JOB.json``, the train command with small parts.

The job says what to train on, where, and at which step the first process dies, right after it saved a checkpoint;
``free`` are the bytes of memory that its devices claim to have.
The command itself, its stages and its loop are real, and so are the parts of an evaluation that the processes share;
a policy's parameters are loaded in the place of the policy, and its episodes have made-up outcomes.
"""

import dataclasses
import functools
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax

import wmjax.experiment.config
import wmjax.experiment.plan as planning
import wmjax.pipeline.evaluate as evaluation
import wmjax.pipeline.latents
import wmjax.pipeline.train as pipeline
import wmjax.sim.env
import wmjax.train as command
from tests.rollout.fakes import PROTOCOL, SPEC
from tests.tiny import LATENT_DIM, averaged_parameters, tiny_config
from wmjax.analysis.summary import Summary
from wmjax.core.specs import EncoderSpec
from wmjax.encoders.vjepa2.encoder import VJEPA2Settings
from wmjax.models.heads.flow import FlowConfig
from wmjax.models.prompts import PromptConfig
from wmjax.models.vla import VLAConfig
from wmjax.rollout.actors import Actor, Random
from wmjax.rollout.protocol import Protocol
from wmjax.rollout.protocol_list import Cell
from wmjax.rollout.results import EpisodeRecord, Results
from wmjax.rollout.settings import EvaluateSettings
from wmjax.sim.episode import EpisodeId
from wmjax.trainer.config import TrainConfig
from wmjax.trainer.optimizer import OptimizerConfig
from wmjax.trainer.sharding import MeshConfig

BATCH = 8
EVALUATED = dataclasses.replace(PROTOCOL, tasks=(0,))
"""Four episodes, of an environment that is never made."""


class FakeEncoder:
    """Latents that are the mean brightness of a clip plus a ramp: different clips, different latents."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    backend = "jax"
    spec = EncoderSpec(cameras=("agentview",), name="synthetic", tokens_per_frame=16, dim=LATENT_DIM)

    def encode(self, clips: np.ndarray) -> np.ndarray:
        ramp = np.linspace(-1, 1, 16 * LATENT_DIM, dtype=np.float32).reshape(16, LATENT_DIM)
        return np.float32(clips.mean((1, 2, 3, 4)) / 128 + self.offset)[:, None, None] + ramp


def small_model(**backbone: Any) -> VLAConfig:
    """The tiny policy with one layer of everything: every process compiles it."""
    config = tiny_config(**backbone)
    backbone = dataclasses.replace(
        config.backbone,
        vision=dataclasses.replace(config.backbone.vision, depth=1, full_attention=()),
        text=dataclasses.replace(config.backbone.text, depth=1),
    )
    return dataclasses.replace(config, backbone=backbone, head=FlowConfig(draws=1, steps=2))


def experiment(job: dict[str, Any]) -> wmjax.experiment.config.Experiment:
    """A small experiment of 4 steps with a checkpoint at 2 and 4 and a validation at 4."""
    return wmjax.experiment.config.Experiment(
        recipe="e2_flow",
        scale="tiny",
        dataset="synthetic",
        model=small_model(**{key: job[key] for key in ("remat",) if key in job}),
        prompt=PromptConfig(length=56),
        data=wmjax.experiment.config.DataConfig(path=job["store"]),
        encoder=VJEPA2Settings(cameras=("agentview",), views=2, max_shift=3),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1),
        train=TrainConfig(
            steps=4,
            batch_size=BATCH,
            validation_fraction=0.2,
            log_every=1,
            eval_every=4,
            eval_batches=2,
            checkpoint_every=2,
            threads=1,
            seed=job.get("seed", 0),
        ),
        mesh=MeshConfig(**job.get("mesh", {})),
        evaluation=wmjax.experiment.config.EvaluationConfig(every=2),  # at each checkpoint, by what main() puts there
    )


def run_episodes(
    actor: Actor, protocol: Protocol, episodes: Sequence[EpisodeId], results: Results, *_: Any
) -> SimpleNamespace:
    """Episodes of one step whose success follows from their seed."""
    for episode in episodes:
        print(f"step {results.header['checkpoint']['step']}: {episode.key}")
        record = EpisodeRecord(
            key=episode.key,
            suite=episode.suite,
            task_id=episode.task_id,
            instruction="",
            init=episode.init,
            index=episode.index,
            seed=episode.seed,
            settled_hash="",
            success=episode.seed % 2 == 0,
            steps=1,
            outcome="success" if episode.seed % 2 == 0 else "failure",
            attempts=1,
            faults=(),
            seconds=0.0,
            decisions=1,
            info={},
            recipe_hash="",
            open_loop_horizon=8,
            execution_delay=0,
        )
        results.add(record)
    return SimpleNamespace(control_steps=len(episodes), fill=None)


def main(job: dict[str, Any]) -> int:
    def evaluate_checkpoint(
        checkpoint: Path, protocol: Protocol, out: Path, settings: EvaluateSettings, **_: Any
    ) -> Summary:
        step = int(checkpoint.name)
        if step == job.get("dies_at") and jax.process_index() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        parameters = averaged_parameters(checkpoint, experiment(job))
        devices = {device for value in parameters.values() for device in value.devices()}
        assert len(devices) == 1 and devices <= set(jax.local_devices())
        if jax.process_index() == 0:
            np.savez(checkpoint.parents[1] / "ema.npz", **{k.replace("/", "."): v for k, v in parameters.items()})
        total = sum(float(abs(value).sum()) for value in parameters.values())
        header = {"checkpoint": {"step": step, "hash": f"{total:.1f}"}}  # all parts must be of the same parameters
        return evaluation.evaluate(Random(SPEC), protocol, out, settings, header)

    # So that a death which no broken connection tells of is noticed before the test gives up.
    jax.distributed.initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=20)
    # With the usual epsilon Adam's first steps divide rounding by rounding where a gradient is close to zero.
    optax.scale_by_adam = functools.partial(optax.scale_by_adam, eps=1e-2)
    pipeline.load = lambda *_: experiment(job)
    pipeline.free_memory = lambda: job.get("free")
    wmjax.pipeline.latents.make_encoder = lambda config: FakeEncoder(job.get("offset", 0.0))
    # The settings do not describe the fake's latents.
    planning.require_consistent = lambda *_, **__: Cell(EVALUATED, EVALUATED)
    wmjax.sim.env.require_simulator = lambda spec: spec.simulator  # nor did a simulator draw its images
    pipeline.evaluate_checkpoint = evaluate_checkpoint
    evaluation.run_episodes = run_episodes
    pipeline.verdict = lambda plan, summary: f"verdict: {summary.overall.successes} of {summary.overall.finished}"
    return command.main(["--run", job["run"]])


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
