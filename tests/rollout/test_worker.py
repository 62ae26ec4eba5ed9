"""What a worker does with commands, without starting a process."""

import numpy as np
import pytest

from tests.rollout.fakes import ENV, SPEC, FakeEnv, FakeWatcher
from wmjax.sim.episode import EpisodeId
from wmjax.sim.worker import Execute, Host, Reset, RunExpert, WorkerSettings

EPISODE = EpisodeId("libero_spatial", 0, "random", 7)


@pytest.fixture
def host():
    settings = WorkerSettings(SPEC, 4, ENV)
    made = Host(settings, np.zeros(settings.frames_shape, np.uint8))
    made.run(Reset(EPISODE))
    return made


def still(steps: int) -> np.ndarray:
    return np.zeros((steps, 7), np.float32)


def test_frames_fall_due_at_multiples_of_the_stride_counted_from_the_settled_state(host):
    steps = [host.run(Execute(still(count))).frame_steps for count in (8, 3, 3, 8)]
    assert steps == [(4, 8), (), (12,), (16, 20)]


def test_reset_renders_the_first_frame_and_the_buffer_holds_episode_step_and_camera(host):
    assert host.run(Reset(EPISODE)).frame_steps == (0,)
    host.run(Execute(still(8)))
    assert host._buffer[:2, 0, 0, 0].tolist() == [[7, 4, 0], [7, 8, 0]]
    assert host._buffer[0, 1, 0, 0].tolist() == [7, 4, 1]


def test_only_requested_frames_are_rendered(host):
    before = host.run(Reset(EPISODE, render=False)).state[2]
    assert host.run(Execute(still(12), render=False)).state[2] == before


def test_execution_stops_at_success(host):
    reply = host.run(Execute(np.full((20, 7), 1.0, np.float32)))
    position = EPISODE.seed % 1000 / 1000
    needed = int(np.ceil(6.0 - position)) + (position.is_integer())
    assert (reply.success, reply.steps) == (True, needed)
    assert reply.state[1] == needed


def test_the_final_frame_is_rendered_once(host):
    assert host.run(Execute(still(6), final=True)).frame_steps == (4, 6)
    assert host.run(Execute(still(2), final=True)).frame_steps == (8,)
    reply = host.run(Execute(np.full((20, 7), 1.0, np.float32), final=True))
    assert reply.success and reply.frame_steps[-1] == 8 + reply.steps


def test_the_expert_acts_inside_and_is_made_anew_for_each_episode(host):
    first = host.run(RunExpert(3))
    assert first.state[0] == pytest.approx(EPISODE.seed % 1000 / 1000 + 1.5)
    expert = host._expert
    host.run(Reset(EPISODE))
    host.run(RunExpert(1))
    assert host._expert is not expert


def test_a_settled_state_replaces_the_episodes_own(host):
    reply = host.run(Reset(EPISODE, settled=np.array([0.25])))
    assert reply.state[0] == 0.25 and reply.state[4] == 1


def test_the_environment_is_rebuilt_only_when_the_task_changes(host):
    built = FakeEnv.built
    host.run(Reset(EpisodeId("libero_spatial", 0, "random", 8)))
    assert FakeEnv.built == built
    assert host.run(Reset(EpisodeId("libero_spatial", 1, "random", 8))).instruction == "do the task number 1"
    assert FakeEnv.built == built + 1


@pytest.mark.parametrize(("broken", "message"), [("nan_image", "rendered float64"), ("nan_state", "state is")])
def test_broken_observations_raise(host, broken, message):
    host._env.broken = broken
    with pytest.raises(ValueError, match=message):
        host.run(Execute(still(4)))


def test_a_watcher_sees_the_start_and_every_step(host):
    settings = WorkerSettings(SPEC, 4, ENV, FakeWatcher)
    watched = Host(settings, np.zeros(settings.frames_shape, np.uint8))
    assert watched.run(Reset(EPISODE)).watched == ((0, None, 0),)
    assert watched.run(Execute(still(3))).watched == ((1, 0.0, None), (2, 0.0, None), (3, 0.0, None))
    assert watched.run(RunExpert(2)).watched == ((4, 0.5, 4), (5, 0.5, None))
    assert watched.run(Execute(still(2), final=True)).watched == ((6, 0.0, None), (7, 0.0, 7))
    assert host.run(Execute(still(3))).watched == ()
