"""Phases follow from the demonstrator's gripper commands, and an error counts in its own phase only."""

import dataclasses

import numpy as np

from tests.data.synthetic import make_episode
from wmjax.data.store import finalize, write_part
from wmjax.diagnostics.phases import PHASES, phase_section, phases_of
from wmjax.diagnostics.samples import ActionWindows
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

CLOSES, OPENS, LENGTH = 20, 40, 60


def store_of(folder, commands):
    episode = make_episode(0, LENGTH, image_size=28)
    action = episode.action.copy()
    action[:, 6] = commands
    spec = dataclasses.replace(OBSERVATION_SPEC, image_size=28)
    write_part(folder, "episode", dataclasses.replace(episode, action=action), spec)
    return finalize(folder, spec, ACTION_SPEC)


def test_phases_follow_the_gripper(tmp_path):
    steps = np.arange(LENGTH)
    store = store_of(tmp_path, np.where((steps >= CLOSES) & (steps < OPENS), 1.0, -1.0))
    found = [PHASES[phase] for phase in phases_of(store, np.arange(LENGTH // 4))]
    # Frames lie at 0, 4, 8, ...; a change within the next 8 steps is part of the grasp or the release.
    assert found == ["reach"] * 4 + ["grasp"] + ["carry"] * 4 + ["release"] + ["after"] * 5


def test_fingers_that_never_close_only_reach(tmp_path):
    store = store_of(tmp_path, np.full(LENGTH, -1.0))
    assert set(phases_of(store, np.arange(LENGTH // 4))) == {PHASES.index("reach")}


def test_an_error_counts_in_its_phase():
    random = np.random.default_rng(0)
    action = random.normal(size=(40, 8, 7)).astype(np.float32)
    windows = ActionWindows(
        action=action,
        mask=np.ones((40, 8), bool),
        state=np.zeros((40, 8), np.float32),
        near_change=np.zeros((40, 8, 1), bool),
        closed_before=np.zeros((40, 1), bool),
        spec=ACTION_SPEC,
        task=np.zeros(40, int),
    )
    phases = np.repeat([PHASES.index("reach"), PHASES.index("carry")], 20)
    predicted = action.copy()
    predicted[20:, :, 1] += 1.0
    section = phase_section(predicted, windows, phases)
    assert set(section.r2) == {"reach", "carry"} and section.worst == "carry"
    np.testing.assert_allclose(section.r2["reach"], 1.0)
    np.testing.assert_allclose(section.r2["carry"][[0, 2, 3, 4, 5]], 1.0)
    np.testing.assert_allclose(section.r2["carry"][1], 1.0 - 1.0 / action[..., 1].var(), rtol=1e-4)
    assert section.share == {"reach": 0.5, "carry": 0.5} and "carry" in section.table()
