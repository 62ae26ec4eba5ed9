"""An evaluation says when it executes actions at other times than a policy learned, or beyond what its memory shows."""

import dataclasses
from types import SimpleNamespace
from typing import Any

from wmjax.analysis.summary import summarize
from wmjax.core.settings import parse_overrides
from wmjax.core.specs import to_dict
from wmjax.experiment.config import load
from wmjax.reporting.caveats import caveats, timing
from wmjax.rollout.protocol import Protocol, load_protocol
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC


def header(protocol: Protocol, *settings: str, recipe: str = "e2_flow") -> dict[str, Any]:
    """The part of an evaluation's header that tells the timing."""
    experiment = load(recipe, overrides=parse_overrides(list(settings)))
    policy = SimpleNamespace(
        experiment=experiment,
        action_spec=dataclasses.replace(ACTION_SPEC, chunk=experiment.model.chunk),
        observation_spec=OBSERVATION_SPEC,
    )
    return timing(policy, protocol)


def notes(protocol: Protocol, *settings: str, recipe: str = "e2_flow") -> str:
    found = {"protocol": vars(protocol), **header(protocol, *settings, recipe=recipe)}
    return " ".join(caveats(found, summarize([]).overall, {}, 0))


def test_headers_of_evaluations_without_a_delay_are_what_they_were() -> None:
    for recipe in ("e0_mse", "e1copy_flow", "e2_flow", "prior_e2_flow"):
        assert header(load_protocol("spatial_dev"), recipe=recipe) == {}
    assert header(load_protocol("spatial_delay8"), "--train.delay", "8") == {}


def test_a_delay_that_was_not_learned_is_said() -> None:
    shown = notes(load_protocol("spatial_delay8"), recipe="e0_flow")
    assert "Trained for a delay of 0 control steps, evaluated with 8" in shown and "train.delay 8 trains" in shown
    assert "Trained for a delay of 8 control steps, evaluated with 0" in notes(
        load_protocol("spatial_dev"), "--train.delay", "8"
    )
    assert "Trained for" not in notes(load_protocol("spatial_delay8"), "--train.delay", "8")


def test_real_time_execution_executes_actions_when_they_were_learned_for() -> None:
    late = dataclasses.replace(load_protocol("spatial_dev"), execution_delay=4, realtime="rtc")
    assert header(late) == {} and "Trained for" not in notes(late, "--model.chunk", "20")
    assert "chunks end 20 steps after" in notes(late, "--model.chunk", "20")


def test_a_memory_that_ends_before_the_actions_is_said() -> None:
    late = load_protocol("spatial_delay16")
    assert "predicts 16 control steps ahead, but chunks end 24 steps after" in notes(late)
    assert "The memory predicts" not in notes(load_protocol("spatial_delay8"))
    for recipe in ("e0_flow", "e1copy_flow", "e2aux_flow", "e0plus_flow"):  # these predict nothing for the actions
        assert "The memory predicts" not in notes(late, recipe=recipe)
    assert "The memory predicts" not in notes(late, "--model.prophet.future", "6")
    assert "predicts 16 control steps ahead, but chunks end 20" in notes(
        load_protocol("spatial_dev"), "--model.chunk", "20"
    )


def test_images_of_another_simulator_are_a_caveat() -> None:
    published = dataclasses.replace(OBSERVATION_SPEC, simulator="as published in lerobot/libero")
    overall = summarize([]).overall
    for spec, said in ((published, True), (dataclasses.replace(OBSERVATION_SPEC, simulator="mujoco 3.3.2"), False)):
        found = " ".join(caveats({"protocol": {}, "observation": to_dict(spec)}, overall, {}, 0))
        assert ("as published in lerobot/libero, drawn by another version" in found) == said


def said(protocol: Protocol, **header: Any) -> str:
    return " ".join(caveats({"protocol": vars(protocol), **header}, summarize([]).overall, {}, 0))


def test_tasks_that_were_not_trained_on_are_named() -> None:
    training = {"changed": {}, "suite": "libero_spatial", "tasks": [0, 1, 2, 4, 6]}
    all_tasks, own = load_protocol("spatial_dev"), load_protocol("spatial_dev", tasks=(2, 6))
    assert "Not trained on 5 of 10 tasks (3, 5, 7, 8, 9)" in said(all_tasks, training=training)
    assert "Not trained on 10 of 10 tasks" in said(load_protocol("object_dev"), training=training)
    assert "Not trained" not in said(own, training=training)
    assert "Not trained" not in said(load_protocol("pro_spatial_object", tasks=(2,)), training=training)
    assert "Not trained" not in said(all_tasks, training={"changed": {}}) + said(all_tasks)  # unknown


def test_the_published_step_limit_is_part_of_the_benchmark() -> None:
    longer = load_protocol("libero_spatial", max_steps=600)
    assert "Not the published benchmark: a step limit of 600, not 220." in said(longer)
    assert "step limit" not in said(load_protocol("libero_spatial")) + said(load_protocol("spatial_dev", max_steps=600))
