"""A policy behind a server is evaluated as the same policy in process: our own server, and others that replay."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from vla_eval.model_servers.predict import PredictModelServer

import wmjax.evaluate as command
from tests.rollout.fake_policy import Continuing, Told
from tests.rollout.fakes import PROTOCOL, SPEC
from tests.rollout.runs import save_run
from tests.rollout.test_replay import recorded
from tests.serving.peers import Recognising, packed_server, vla_eval_server
from tests.serving.servers import running
from wmjax.data.statistics import action_spec
from wmjax.data.store import TrainingStore, finalize, write_part
from wmjax.pipeline.evaluate import evaluate
from wmjax.pipeline.evaluate_served import open_client
from wmjax.policy.policy import Policy, load_policy
from wmjax.policy.policy_actor import PolicyActor
from wmjax.rollout.actors import Decision, Plan, Replay
from wmjax.rollout.protocol import Protocol
from wmjax.rollout.results import read_header, read_records
from wmjax.rollout.settings import EvaluateSettings
from wmjax.serving.clients.conventions import drawn_spec
from wmjax.serving.clients.served_policy import ServedPolicy
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import ACTION_SPEC

STEADY = dataclasses.replace(
    PROTOCOL, tasks=(0, 2), episodes_per_task=2, max_steps=28, seed=1, env="tests.serving.steady:SteadyEnv"
)
Executed = dict[tuple[str, int], bytes]


def file_of(protocol: Protocol, folder: Path) -> str:
    """The protocol as the command reads it."""
    names = [field.name for field in dataclasses.fields(protocol) if field.name not in ("name", "oracle")]
    values = {name: getattr(protocol, name) for name in names}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    path = folder / "steady.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def noted(monkeypatch: pytest.MonkeyPatch, kind: type, horizon: int) -> Executed:
    """What an actor of a class decides from now on, by episode and control step."""
    found: Executed = {}
    act = kind.act

    def noting(self, decisions: Sequence[Decision]) -> list[Plan]:
        plans = act(self, decisions)
        for decision, plan in zip(decisions, plans, strict=True):
            for row in range(horizon):
                found[decision.episode.key, decision.step + row] = plan.actions[row].tobytes()
        return plans

    monkeypatch.setattr(kind, "act", noting)
    return found


def outcomes(folder: Path) -> dict[str, tuple]:
    return {r.key: (r.outcome, r.steps, r.settled_hash) for r in read_records(folder)}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return load_policy(save_run(tmp_path_factory.mktemp("run") / "e2", "e2", "flow"), batch_size=2)


@pytest.fixture(scope="module")
def in_process(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, tuple], Executed]:
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        found = noted(patch, PolicyActor, 8)
        evaluate(PolicyActor(policy, STEADY.seed), STEADY, folder, EvaluateSettings(videos=0))
    assert policy._step._cache_size() == 1, "an episode's second decision was compiled anew"
    return outcomes(folder), {name: action for name, action in found.items() if name[0] != "padding/0/random/0"}


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["openpi", "starvla", "vla-eval"])
def test_our_own_server_gives_the_actions_and_outcomes_of_the_policy_in_process(
    policy, in_process, dialect, tmp_path, monkeypatch, capsys
) -> None:
    there = noted(monkeypatch, ServedPolicy, 1 if dialect == "vla-eval" else 8)
    with running(policy, listen=(f"{dialect}:0",), max_batch=2, max_sessions=4, seed=1) as served:
        line = ["--policy", served.url, "--dialect", dialect, "--videos", "0", "--out", str(tmp_path / "out")]
        assert command.main([*line, "--protocol", file_of(STEADY, tmp_path)]) == 0
    assert "libero_spatial/2" in capsys.readouterr().out
    expected, executed = in_process
    assert outcomes(tmp_path / "out") == expected and len(expected) == 4
    assert len(there) > 60 and all(executed[name] == action for name, action in there.items())
    header = read_header(tmp_path / "out")
    assert header["served"] == {"dialect": dialect, "recipe": "fake"} and header["actor"] == "fake-served"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrainingStore:
    """Recordings of the steady simulator from the starts that episodes have of themselves."""
    folder = tmp_path_factory.mktemp("store")
    for index, push in ((1_000_000, 0.5), (1_000_001, 0.1), (1_000_002, 0.3)):
        start = EpisodeId("libero_spatial", 2, "random", index).seed % 1000 / 1000
        write_part(folder, str(index), recorded(index, push, start), SPEC)
    return finalize(folder, SPEC, ACTION_SPEC)


REPLAYED = dataclasses.replace(STEADY, tasks=(2,), max_steps=30)


@pytest.fixture(scope="module")
def replayed(store: TrainingStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    folder = tmp_path_factory.mktemp("replayed")
    spec = action_spec(store, np.arange(3), 8, "none")
    actor = Replay(store, spec)
    evaluate(actor, REPLAYED, folder, EvaluateSettings(workers=1, videos=0), episodes=actor.episodes)
    return outcomes(folder)


def starts(store: TrainingStore) -> dict[float, np.ndarray]:
    """The recorded actions by the first value of the state at the start."""
    return {round(float(np.float32(store.settled_state(i)[0])), 4): store.episode(i).executed for i in range(3)}


def served_replay(url: str, dialect: str, store: TrainingStore, folder: Path, **foreign) -> dict[str, tuple]:
    client, chosen = open_client(url, dialect, foreign)
    assert chosen.horizon is not None
    protocol = dataclasses.replace(REPLAYED, open_loop_horizon=chosen.horizon)
    spec = drawn_spec(chosen, SPEC, chosen.horizon)
    actor = ServedPolicy(client, chosen, spec, "replaying")
    episodes = [EpisodeId(*_parts(entry["episode"])) for entry in store.episodes]
    try:
        evaluate(actor, protocol, folder, EvaluateSettings(workers=1, videos=0), episodes=episodes)
    finally:
        actor.close()
    return outcomes(folder)


def _parts(key: str) -> tuple:
    suite, task, init, index = key.split("/")
    return suite, int(task), init, int(index)


def test_openpis_server_that_recognises_first_observations_succeeds_as_the_replay(store, replayed, tmp_path) -> None:
    seen = []

    def policy():
        recognising = Recognising(starts(store), 10)

        def infer(message):
            seen.append({key: getattr(value, "shape", value) for key, value in message.items()})
            return {"actions": recognising.next(message["observation/state"])[:10]}

        return infer

    with packed_server({"name": "pi0"}, policy) as url:
        assert served_replay(url, "openpi", store, tmp_path / "out", horizon=10) == replayed
    assert {outcome for outcome, *_ in replayed.values()} == {"success", "failure"}
    image = (224, 224, 3)
    assert seen[0] == {
        "observation/image": image, "observation/wrist_image": image, "observation/state": (8,),
        "prompt": "do the task number 2",
    }  # fmt: skip


def test_starvlas_server_succeeds_as_the_replay(store, replayed, tmp_path) -> None:
    def policy():
        recognising = Recognising(starts(store), 6)

        def infer(message):
            (example,) = message["examples"]
            actions = recognising.next(example["state"][0]).astype(np.float64)
            actions[:, 6] = (1 - actions[:, 6]) / 2  # 1 opens
            assert [image.shape for image in example["image"]] == [(224, 224, 3)] * 2 and message["unnorm_key"] is None
            return {"status": "ok", "ok": True, "type": "inference_result", "data": {"actions": actions[None]}}

        return infer

    with packed_server({"action_chunk_size": 6}, policy) as url:
        assert served_replay(url, "starvla", store, tmp_path / "out", state="full") == replayed


class ByKey(PredictModelServer):
    """Replays the episode that vla-eval's episode_start names."""

    def __init__(self, store: TrainingStore) -> None:
        super().__init__(chunk_size=4)
        self.recordings = {entry["episode"]: store.episode(entry["index"]).executed for entry in store.episodes}
        self.shown: list[dict] = []

    def get_observation_params(self):
        return {"send_wrist_image": True, "send_state": True}

    async def on_episode_start(self, config, ctx):
        task = config["task"]
        self.rest = self.recordings[f"{task['suite']}/{task['task_id']}/random/{task['episode_idx']}"]
        await super().on_episode_start(config, ctx)

    def predict(self, obs, ctx):
        self.shown.append(obs)
        chunk, self.rest = self.rest[:4], self.rest[4:]
        hold = np.tile(np.array([0, 0, 0, 0, 0, 0, -1], np.float32), (4 - len(chunk), 1))
        return {"actions": np.concatenate([chunk, hold])}


def test_vla_evals_server_succeeds_as_the_replay(store, replayed, tmp_path) -> None:
    model = ByKey(store)
    with vla_eval_server(model) as url:
        assert served_replay(url, "vla-eval", store, tmp_path / "out") == replayed
    first = model.shown[0]
    assert {name: image.shape for name, image in first["images"].items()} == {
        "agentview": (256, 256, 3), "wrist": (256, 256, 3),
    }  # fmt: skip
    assert first["states"][3] == pytest.approx(np.float32(3.5) - 2 * np.pi, rel=1e-2)  # the nearer antipode


@pytest.fixture
def silent() -> Iterator[str]:
    with packed_server({"name": "pi0"}, lambda: lambda message: {"actions": np.full((5, 7), np.nan)}) as url:
        yield url


def refused(capsys, *arguments: str) -> str:
    line = ["--protocol", "spatial_dev", "--env", STEADY.env, "--tasks", "2", "--episodes", "1", "--videos", "0"]
    assert command.main([*line, *arguments]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_bad_input_is_one_line(silent, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["--policy", "ws://127.0.0.1:9"], "cannot connect to ws://127.0.0.1:9"),
        (["--policy", silent, "--dialect", "opnpi"], "unknown dialect 'opnpi'; did you mean openpi"),
        (["--policy", silent, "--dialect", "starvla"], "does not send its action_chunk_size"),
        (["--policy", silent, "--foreign.preset", "pi"], "unknown foreign.preset 'pi'"),
        (["--policy", silent, "--foreign.wait_steps", "3"], "wait_steps is 3; give a multiple of the 5"),
        (["--policy", silent, "--foreign.image_keys", '["a"]'], "foreign.image_keys has 1 names for 2"),
        (["--policy", silent, "--check"], "--data is missing"),
        (["--policy", "noop", "--foreign.image_size", "9"], "foreign.image_size is set, but no served policy"),
        (["--policy", "noop", "--check"], "--check is given, but --policy is noop"),
        (["--policy", silent], "actions has numbers that are not finite"),
    ):
        error = refused(capsys, *arguments)
        assert error.startswith("error: ") and message in error, error


def test_what_a_server_of_ours_says_is_not_set_again(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with running(seed=0, max_sessions=2) as served:
        for arguments, message in (
            (["--foreign.image_size", "9"], "foreign.image_size is set, but"),
            (["--horizon", "16"], "open_loop_horizon is 16, ws://127"),
            (["--seed", "3"], "seed is 3, the noise of ws://127"),
        ):
            assert message in refused(capsys, "--policy", served.url, *arguments)
    with running(Continuing(1), seed=0, max_sessions=2, realtime="rtc", execution_delay=3) as served:
        error = refused(capsys, "--policy", served.url, "--delay", "8")
        assert "execution_delay is 8, ws://127" in error and "serves for 3 control steps; give --delay 3" in error
    with running(Told(1), seed=0, max_sessions=2) as served:
        error = refused(capsys, "--policy", served.url, "--delay", "3")
        assert "serves for 8 control steps; give --delay 8, for which it was trained" in error


def test_a_server_that_fails_is_one_line(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def infer(message):
        raise KeyError("observation/exterior_image")

    with packed_server({}, lambda: infer) as url:
        assert "refuses: KeyError: 'observation/exterior_image'" in refused(capsys, "--policy", url)
    with packed_server({}, lambda: lambda message: {"actions": np.zeros((3, 7))}) as url:
        assert "predicts 3 actions; lower it" in refused(capsys, "--policy", url)


def test_waiting_holds_still_before_the_first_question(tmp_path) -> None:
    steps = []

    def infer(message):
        steps.append(int(message["observation/state"][1]))
        return {"actions": np.zeros((5, 7))}

    with packed_server({}, lambda: infer) as url:
        line = ["--policy", url, "--foreign.wait_steps", "10", "--videos", "0", "--out", str(tmp_path / "out")]
        protocol = dataclasses.replace(STEADY, tasks=(2,), episodes_per_task=1, max_steps=15)
        assert command.main([*line, "--workers", "1", "--protocol", file_of(protocol, tmp_path)]) == 0
    assert steps == [10, 15, 20]
    assert [record.steps for record in read_records(tmp_path / "out")] == [25]
