"""Provoked failures: settings are checked, and an episode's failures follow from its identity. Needs no simulator."""

import numpy as np
import pytest

from wmjax.core.errors import UserError
from wmjax.recording.demonstration import ActionNoise, DemonstrationConfig
from wmjax.recording.failures import FailureConfig, Failures
from wmjax.sim.episode import EpisodeId

BAD = {
    ("fraction", 1.5): r"failures\.fraction is 1\.5; it must be at least 0 and at most 1",
    ("start", -0.1): r"failures\.start is -0\.1; it must be at least 0",
    ("most", 0): r"failures\.most is 0; it must be at least 1",
    ("drop", -1.0): r"failures\.drop is -1\.0; it must be at least 0",
}


def episode(index):
    return EpisodeId("libero_spatial", 0, "random", 1_000_000 + index)


@pytest.mark.parametrize("setting", BAD)
def test_bad_settings_are_named(setting):
    name, value = setting
    with pytest.raises(UserError, match=BAD[setting]):
        FailureConfig(**{name: value})


def test_failures_of_no_kind_are_refused():
    with pytest.raises(UserError, match=r"push, miss, drop, beside are all 0; raise one"):
        FailureConfig(push=0, miss=0, drop=0, beside=0)
    FailureConfig(fraction=0, push=0, miss=0, drop=0, beside=0)


def test_a_negative_label_length_is_refused():
    with pytest.raises(UserError, match=r"label_steps is -1; it must be at least 0"):
        DemonstrationConfig(label_steps=-1)


def test_plans_follow_from_the_episode_and_the_shares():
    config = FailureConfig(fraction=0.5, most=2, push=1.0, miss=0.0, drop=1.0, beside=0.0)
    plans = [Failures(episode(index), config)._plan for index in range(200)]
    assert plans == [Failures(episode(index), config)._plan for index in range(200)]
    assert 70 < sum(bool(plan) for plan in plans) < 130
    assert {len(plan) for plan in plans} == {0, 1, 2}
    assert {kind for plan in plans for kind, _ in plan} == {"push", "drop"}


def test_an_episode_has_noise_and_failures_or_neither():
    config = DemonstrationConfig()
    noise = [ActionNoise(episode(index), config).amplitude > 0 for index in range(200)]
    failures = [bool(Failures(episode(index), config.failures)._plan) for index in range(200)]
    assert noise == failures and 25 < noise.count(False) < 55


def test_a_random_start_is_executed_from_the_first_step_on():
    failures = Failures(episode(0), FailureConfig(fraction=0.0, start=1.0))
    assert failures.done == ["start"]
    actions = []
    while failures._running is not None:
        actions.append(failures.action(len(actions), None, np.zeros(7)))
    assert 10 <= len(actions) <= 25
    assert all((action == actions[0]).all() for action in actions) and abs(actions[0][:3]).max() > 0
