"""The request for an estimate. Imports no jax, because the compiling process starts jax with its own variables."""

import dataclasses
from typing import Any

from wmjax.core.settings import merge

FRAMES = 100_000


@dataclasses.dataclass(frozen=True)
class Request:
    """A training and a topology.

    Attributes:
        recipe: a variant and a head.
        scale: a file of ``train/scales``.
        dataset: a file of ``train/data``; None for the scale's.
        settings: nested settings, laid over the files.
        topology: such as ``v5e:4x4``.
        efficiency: the share of the roofline's speed that is reached.
        frames: samples of an epoch.
        rows: of a decision of the policy, which is compiled too if there are any.
        initialises: whether the initialisation is compiled too.
        export_efficiency: the share of a device's bfloat16 FLOP/s at which latents are encoded.
        disk: 10^9 bytes/s at which a checkpoint is written.

    """

    recipe: str
    scale: str
    topology: str
    dataset: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    efficiency: float = 0.75
    frames: int = FRAMES
    rows: int = 0
    initialises: bool = True
    export_efficiency: float = 0.05
    disk: float = 1.0


def on_features(request: Request) -> Request:
    """The same training on stored features of the vision tower, in bfloat16."""
    train = {"cached_vision": "bfloat16", "same_shift": True}
    return dataclasses.replace(request, settings=merge(request.settings, {"train": train}), rows=0, initialises=False)
