"""The environment of ``docs/extending.md``: one of another package in the real pool, runner and report."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.extending.point_robot import STEP, PointRobot
from tests.rollout.fake_policy import FakePolicy
from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec
from wmjax.data.episode import EpisodeData
from wmjax.data.formats.importer import Gripper, prepare_action
from wmjax.data.formats.lerobot.convert import convert
from wmjax.data.formats.lerobot.writer import write_lerobot_v30
from wmjax.pipeline.evaluate import evaluate
from wmjax.pipeline.evaluate_scripted import evaluate_scripted
from wmjax.policy.policy_actor import PolicyActor
from wmjax.rollout.actors import Chunk, Decision, Noop, Scripted
from wmjax.rollout.protocol import Protocol, load_protocol
from wmjax.rollout.results import read_records
from wmjax.rollout.settings import EvaluateSettings

PROTOCOL = """
env = "tests.extending.point_robot:PointRobot"
suite = "corners"
tasks = [0, 3]
episodes_per_task = 2
init = "benchmark"
max_steps = 12
open_loop_horizon = 4
"""


ALONE = EvaluateSettings(workers=1, videos=0)
LAYOUT = """
state = "observation.state"
action = "action"
environment = "tests.extending.point_robot:PointRobot"
[cameras]
above = "observation.images.above"
"""


class Walker(Scripted):
    """Reads place and goal, and walks; it looks too, so that frames have to arrive."""

    name = "walker"
    needs_frames = True

    def chunk(self, decision: Decision) -> Chunk:
        assert decision.frames.shape == (2, 1, 16, 16, 3) and decision.frames.max() == 255
        corner = int(decision.instruction[-1])
        way = np.array([corner % 2, corner // 2]) - decision.state
        steps = np.minimum(np.arange(self.horizon + 1)[:, None] * STEP, np.abs(way)) * np.sign(way)
        return (np.diff(steps, axis=0) / STEP).astype(np.float32)


@pytest.fixture
def protocol(tmp_path: Path) -> Protocol:
    path = tmp_path / "corners.toml"
    path.write_text(PROTOCOL)
    return load_protocol(str(path))


def test_a_scripted_actor_is_evaluated_and_reported(protocol: Protocol, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = evaluate(Walker(PointRobot.observation_spec), protocol, out, EvaluateSettings(videos=1))
    assert summary.overall.rate == 1.0 and summary.overall.finished == 4
    records = {record.key: record for record in read_records(out)}
    assert records["corners/0/benchmark/1"].steps == 6 and records["corners/3/benchmark/0"].steps == 6
    assert len({record.settled_hash for record in records.values()}) == 2  # a start for each index, whatever the task
    report = (out / "report.html").read_text()
    assert "go to corner 3" in report and "point==1" in (out / "summary.json").read_text()
    assert len(list((out / "videos").glob("*.mp4"))) == 2


def test_scripted_actors_of_the_command_and_the_delay_use_its_own_hold_action(
    protocol: Protocol, tmp_path: Path
) -> None:
    assert evaluate_scripted("noop", protocol, tmp_path / "noop", ALONE).overall.rate == 0.0
    delayed = dataclasses.replace(protocol, execution_delay=2)
    evaluate(Walker(PointRobot.observation_spec), delayed, tmp_path / "late", ALONE)
    # Two steps of holding still, then five or six to the corner.
    assert {record.key: record.steps - 2 for record in read_records(tmp_path / "late")} == {
        "corners/0/benchmark/0": 5,
        "corners/0/benchmark/1": 6,
        "corners/3/benchmark/0": 6,
        "corners/3/benchmark/1": 5,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "libero_spatial"}, "suite"),
        ({"tasks": (4,)}, r"tasks contains 4; corners has tasks 0\.\.3"),
        ({"episodes_per_task": 3}, "has 2 initial states per task"),
        ({"env": "tests.extending.point_robot:Nothing"}, "env is .*Nothing"),
        ({"env": "liberoo"}, "env"),
    ],
)
def test_a_protocol_that_the_environment_cannot_run_is_refused(
    protocol: Protocol, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(protocol, **change)


def test_unsupported_options_are_refused(protocol: Protocol, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="corners do not move"):
        moving = dataclasses.replace(protocol, target_velocity=0.1)
        evaluate(Noop(PointRobot.observation_spec), moving, tmp_path / "moving", ALONE)
    with pytest.raises(UserError, match="has no scripted expert"):
        evaluate_scripted("expert", protocol, tmp_path / "expert", ALONE)
    with pytest.raises(UserError, match=r"ActionSpec\.names is .*'gripper'\) for the policy, \('dx', 'dy'\)"):
        evaluate(PolicyActor(FakePolicy()), dataclasses.replace(protocol, open_loop_horizon=8), tmp_path / "p", ALONE)


def test_its_demonstrations_are_converted_with_its_specs_and_without_a_gripper(tmp_path: Path) -> None:
    """The last action lies in [0, 1], as gripper commands of another convention would."""
    steps = np.arange(8, dtype=np.int32)
    action = np.stack([np.linspace(-1, 1, 8), np.linspace(0, 1, 8)], axis=1).astype(np.float32)
    state = np.cumsum(action, axis=0, dtype=np.float32) / 10
    written = action.copy()
    written[-1, 0] += 1e-6  # rounded on its way, which is put right at the bounds
    meta = {"suite": "corners", "task_id": 3, "instruction": "go to corner 3"}
    images = np.zeros((8, 1, 16, 16, 3), np.uint8)
    episode = EpisodeData(images, steps, state, written, written, np.zeros(0), meta)
    unbounded = dataclasses.replace(PointRobot.action_spec, low=(), high=())
    write_lerobot_v30(tmp_path / "data", [episode], PointRobot.observation_spec, unbounded)
    (tmp_path / "point.toml").write_text(LAYOUT)
    store = convert(
        str(tmp_path / "data"), tmp_path / "store", image_size=16, frame_stride=2, layout=str(tmp_path / "point.toml")
    )
    assert store.action_spec == PointRobot.action_spec and store.spec.state == ("x", "y")
    np.testing.assert_array_equal(store.action, action)


@pytest.mark.parametrize(
    ("gripper", "given"), [("open-negative", (0.08, 0.0)), ("open-one", (1.0, 0.0)), ("open-positive", (1.0, -1.0))]
)
def test_grippers_become_the_commands_of_the_environment_wherever_they_stand(
    gripper: Gripper, given: tuple[float, float]
) -> None:
    robot = ActionSpec(("width", "x"), ("m", ""), grippers=(0,), gripper_open=(0.08,), gripper_closed=(0.0,))
    action = np.array([[given[0], 0.3], [given[1], 0.4]], np.float32)
    found = prepare_action(action, np.zeros((2, 2), np.float32), gripper, robot, PointRobot.observation_spec, "here")
    np.testing.assert_allclose(found, [[0.08, 0.3], [0.0, 0.4]], atol=1e-8)
