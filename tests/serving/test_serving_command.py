"""The command as a process of its own, through the benchmark, and the example."""

import json
import math

import numpy as np
import pytest

from benchmarks import serving, serving_stages
from examples import serve_openpi
from tests.rollout.fakes import SPEC, FakeEnv
from tests.rollout.runs import save_run
from tests.serving.servers import Running, running
from wmjax.sim.episode import EpisodeId


@pytest.mark.slow
def test_latency_is_measured_beside_the_policy_in_process(tmp_path, capsys) -> None:
    run, out = save_run(tmp_path / "e0", "e0", "regression"), tmp_path / "latency.json"
    serving.main([str(run), "--batches", "2", "--repeats", "1", "--out", str(out)])
    table, printed = json.loads(out.read_text()), capsys.readouterr().out
    for dialect in ("openpi", "starvla", "vla-eval"):
        row = table[f"{dialect}, batch 2"]
        usual = {"in process", "served", "added", "added, fastest tenth"}
        more = {"openpi": {"beside the policy", "its fastest tenth"}, "vla-eval": {"between"}}
        assert set(row) == usual | more.get(dialect, set())
        assert all(map(math.isfinite, row.values()))
        assert row["in process"] > 0 and row["served"] > 0 and f"{dialect}, batch 2: in process" in printed
    assert table["vla-eval, batch 2"]["between"] > 0


@pytest.mark.slow
def test_the_stages_of_a_decision_are_measured(tmp_path) -> None:
    run, out = save_run(tmp_path / "e0", "e0", "regression"), tmp_path / "stages.json"
    serving_stages.main([str(run), "--repeats", "10", "--asleep", "--out", str(out)])
    table = json.loads(out.read_text())
    stages = {name: median for name, (median, _) in table.items() if name in serving_stages.STAGES}
    assert set(stages) == set(serving_stages.STAGES) and min(stages.values()) >= 0
    assert stages["policy"] >= 90 and table["beside the policy"][1] > 0 and table["sum of the fastest tenths"][1] > 0


def test_a_client_that_notes_its_sending_late_gives_no_negative_stage() -> None:
    names = ["asked", "answer", "sent", "decide", "make", "make done", "decide done", "answer done", "answered"]
    moments = {name: 0.001 * number for number, name in enumerate(names)}
    client = {name: moments.pop(name) for name in ("asked", "sent", "answered")}
    table = serving_stages.summary([client], list(moments.items()))
    medians = [median for median, _ in table.values()][: len(serving_stages.STAGES)]
    np.testing.assert_allclose(medians, [1, 0, 2, 1, 1, 1, 1, 1], atol=1e-9)


def test_the_example_drives_episodes_and_is_remembered_unless_plain() -> None:
    with running() as served:
        steps = {plain: drive(served, plain) for plain in (False, True)}
        assert steps[False] == drive(served, False) and 0 < steps[False][1] <= 40
        assert steps[True][1] == 40 or steps[True][0]


def drive(served: Running, plain: bool) -> tuple[bool, int]:
    client, env, seen = served.client(), FakeEnv("s", 0, SPEC), []
    ask = client.infer
    client.infer = lambda sent: seen.append((sent, ask(sent))) or seen[-1][1]  # type: ignore[method-assign]
    done = serve_openpi.run_episode(client, env, EpisodeId("s", 0, "random", 4), 40, plain)
    assert {answer["wmjax/history"] for _, answer in seen} == {"newest frame" if plain else "episode"}
    for number, (sent, _) in enumerate(seen):
        newest = sent["observation/image"] if plain else sent["observation/image"][-1]
        assert newest[0, 0, 1] == 8 * number  # the fake's pictures show the control step
        assert np.shape(sent["observation/image"]) == ((4, 4, 3) if plain else (2 if number else 1, 4, 4, 3))
    return done
