"""Latent export with the Flax encoder (backend ``jax``): the default at ``mini``, without PyTorch.

python -m wmjax.encode --data STORE --model mini --out LATENTS
"""

import argparse
import sys
from collections.abc import Sequence

from wmjax.core.command import run_command
from wmjax.encoders.export import add_arguments, run
from wmjax.encoders.vjepa2.jax_encoder import JaxEncoder


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m wmjax.encode", description="Encode V-JEPA latents with Flax.")
    add_arguments(parser)
    return run_command(lambda: run(parser.parse_args(arguments), JaxEncoder))


if __name__ == "__main__":
    sys.exit(main())
