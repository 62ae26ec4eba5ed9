"""What a watcher saw reaches the parent once per episode, whole, whatever happened to the workers."""

import dataclasses

from tests.rollout.fakes import ENV, PROTOCOL, SPEC, FakeWatcher, fault_name
from wmjax.reporting.video.clips import Videos
from wmjax.rollout.actors import Random
from wmjax.rollout.results import Results
from wmjax.rollout.runner import Runner
from wmjax.rollout.settings import EvaluateSettings
from wmjax.sim.libero import ACTION_SPEC
from wmjax.sim.rollout_pool import RolloutPool
from wmjax.sim.worker import WorkerSettings


def test_every_step_of_an_episode_is_reported_once(tmp_path, faults):
    protocol = dataclasses.replace(PROTOCOL, tasks=(0,))
    episodes = protocol.episodes()
    (faults / f"{fault_name(episodes[1].key, 20)}.kill").touch()
    told = {}
    settings = WorkerSettings(SPEC, 4, ENV, FakeWatcher)
    results = Results(tmp_path / "out", {})
    videos = Videos(tmp_path / "videos", 0, 5.0, ACTION_SPEC)
    with RolloutPool(settings, 2, 60.0) as pool:
        runner = Runner(
            pool,
            Random(SPEC),
            protocol,
            results,
            videos,
            EvaluateSettings(),
            watched=lambda *entry: told.setdefault(entry[0], entry[1:]),
        )
        runner.run(episodes)
    assert not list(faults.iterdir())
    assert set(told) == set(episodes)
    for record in results.records:
        episode = next(e for e in episodes if e.key == record.key)
        outcome, watched = told[episode]
        assert outcome == record.outcome and [step for step, *_ in watched] == list(range(record.steps + 1))
