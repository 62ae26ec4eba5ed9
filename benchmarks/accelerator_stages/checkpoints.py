"""A random Qwen2.5-VL checkpoint in the published layout, which both frameworks read: 7.5 GB at 3b."""

from pathlib import Path
from typing import Any

import jax
from flax import nnx

from benchmarks.accelerator_stages.arrays import qwen_config
from benchmarks.accelerator_stages.session import Session
from wmjax.models.backbones.qwen2_5_vl import names, weights
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.parameters import count
from wmjax.scaling.arrays import filled_model
from wmjax.scaling.clock import clocked


def qwen_folder(session: Session) -> Path:
    """Where the checkpoint lies."""
    return session.scratch / "qwen"


def reference_file(session: Session) -> Path:
    """Where PyTorch's hidden states lie, for the comparison."""
    return session.scratch / "hidden.npz"


def run(session: Session) -> None:
    """The stage. Not attempted: what needs the checkpoint must find no half of it."""
    session.record(**write(session))


def write(session: Session) -> dict[str, Any]:
    """Makes the weights on the device and saves them."""
    config = qwen_config(session.sizes, param_dtype="bfloat16", dtype="bfloat16")
    model = filled_model(lambda: Qwen2_5_VL(config, rngs=nnx.Rngs(0)))
    _, made = clocked(lambda: jax.block_until_ready(nnx.state(model)))
    _, saved = clocked(lambda: weights.save(model, qwen_folder(session)))
    parameters = count([leaf.get_value() for leaf in names.base_leaves(model).values()])
    return {"parameters": parameters, "made_s": made, "saved_s": saved}
