"""In LIBERO itself: the policy that ships with wmjax, behind its server, acts as in process."""

from pathlib import Path

import pytest

from tests.serving.servers import running
from tests.serving.test_served_policy import noted, outcomes
from wmjax.pipeline.evaluate import evaluate
from wmjax.pipeline.evaluate_served import evaluate_served
from wmjax.policy.policy import load_policy
from wmjax.policy.policy_actor import PolicyActor
from wmjax.rollout.protocol import load_protocol
from wmjax.rollout.settings import EvaluateSettings
from wmjax.serving.clients.served_policy import ServedPolicy

pytestmark = [pytest.mark.sim, pytest.mark.slow]


def test_actions_in_the_simulator_are_those_of_the_policy_in_process(tmp_path: Path, monkeypatch) -> None:
    unchanged = load_protocol("spatial_dev")
    protocol = load_protocol("spatial_dev", tasks=(0,), episodes_per_task=1, max_steps=16)
    policy = load_policy("mini", batch_size=1, open_loop_horizon=protocol.open_loop_horizon)
    here, there = (noted(monkeypatch, kind, protocol.open_loop_horizon) for kind in (PolicyActor, ServedPolicy))
    settings = EvaluateSettings(workers=1, videos=0)
    evaluate(PolicyActor(policy, protocol.seed), protocol, tmp_path / "here", settings)
    expected = {name: action for name, action in here.items() if name[0].startswith("libero")}
    with running(policy, seed=protocol.seed, max_sessions=2) as served:
        out = tmp_path / "there"
        evaluate_served(served.url, "openpi", {}, protocol, unchanged, settings, out=out)
    assert len(expected) == 16 and there == expected
    assert outcomes(tmp_path / "here") == outcomes(tmp_path / "there")
