"""Four faults in the real simulator; test_runner has forty in the fake one."""

import pytest

from tests.rollout.fakes import fault_name
from tests.rollout.test_replay_sim import Watching
from wmjax.pipeline.evaluate import evaluate
from wmjax.rollout.protocol import load_protocol
from wmjax.rollout.results import read_records
from wmjax.rollout.settings import EvaluateSettings
from wmjax.sim.libero import ACTION_SPEC

pytestmark = [pytest.mark.sim, pytest.mark.long]


def test_killed_hanging_raising_and_nan_workers_change_no_success(recorded, faults, tmp_path):
    entries = sorted(recorded.episodes, key=lambda entry: entry["success_step"])
    limit = entries[0]["success_step"]  # the first succeeds in the last step, the second is cut off
    assert limit < entries[1]["success_step"]
    planned = (((5, "kill"), (10, "nan_image")), ((0, "raise"), (9, "hang")))
    for entry, kinds in zip(entries, planned, strict=True):
        for step, kind in kinds:
            (faults / f"{fault_name(entry['episode'], step)}.{kind}").touch()
    actor = Watching(recorded, ACTION_SPEC)
    protocol = load_protocol("spatial_dev", max_steps=limit, open_loop_horizon=8, env="tests.rollout.faulty:FaultyEnv")
    evaluate(actor, protocol, tmp_path, EvaluateSettings(videos=0, timeout=60.0), episodes=actor.episodes)
    assert not list(faults.iterdir())
    records = {record.key: record for record in read_records(tmp_path)}
    assert len(records) == len(read_records(tmp_path)) == len(entries)
    ends = [records[entry["episode"]] for entry in entries]
    assert [(r.outcome, r.steps, r.attempts) for r in ends] == [("success", limit, 3), ("failure", limit, 3)]
    assert [sorted(r.faults) for r in ends] == [["crash", "crash"], ["crash", "timeout"]]
    assert [r.settled_hash for r in ends] == [entry["settled_hash"] for entry in entries]
