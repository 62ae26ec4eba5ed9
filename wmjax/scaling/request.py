"""The request for an estimate. Imports no jax, because the compiling process starts jax with its own variables."""

import argparse
import dataclasses
from typing import Any

from wmjax.core.command import number, whole_number
from wmjax.core.settings import merge
from wmjax.scaling.chips import EXAMPLES

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a request, beside the settings."""
    parser.add_argument("--config", default="e2_flow", help="a variant and a head of train/ (default: e2_flow)")
    parser.add_argument("--scale", default="3b", help="a file of train/scales (default: 3b)")
    parser.add_argument("--dataset", help="a file of train/data (default: the scale's)")
    parser.add_argument("--topology", required=True, help=EXAMPLES)
    parser.add_argument("--frames", type=whole_number("frames", 1, 10**12), default=FRAMES, help="samples per epoch")
    parser.add_argument(
        "--efficiency", type=whole_number("efficiency", 1, 100), default=75, help="per cent of the roofline"
    )
    parser.add_argument(
        "--export-efficiency",
        type=number("export-efficiency", 0.01, 100),
        default=5.0,
        help="per cent of a device's bfloat16 FLOP/s at which latents are encoded (default: 5)",
    )
    parser.add_argument(
        "--disk", type=number("disk", 0.001), default=1.0, help="GB/s at which a checkpoint is written (default: 1)"
    )
    robots = whole_number("decision", 0, 10_000)
    parser.add_argument("--decision", type=robots, default=0, help="robots of a decision on one device, estimated too")


def from_options(options: argparse.Namespace, settings: dict[str, Any]) -> Request:
    """The request of a command line with the options of :func:`add_arguments`."""
    return Request(
        recipe=options.config,
        scale=options.scale,
        topology=options.topology,
        dataset=options.dataset,
        settings=settings,
        efficiency=options.efficiency / 100,
        frames=options.frames,
        rows=options.decision,
        export_efficiency=options.export_efficiency / 100,
        disk=options.disk,
    )


def on_features(request: Request) -> Request:
    """The same training on stored features of the vision tower, in bfloat16."""
    train = {"cached_vision": "bfloat16", "same_shift": True}
    return dataclasses.replace(request, settings=merge(request.settings, {"train": train}), rows=0, initialises=False)
