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
    from wmjax.config import load as load_experiment
    from wmjax.data.latents import LatentStore
    from wmjax.data.observation import Observation, Prompt
    from wmjax.data.store import TrainingStore
    from wmjax.errors import UserError
    from wmjax.policy import Policy, load_policy
    from wmjax.specs import ActionSpec, EncoderSpec, ObservationSpec

_HOMES = {
    "ActionSpec": "wmjax.specs",
    "EncoderSpec": "wmjax.specs",
    "LatentStore": "wmjax.data.latents",
    "Observation": "wmjax.data.observation",
    "ObservationSpec": "wmjax.specs",
    "Policy": "wmjax.policy",
    "Prompt": "wmjax.data.observation",
    "TrainingStore": "wmjax.data.store",
    "UserError": "wmjax.errors",
    "load_experiment": "wmjax.config:load",
    "load_policy": "wmjax.policy",
}

__all__ = [
    "ActionSpec",
    "EncoderSpec",
    "LatentStore",
    "Observation",
    "ObservationSpec",
    "Policy",
    "Prompt",
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
