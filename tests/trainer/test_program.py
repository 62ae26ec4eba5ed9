"""The training step's program is the one whose summary is committed."""

import json

import jax
import pytest

from tests.trainer.program import JOBS, PATH, summary

COMMITTED = json.loads(PATH.read_text(encoding="utf-8"))
UPDATE = "if the change is meant, run `python -m tests.trainer.program` and commit the difference"


@pytest.mark.skipif(
    COMMITTED["jax"] != jax.__version__,
    reason=f"the committed summary is of jax {COMMITTED['jax']}; another version lowers another program",
)
@pytest.mark.parametrize("name", JOBS)
def test_the_program_is_the_committed_one(name: str) -> None:
    assert summary(JOBS[name]) == COMMITTED[name], UPDATE
