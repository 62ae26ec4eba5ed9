"""One process of a training job: ``python -m tests.trainer.job JOB.json``, the train command with small parts.

The job says what to train on, where, and at which step the first process dies, right after it saved a checkpoint.
The command itself, its stages and its loop are real; a policy is loaded in the place of the closed loop.
"""

import dataclasses
import functools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import wmjax.experiment.config
import wmjax.experiment.plan as planning
import wmjax.pipeline.latents
import wmjax.pipeline.train as pipeline
import wmjax.sim.env
import wmjax.train as command
from tests.tiny import LATENT_DIM, averaged_parameters, tiny_config
from wmjax.core.specs import EncoderSpec
from wmjax.encoders.vjepa2.encoder import VJEPA2Settings
from wmjax.experiment.plan import RunPlan
from wmjax.models.heads.flow import FlowConfig
from wmjax.models.prompts import PromptConfig
from wmjax.models.vla import VLAConfig
from wmjax.trainer.config import TrainConfig
from wmjax.trainer.optimizer import OptimizerConfig
from wmjax.trainer.sharding import MeshConfig

BATCH = 8


class FakeEncoder:
    """Latents that are the mean brightness of a clip plus a ramp: different clips, different latents."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    backend = "jax"
    spec = EncoderSpec(cameras=("agentview",), name="synthetic", tokens_per_frame=16, dim=LATENT_DIM)

    def encode(self, clips: np.ndarray) -> np.ndarray:
        ramp = np.linspace(-1, 1, 16 * LATENT_DIM, dtype=np.float32).reshape(16, LATENT_DIM)
        return np.float32(clips.mean((1, 2, 3, 4)) / 128 + self.offset)[:, None, None] + ramp


def small_model() -> VLAConfig:
    """The tiny policy with one layer of everything: every process compiles it."""
    config = tiny_config()
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
        model=small_model(),
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


def main(job: dict[str, Any]) -> int:
    def judge_early(plan: RunPlan, step: int, checkpoint: Path, frozen: dict[str, Any]) -> None:
        if step == job.get("dies_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    def judge(plan: RunPlan, checkpoint: Path) -> str:
        parameters = averaged_parameters(checkpoint, plan.experiment)
        devices = {device for value in parameters.values() for device in value.devices()}
        assert len(devices) == 1 and devices <= set(jax.local_devices())
        np.savez(plan.folder / "ema.npz", **{k.replace("/", "."): v for k, v in parameters.items()})
        return f"judged by process {jax.process_index()} of {jax.process_count()}"

    # So that a death which no broken connection tells of is noticed before the test gives up.
    jax.distributed.initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=20)
    # With the usual epsilon Adam's first steps divide rounding by rounding where a gradient is close to zero.
    optax.scale_by_adam = functools.partial(optax.scale_by_adam, eps=1e-2)
    pipeline.load = lambda *_: experiment(job)
    wmjax.pipeline.latents.make_encoder = lambda config: FakeEncoder(job.get("offset", 0.0))
    planning.require_consistent = lambda *_, **__: None  # the settings do not describe the fake's latents
    wmjax.sim.env.require_simulator = lambda spec: spec.simulator  # nor did a simulator draw its images
    pipeline.judge, pipeline.judge_early = judge, judge_early
    pipeline.verdict = lambda plan, summary: summary
    return command.main(["--run", job["run"]])


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
