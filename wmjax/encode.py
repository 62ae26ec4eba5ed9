"""Encodes latents of a training store in JAX: by V-JEPA 2, or by the encoder that ``--encoder.kind`` names.

python -m wmjax.encode --data STORE --model mini --out LATENTS
"""

import sys
from collections.abc import Sequence

from wmjax.core.command import run_command
from wmjax.core.options import CommandParser
from wmjax.encoders.base import ENCODERS, EncoderConfig, Exporter
from wmjax.encoders.export import add_arguments, run


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = CommandParser("encode", __doc__)
    add_arguments(parser)

    def make(config: EncoderConfig) -> Exporter:
        return ENCODERS.resolve(config.kind).for_export(config)

    return run_command(lambda: run(*parser.read(arguments), make, backend="jax"))


if __name__ == "__main__":
    sys.exit(main())
