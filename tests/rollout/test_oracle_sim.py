"""The oracle bracket from a checkpoint to the table, in the real simulator: at alpha 1 it changes nothing at all."""

import json

import pytest

from tests.rollout.runs import save_run
from wmjax.pipeline.evaluate_checkpoint import evaluate_checkpoint
from wmjax.rollout.protocol import load_protocol
from wmjax.rollout.results import read_records
from wmjax.rollout.settings import EvaluateSettings

pytestmark = [pytest.mark.sim, pytest.mark.long]  # test_oracle.py and test_oracle_policy.py need no simulator


def test_seeing_the_future_at_alpha_one_leaves_every_number_as_it_was(tmp_path):
    run = save_run(tmp_path / "run", "e2", "flow")
    found = {}
    for oracle in (None, 1.0, 0.0):
        changes = {"tasks": (2,), "episodes_per_task": 1, "max_steps": 24, "open_loop_horizon": 8, "oracle": oracle}
        protocol, out = load_protocol("spatial_dev", **changes), tmp_path / str(oracle)
        evaluate_checkpoint(run, protocol, out, EvaluateSettings(workers=1, videos=0))
        (found[oracle],) = read_records(out)
        assert json.loads((out / "header.json").read_text())["protocol"]["oracle"] == oracle
    assert {record.outcome for record in found.values()} == {"failure"}
    assert found[1.0].settled_hash == found[None].settled_hash
    errors = {name: found[1.0].info[name] for name in ("oracle/error", "oracle/copy_error")}
    assert found[1.0].info == {**found[None].info, **errors}
    # The numbers follow from what was seen, and that from what was done: with the truth in the memory they differ.
    assert found[0.0].info["memory/ratio"] != found[None].info["memory/ratio"]
