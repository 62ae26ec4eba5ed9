"""Trains on the latents of an encoder that is not part of wmjax: ``python examples/add_encoder.py RUN``.

An encoder is one class. The setting ``encoder.kind`` names it as ``package.module:Class``, so nothing of wmjax changes.
Here the latents of two recorded episodes are encoded, and the smallest policy trains on them for a few steps. The run
knows the class by its name, so ``examples/act.py`` acts with it as with any other. No simulator is needed.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from examples.train_tiny import SETTINGS, STORE
from wmjax.core.errors import UserError
from wmjax.core.settings import merge
from wmjax.core.specs import EncoderSpec
from wmjax.encoders.base import Encoder, EncoderConfig
from wmjax.pipeline import train

KIND = "examples.add_encoder:ColourGrid"
CHANNELS = 6


@dataclasses.dataclass(frozen=True)
class ColourGridConfig(EncoderConfig):
    """The encoder's own setting beside those of every encoder; on the command line, ``--encoder.cells 4``.

    Attributes:
        clip_length: frames that a latent is made of, the newest one last.
        cells: along an edge of the image; each cell becomes a token.

    """

    clip_length: int = 2
    cells: int = 4


class ColourGrid(Encoder):
    """The mean colour of each cell of the newest frame, and how it has changed since the oldest frame of the clip."""

    Config: ClassVar[type[EncoderConfig]] = ColourGridConfig

    def __init__(self, config: ColourGridConfig) -> None:
        self.spec, self.params = self.describe(config), ()  # nothing is learned, so there are no parameters
        self._cells = config.cells

    @classmethod
    def describe(cls, config: ColourGridConfig) -> EncoderSpec:
        """The spec of the latents. Every setting that changes a latent must be in ``parameters``.

        Raises:
            UserError: no cells.

        """
        if config.cells < 1:
            raise UserError(f"encoder.cells is {config.cells}; set it to at least 1")
        return EncoderSpec(
            kind=config.kind,
            name="colour grid",
            parameters={"cells": config.cells},
            clip_length=config.clip_length,
            cameras=config.cameras,
            tokens_per_frame=config.cells**2 * len(config.cameras),
            dim=CHANNELS,
        )

    def apply(
        self, params: Any, clips: UInt8[Array, "batch time height width 3"]
    ) -> Float32[Array, "batch tokens dim"]:
        """Colours from 0 to 1 and their changes, of one camera; pure, and traced by jax where a policy acts."""
        batch, time, height, width, _ = clips.shape
        n = self._cells
        cells = clips.reshape(batch, time, n, height // n, n, width // n, 3) / 255.0
        colours = jnp.mean(cells, axis=(3, 5), dtype=jnp.float32).reshape(batch, time, n * n, 3)
        return jnp.concatenate([colours[:, -1], colours[:, -1] - colours[:, 0]], axis=-1)


def main(arguments: list[str] | None = None) -> None:
    """Trains and says where the run is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run, made here")
    parser.add_argument("--config", default="e2_flow", help="a variant with latents, and a head (default: e2_flow)")
    parser.add_argument("--cells", type=int, default=4, help="tokens along an edge of the image (default: 4)")
    parser.add_argument("--steps", type=int, default=4, help="training steps (default: 4)")
    options = parser.parse_args(arguments)
    given = {
        "data": {"path": str(STORE)},
        "encoder": {"kind": KIND, "cells": options.cells},
        "model": {"prophet": {"tokens": options.cells**2, "latent_dim": CHANNELS}},
        "train": {"steps": options.steps, "checkpoint_every": options.steps},
    }
    train.run(options.config, "smoke", None, merge(SETTINGS, given), folder=options.run, evaluates=False)
    print(f"run: {options.run}")


if __name__ == "__main__":
    main()
