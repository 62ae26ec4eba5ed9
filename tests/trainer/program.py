"""A summary of the tiny network's training step as it is lowered and as it is split over two simulated devices.

    python -m tests.trainer.program     writes tests/trainer/program.json anew; commit it with the change that caused it

A change of a model or of the trainer that makes the program larger, or that makes devices exchange more, shows in the
difference of that file. MaxText guards its programs in the same way.
"""

import json
import os
import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_suffix(".json")
JOBS: dict[str, dict[str, Any]] = {
    "e2_flow on one device": {"lora": False, "half": False, "devices": 1, "fsdp": 1, "tensor": 1, "batch": 8},
    "e2_flow, tensor 2": {"lora": False, "half": False, "devices": 2, "fsdp": 1, "tensor": 2, "batch": 8},
    "e2_flow, LoRA in bfloat16, fsdp 2": {"lora": True, "half": True, "devices": 2, "fsdp": 2, "tensor": 1, "batch": 8},
}
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Nothing is run: machine code need not be fast."""


def summary(job: dict[str, Any]) -> dict[str, Any]:
    """FLOPs, bytes of the arguments, the operations of the lowered step, and what several devices exchange per step."""
    # Not at the top: as a command, this file sets XLA's flags before jax is imported.
    import jax

    from tests.trainer.network import built_for, step_shapes
    from wmjax.scaling.flops import flops
    from wmjax.scaling.hlo import Program, summarise

    built, mesh = built_for(job)
    arguments = step_shapes(built, mesh, job["batch"])
    lowered = built.train_step.lower(*arguments)
    exchanged = {}
    if job["devices"] > 1:
        exchanged = summarise(Program(lowered.compile(QUICKLY).as_text()).collectives())
    return {
        "flops": flops(built.train_step, *arguments),
        "argument_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments)),
        "operations": dict(sorted(Counter(re.findall(r"stablehlo\.(\w+)", lowered.as_text())).items())),
        "collectives": {kind: {"calls": row["calls"], "mb": round(row["mb"], 4)} for kind, row in exchanged.items()},
    }


def summaries() -> dict[str, Any]:
    """Of every job, and the versions that lowered them."""
    import jax

    return {"jax": jax.__version__, "flax": version("flax"), **{name: summary(job) for name, job in JOBS.items()}}


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    PATH.write_text(json.dumps(summaries(), indent=1) + "\n", encoding="utf-8")
    print(f"{PATH} is written")
