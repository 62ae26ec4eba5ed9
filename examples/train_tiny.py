"""Trains the smallest policy on two recorded episodes, without a simulator: ``python examples/train_tiny.py RUN``.

The network has one layer of everything and takes a few steps, in less than a minute on two cores. It learns nothing
useful; the run that it leaves is complete, and ``examples/act.py`` acts with it.
"""

import argparse
from pathlib import Path

from wmjax.pipeline import train

STORE = Path(__file__).parents[1] / "tests" / "fixtures" / "two_episodes"
"""Two demonstrations of one task of libero_spatial."""

SETTINGS = {
    "model": {
        "backbone": {"vision": {"depth": 1, "full_attention": [0]}, "text": {"depth": 1}},
        "prophet": {"layers": 1},
        "head_sizes": {"layers": 1},
    },
    "train": {"batch_size": 4, "log_every": 1, "eval_batches": 1},
}
"""What is smaller than at the scale ``smoke``; on the command line, ``--model.prophet.layers 1`` and so on."""


def main(arguments: list[str] | None = None) -> None:
    """Trains and says where the run is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run, made here")
    parser.add_argument("--config", default="e2_flow", help="a variant and a head (default: e2_flow)")
    parser.add_argument("--steps", type=int, default=4, help="training steps (default: 4)")
    parser.add_argument("--data", type=Path, default=STORE, help="a training store (default: %(default)s)")
    options = parser.parse_args(arguments)
    given = {
        "data": {"path": str(options.data)},
        "train": SETTINGS["train"] | {"steps": options.steps, "checkpoint_every": options.steps},
    }
    train.run(options.config, "smoke", None, SETTINGS | given, folder=options.run, evaluates=False)
    print(f"run: {options.run}")


if __name__ == "__main__":
    main()
