"""Recipes through the train command and its closed loop in one process: ``python -m tests.e2e.variants RECIPE ...``.

The command, its stages and the simulator are real, on the demonstrations of the smoke preset. What makes it cheap: a
network with one layer of everything, two steps, one episode of two decisions, and one simulator process for all
recipes, where the command starts new ones for each.
"""

import contextlib
import sys
import time
from collections.abc import Iterator

import wmjax.pipeline.evaluate as evaluation
import wmjax.train as command
from wmjax.core.paths import cache_root
from wmjax.sim.rollout_pool import RolloutPool
from wmjax.sim.worker import WorkerSettings

PROTOCOL = """
suite = "libero_spatial"
tasks = [2]
episodes_per_task = 1
init = "random"
first_index = 100000
max_steps = 16
open_loop_horizon = 8
"""
SETTINGS = {
    "model.backbone.vision.depth": 1,
    "model.backbone.vision.full_attention": [0],
    "model.backbone.text.depth": 1,
    "model.prophet.layers": 1,
    "model.head_sizes.layers": 1,
    "train.steps": 2,
    "train.batch_size": 2,
    "train.eval_batches": 1,
    "train.log_every": 1,
    "evaluation.workers": 1,
    "evaluation.videos": 0,
}


def main(recipes: list[str]) -> int:
    protocol = cache_root() / "two_decisions.toml"
    protocol.write_text(PROTOCOL)
    settings = [f"--{name}={value}" for name, value in {**SETTINGS, "evaluation.protocol": protocol}.items()]
    with contextlib.ExitStack() as stack:
        pools: dict[WorkerSettings, RolloutPool] = {}

        @contextlib.contextmanager
        def shared(worker: WorkerSettings, count: int, timeout: float) -> Iterator[RolloutPool]:
            if worker not in pools:
                pools[worker] = stack.enter_context(RolloutPool(worker, count, timeout))
            yield pools[worker]

        evaluation.RolloutPool = shared  # type: ignore[assignment,misc]
        for recipe in recipes:
            run = cache_root() / "variants" / recipe
            before = time.process_time()
            if command.main(["--config", recipe, "--scale", "smoke", "--run", str(run), *settings]):
                return 1
            print(f"{recipe}: {time.process_time() - before:.0f} s of CPU")
        return 0 if len(pools) == 1 else 1  # other workers would mean that recipes watch other frames


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
