"""Failures in the real simulator, of actors that fail in known ways."""

import dataclasses

import numpy as np
import pytest

from wmjax.core.errors import UserError
from wmjax.diagnostics.failure_classes import Kind
from wmjax.pipeline.failures import text, watch
from wmjax.recording.watch import Watch
from wmjax.rollout.actors import Expert, Noop, Scripted
from wmjax.rollout.protocol import load_protocol
from wmjax.sim.env import LiberoEnv
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import OBSERVATION_SPEC

pytestmark = [pytest.mark.sim, pytest.mark.slow]


class Grabber(Scripted):
    """Goes down in front of it, closes, and goes up."""

    name = "grabber"

    def chunk(self, decision):
        actions = self.hold(self.horizon)
        actions[:, 2] = -0.8 if decision.step < 40 else 0.8
        actions[:, 6] = 1.0 if decision.step >= 32 else -1.0
        return actions


def test_failures_have_their_classes_and_a_success_has_none():
    protocol = load_protocol("spatial_dev", tasks=(2,), episodes_per_task=1, max_steps=80, open_loop_horizon=4)
    (still,) = watch(Noop(OBSERVATION_SPEC), protocol, protocol.episodes(), workers=1)
    assert still.failure is not None and still.failure.kind is Kind.NEVER_STARTED
    (missed,) = watch(Grabber(OBSERVATION_SPEC), protocol, protocol.episodes(), workers=1)
    assert missed.failure is not None and missed.failure.kind is Kind.MISSED_GRASP
    assert "closed 1 time" in missed.failure.detail and "libero_spatial/2/random" in text([missed])
    whole = dataclasses.replace(protocol, max_steps=220)
    (solved,) = watch(Expert(OBSERVATION_SPEC), whole, whole.episodes(), workers=1)
    assert solved.failure is None and "succeeded this time" in text([solved])


def test_watching_does_not_change_an_episode():
    env = LiberoEnv("libero_spatial", 2, OBSERVATION_SPEC)
    states = []
    for looks in (False, True):
        env.reset(EpisodeId("libero_spatial", 2, "random", 100_000))
        watcher = Watch(env)
        for step in range(12):
            env.step(np.array([0.2, 0.1, -0.3, 0, 0, 0, 1.0 if step > 5 else -1.0]))
            if looks:
                watcher.observe(None, None)
        states.append(env.sim_state())
    env.close()
    assert np.array_equal(*states)


def test_a_goal_without_classes_is_one_line():
    env = LiberoEnv("libero_10", 0, OBSERVATION_SPEC)
    with pytest.raises(UserError, match="failures have classes where one object is put"):
        Watch(env)
    env.close()
