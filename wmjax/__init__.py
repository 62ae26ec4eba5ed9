"""wmjax: vision-language-action policies with a world memory, in JAX, trained and judged in closed loop.

    import wmjax

    policy = wmjax.load_policy("runs/e2_flow-mini-spatial-s0")
    carry = policy.initial_carry()
    carry, chunk, info = policy(carry, observation, keys)

Importing the package imports neither jax nor torch; names are resolved on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmjax.core.errors import UserError
    from wmjax.core.specs import ActionSpec, EncoderSpec, ObservationSpec
    from wmjax.data.latents import LatentStore
    from wmjax.data.observation import Observation
    from wmjax.data.store import TrainingStore
    from wmjax.experiment.config import load as load_experiment
    from wmjax.policy.policy import Policy, load_policy

_HOMES = {
    "ActionSpec": "wmjax.core.specs",
    "EncoderSpec": "wmjax.core.specs",
    "LatentStore": "wmjax.data.latents",
    "Observation": "wmjax.data.observation",
    "ObservationSpec": "wmjax.core.specs",
    "Policy": "wmjax.policy.policy",
    "TrainingStore": "wmjax.data.store",
    "UserError": "wmjax.core.errors",
    "load_experiment": "wmjax.experiment.config:load",
    "load_policy": "wmjax.policy.policy",
}

__all__ = [
    "ActionSpec",
    "EncoderSpec",
    "LatentStore",
    "Observation",
    "ObservationSpec",
    "Policy",
    "TrainingStore",
    "UserError",
    "load_experiment",
    "load_policy",
]


def __getattr__(name: str) -> Any:
    """The public names, imported on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)
