"""Episodes of a simulator, driven through openpi's client, are those of the policy in process, bit for bit."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from tests.rollout.fakes import FORGETFUL, PROTOCOL
from tests.rollout.runs import save_run
from tests.serving.servers import Running, running
from wmjax.core.specs import ActionSpec
from wmjax.pipeline.evaluate import evaluate
from wmjax.policy.policy import Policy, load_policy
from wmjax.policy.policy_actor import PolicyActor
from wmjax.rollout.actors import Decision, Plan
from wmjax.rollout.protocol import Protocol
from wmjax.rollout.results import read_records
from wmjax.rollout.settings import EvaluateSettings

SHORT = dataclasses.replace(PROTOCOL, tasks=(0, 1), episodes_per_task=2, max_steps=24, seed=1, env=FORGETFUL)
"""A task's second episode may run in either simulator, after another one or none: that must not matter."""
Actions = dict[tuple[str, int], bytes]


TOLD = dataclasses.replace(SHORT, open_loop_horizon=4, execution_delay=8)
LATE = dataclasses.replace(SHORT, open_loop_horizon=4, execution_delay=3, realtime="rtc")


@pytest.fixture(
    scope="module",
    params=[
        ("e2", "flow", 1, SHORT),
        ("e2", "flow", 2, SHORT),
        ("e0", "regression", 2, SHORT),
        pytest.param(("e0", "flow", 2, LATE), id="real time"),
        pytest.param(("e0", "flow", 2, TOLD), id="told"),
    ],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Protocol]:
    variant, head, batch, protocol = request.param
    pending = protocol.execution_delay if protocol.realtime == "none" else 0
    folder = save_run(tmp_path_factory.mktemp("run") / variant, variant, head, pending=pending)
    timing = {name: getattr(protocol, name) for name in ("open_loop_horizon", "execution_delay", "realtime")}
    return load_policy(folder, batch_size=batch, **timing), protocol


@pytest.fixture(scope="module")
def policy(case: tuple[Policy, Protocol]) -> Policy:
    return case[0]


@pytest.fixture(scope="module")
def protocol(case: tuple[Policy, Protocol]) -> Protocol:
    return case[1]


class Noting(PolicyActor):
    """The policy in process, with its actions noted."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy, SHORT.seed)
        self.noted: Actions = {}

    def prepare(self, slots: int, horizon: int, action_spec: ActionSpec) -> None:
        super().prepare(slots, horizon, action_spec)
        self.noted.clear()  # the decision that compiled it

    def act(self, decisions: Sequence[Decision]) -> list[Plan]:
        plans = super().act(decisions)
        self.noted |= {(d.episode.key, d.number): p.actions.tobytes() for d, p in zip(decisions, plans, strict=True)}
        return plans


class Remote(Noting):
    """The same, asked through a socket: one of openpi's clients per simulator."""

    def __init__(self, policy: Policy, served: Running, plain: bool = False, says: bool = False) -> None:
        super().__init__(policy)
        self._says = says  # what it still executes
        self._clients = [served.client() for _ in range(2)]
        self._plain = plain

    def prepare(self, slots: int, horizon: int, action_spec: ActionSpec) -> None:
        pass

    def act(self, decisions: Sequence[Decision]) -> list[Plan]:
        plans = [Plan(self._ask(decision)) for decision in decisions]
        self.noted |= {(d.episode.key, d.number): p.actions.tobytes() for d, p in zip(decisions, plans, strict=True)}
        return plans

    def _ask(self, decision: Decision) -> np.ndarray:
        frames = decision.frames[-1] if self._plain else decision.frames
        sent = {
            "observation/image": frames[..., 0, :, :, :],
            "observation/wrist_image": frames[..., 1, :, :, :],
            "observation/state": decision.state.astype(np.float64),
            "prompt": decision.instruction,
        }
        if not self._plain:
            sent |= {"wmjax/episode": decision.episode.key, "wmjax/step": decision.step}
        if self._says and decision.pending is not None:
            sent["wmjax/pending"] = decision.pending
        return self._clients[decision.slot].infer(sent)["actions"]


@pytest.fixture(scope="module")
def served(policy: Policy, protocol: Protocol) -> Iterator[Running]:
    late = protocol.realtime != "none"
    timing = {"execution_delay": protocol.execution_delay, "realtime": protocol.realtime} if late else {}
    with running(policy, max_batch=policy.batch_size, max_sessions=6, seed=SHORT.seed, **timing) as found:
        yield found


def outcomes(actor: Noting, protocol: Protocol, folder) -> dict[str, tuple]:
    evaluate(actor, protocol, folder, EvaluateSettings(videos=0))
    return {record.key: (record.outcome, record.steps, record.decisions) for record in read_records(folder)}


def test_named_episodes_have_the_actions_of_the_policy_in_process(
    policy: Policy, protocol: Protocol, served: Running, tmp_path
) -> None:
    here, there = Noting(policy), Remote(policy, served)
    assert outcomes(here, protocol, tmp_path / "here") == outcomes(there, protocol, tmp_path / "there")
    assert len(here.noted) >= 8 and here.noted == there.noted
    if policy.pending_steps:
        says = Remote(policy, served, says=True)
        outcomes(says, protocol, tmp_path / "says")
        assert says.noted == here.noted


def test_a_plain_client_has_other_actions_after_the_first_decision(
    policy: Policy, protocol: Protocol, served: Running, tmp_path
) -> None:
    """Its noise has other names and, with a world memory, its past is the newest frame; regression has neither."""
    here, there = Noting(policy), Remote(policy, served, plain=True)
    outcomes(here, protocol, tmp_path / "here")
    outcomes(there, protocol, tmp_path / "there")
    same = {name for name in here.noted if here.noted[name] == there.noted.get(name)}
    assert same == (set() if policy.experiment.model.head.stochastic else set(here.noted))
