"""The training step's program is the one whose summary is committed."""

import dataclasses
import json
import re
from collections import Counter

import jax
import pytest

from tests.tiny import tiny_config
from tests.trainer.program import JOBS, PATH, summary
from wmjax.experiment.config import load
from wmjax.scaling.program import call_shapes, programs
from wmjax.trainer.sharding import make_mesh

COMMITTED = json.loads(PATH.read_text(encoding="utf-8"))
UPDATE = "if the change is meant, run `python -m tests.trainer.program` and commit the difference"


@pytest.mark.skipif(
    COMMITTED["jax"] != jax.__version__,
    reason=f"the committed summary is of jax {COMMITTED['jax']}; another version lowers another program",
)
@pytest.mark.parametrize("name", JOBS)
def test_the_program_is_the_committed_one(name: str) -> None:
    assert summary(JOBS[name]) == COMMITTED[name], UPDATE


def test_a_deeper_decoder_is_no_larger_program() -> None:
    """Compilation takes as long: layers are scanned."""

    def operations(depth: int) -> Counter[str]:
        model = tiny_config("e0", "regression", remat="names")
        text = dataclasses.replace(model.backbone.text, depth=depth)
        model = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, text=text))
        experiment = dataclasses.replace(load("e0_mse"), model=model)
        mesh = make_mesh(experiment.mesh, jax.devices()[:1])
        built = programs(experiment, mesh)
        lowered = built.train_step.lower(*call_shapes(experiment, built, mesh))
        return Counter(re.findall(r"stablehlo\.(\w+)", lowered.as_text()))

    assert operations(3) == operations(6)  # two layers would share a function with the vision tower, which has two
