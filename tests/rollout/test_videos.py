"""Videos can be played, are named after what they show, and are never overwritten."""

import signal

import av
import numpy as np
import pytest

from tests.rollout.fake_policy import FakePolicy
from tests.rollout.fakes import SPEC
from wmjax.core.signals import Stopped
from wmjax.policy.policy_actor import PolicyActor
from wmjax.reporting.video.clips import Videos
from wmjax.rollout.actors import Noop
from wmjax.rollout.results import Results
from wmjax.sim.libero import ACTION_SPEC


def decode(path) -> np.ndarray:
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 5
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_both_cameras_lie_side_by_side_above_a_caption(tmp_path):
    frames = np.zeros((3, 2, 112, 112, 3), np.uint8)
    frames[:, 0, ..., 0], frames[:, 1, ..., 2] = 200, 200
    path = Videos(tmp_path, 1, 5, ACTION_SPEC).add("suite", 3, "random-17", "success", frames, ["a", "b", "step 8"])
    assert path.name == "suite-3__random-17__success.mp4"
    video = decode(path)
    assert video.shape == (3, 224 + 48, 448, 3)
    left, right, strip = video[:, :220, 4:220], video[:, :220, 228:444], video[:, 228:]
    assert left[..., 0].min() > 150 and left[..., 2].max() < 60
    assert right[..., 2].min() > 150 and right[..., 0].max() < 60
    assert strip.max() > 150 and strip.mean() < 30


def test_a_video_is_never_overwritten_and_counts_survive_a_restart(tmp_path):
    frames, videos = np.zeros((1, 2, 8, 8, 3), np.uint8), Videos(tmp_path, 2, 5, ACTION_SPEC)
    first, second = (videos.add("s", 0, "random-1", "failure", frames, ["x"]) for _ in range(2))
    assert first != second and first.exists() and second.exists()
    for kept in (videos, Videos(tmp_path, 2, 5, ACTION_SPEC)):
        assert not kept.wanted("s", 0, "failure") and kept.wanted("s", 0, "success") and kept.wanted("s", 1, "failure")
        assert kept.wanted("s", 0)
    assert not Videos(tmp_path, 0, 5, ACTION_SPEC).wanted("s", 0)


def test_an_evaluation_keeps_the_first_of_each_outcome(run, tmp_path):
    records = run(PolicyActor(FakePolicy(2, 2), seed=3), videos=1)
    names = sorted(path.stem for path in (tmp_path / "out" / "videos").iterdir())
    expected = {(r.suite, r.task_id, r.outcome) for r in records.values()}
    assert len(names) == len(expected)
    for name in names:
        task, episode, outcome = name.split("__")
        suite, task_id = task.split("-")
        record = records[f"{suite}/{task_id}/{episode.replace('-', '/')}"]
        assert record.outcome == outcome
        frames = decode(tmp_path / "out" / "videos" / f"{name}.mp4")
        due = 1 + record.steps // SPEC.frame_stride
        assert len(frames) == due + (record.steps % SPEC.frame_stride > 0)


def test_killed_between_a_video_and_its_record_an_evaluation_ends_with_the_same_videos(run, tmp_path, monkeypatch):
    add, recorded = Results.add, []

    def killed(self, record):
        if len(recorded) == 1:
            raise Stopped(signal.SIGTERM)
        recorded.append(record)
        add(self, record)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Results, "add", killed)
        run(Noop(SPEC), "killed", videos=2, workers=1, tasks=(0,), max_steps=8)
    left = sorted(path.name for path in (tmp_path / "killed" / "videos").iterdir())
    assert len(left) == 2, "the second episode has a video and no record"
    for name in ("killed", "whole"):
        run(Noop(SPEC), name, videos=2, workers=1, tasks=(0,), max_steps=8)
    names = [sorted(path.name for path in (tmp_path / name / "videos").iterdir()) for name in ("killed", "whole")]
    assert names[0] == names[1] and len(names[0]) == 2
