"""Which evidence makes which cause, and in which order."""

import dataclasses

import pytest

from tests.docs.commands import check_shell
from wmjax.diagnostics.failure_classes import Kind
from wmjax.diagnostics.likely_causes import WHAT, Evidence, Replay, likely_causes

WELL = Evidence(
    run="RUN",
    recipe="e2_flow",
    rate=1.0,
    replay=Replay(5, 5, 0.0, 0.0),
    training=0.9,
    validation=0.85,
    draws={"one draw": 0.85, "no noise": 0.87},
    gripper=0.95,
    worst_phase="grasp",
)
BAD = {
    "the simulator is not the one": {"replay": Replay(5, 4, 0.0, 0.0)},
    "pixels differ by up to 90": {"replay": Replay(5, 5, 90.0, 0.0)},
    "hardly looks at its images": {"unused": ("images black",)},
    "does not listen to its instruction": {"unused": ("another task's instruction",)},
    "has not learned its own training data": {"training": 0.3, "validation": 0.2},
    "worst in the phase 'grasp'": {"validation": 0.4},
    "0.60 for a draw and 0.87 without": {"draws": {"one draw": 0.6, "no noise": 0.87}},
    "40 % of the commands": {"gripper": 0.4},
    "In 2 of 3 failed episodes the object is lost": {"rate": 0.5, "failures": {Kind.DROP: 2, Kind.STUCK: 1}},
}


def test_a_run_that_succeeds_has_no_cause() -> None:
    assert likely_causes(WELL) == []


@pytest.mark.parametrize("text", BAD)
def test_each_kind_of_evidence_has_its_cause(text: str) -> None:
    (cause,) = likely_causes(dataclasses.replace(WELL, **BAD[text]))  # type: ignore[arg-type]
    assert text in cause.text
    check_shell(cause.command)


def test_what_would_make_every_policy_fail_comes_first() -> None:
    changes = {name: value for change in BAD.values() for name, value in change.items()}
    causes = likely_causes(dataclasses.replace(WELL, **changes))  # type: ignore[arg-type]
    assert "pixels differ" in causes[0].text and "failed episodes" in causes[-1].text


def test_unknown_evidence_is_not_a_cause() -> None:
    assert likely_causes(Evidence("RUN", "e2_flow")) == []


def test_every_class_has_words() -> None:
    assert set(WHAT) == set(Kind)
