"""The whole policy network at a size that compiles and steps in seconds."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxtyping import Array

from tests.variants import VARIANTS
from wmjax.core.settings import build
from wmjax.experiment.config import Experiment
from wmjax.models.backbones.qwen2_5_vl.config import preset
from wmjax.models.heads.base import HeadConfig, HeadSizes
from wmjax.models.vla import VLAConfig
from wmjax.models.world.injection import InjectionConfig
from wmjax.models.world.prophet import ProphetConfig
from wmjax.policy.restore import parameter_shapes
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC
from wmjax.trainer import checkpoint

LATENT_DIM = 24
IMAGE_SIZE = 56


def averaged_parameters(folder: Path, experiment: Experiment) -> dict[str, Array]:
    """The trained parameters of a checkpoint, averaged over steps, by name."""
    return checkpoint.restore(folder, "ema", parameter_shapes(experiment))


def tiny_config(variant: str = "e2", head: str = "flow", **backbone: Any) -> VLAConfig:
    """A VLA of a variant for synthetic stores of 56 px images and 16 x 24 latents."""
    mini = preset("mini")
    vision = dataclasses.replace(mini.vision, depth=2, hidden=32, heads=2, mlp=48, out=48, full_attention=(1,))
    text = dataclasses.replace(mini.text, depth=2, hidden=48, heads=2, kv_heads=1, mlp=64, rope_sections=(4, 4, 4))
    return VLAConfig(
        action_dim=ACTION_SPEC.dim,
        grippers=1,
        state_dim=OBSERVATION_SPEC.state_dim,
        memory=VARIANTS[variant],
        head=build(HeadConfig, {"kind": head}),
        backbone=dataclasses.replace(mini, vision=vision, text=text, **backbone),
        prophet=ProphetConfig(width=24, heads=2, layers=1, latent_dim=LATENT_DIM),
        injection=InjectionConfig(width=24, heads=2),
        head_sizes=HeadSizes(hidden=32, width=24, layers=1, heads=2),
    )
