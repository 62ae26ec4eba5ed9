"""An episode as a Rerun file: what is logged, with or without a policy, and what is read back from the file.

``rerun-sdk`` takes 520 MB when installed (0.41.0), too much for the tests' environment. The tests that write a file
skip themselves without it; what is logged is decided without the package, and tested always.
"""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tests.data.synthetic import make_latents, make_store
from tests.rollout.runs import save_run
from wmjax import view
from wmjax.core.errors import UserError
from wmjax.data.latents import LatentStore
from wmjax.data.store import TrainingStore
from wmjax.policy.recorded_decisions import RecordedDecisions, decide_on_recording, load_for_recording
from wmjax.reporting.rerun_file import CELL, Curves, Pictures, episode_entities, write_rerun
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

needs_rerun = pytest.mark.skipif(
    importlib.util.find_spec("rerun") is None, reason="rerun-sdk (520 MB) is not installed: pip install '.[rerun]'"
)
LENGTH, FRAMES = 29, 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrainingStore:
    return make_store(tmp_path_factory.mktemp("store"), lengths=(LENGTH, 18))


@pytest.fixture(scope="module")
def latents(store: TrainingStore, tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return make_latents(tmp_path_factory.mktemp("latents"), store)


def decisions(future: int = 2) -> RecordedDecisions:
    """Decisions of noise on the first episode."""
    random = np.random.default_rng(0)
    numbers = {name: random.random(FRAMES, np.float32) for name in ("world/error", "world/copy_error", "memory/gate")}
    observed, imagined = random.random((FRAMES, 4, 5), np.float32), random.random((FRAMES, future, 4, 5), np.float32)
    return RecordedDecisions(random.random((FRAMES, 7), np.float32), numbers, observed, imagined)


def test_an_episodes_cameras_state_and_actions_are_its_own(store: TrainingStore) -> None:
    found, episode = dict(episode_entities(store, 0)), store.episode(0)
    assert list(found) == ["camera/agentview", "camera/robot0_eye_in_hand", "state", "action", "executed"]
    wrist, state, executed = found["camera/robot0_eye_in_hand"], found["state"], found["executed"]
    assert isinstance(wrist, Pictures) and isinstance(state, Curves) and isinstance(executed, Curves)
    np.testing.assert_array_equal(wrist.images, episode.images[:, 1])
    np.testing.assert_array_equal(wrist.steps, np.arange(0, LENGTH, 4))
    np.testing.assert_array_equal(state.values[:, 1], np.arange(LENGTH))
    assert state.names == OBSERVATION_SPEC.state and executed.names == ACTION_SPEC.names
    np.testing.assert_array_equal(executed.values, episode.executed)


def test_latents_are_colours_on_their_grid(store: TrainingStore, latents: LatentStore) -> None:
    found = {name: e for name, e in episode_entities(store, 0, latents) if name.startswith("latents/")}
    assert len(found) == 2
    for pictures in found.values():
        assert isinstance(pictures, Pictures) and pictures.images.shape == (FRAMES, 4 * CELL, 4 * CELL, 3)
        assert (pictures.images[:, :CELL, :CELL] == pictures.images[:, :1, :1]).all() and np.ptp(pictures.images) > 100


def test_a_policys_decisions_stand_beside_the_recording(store: TrainingStore) -> None:
    made = decisions()
    found = {name: e for name, e in episode_entities(store, 0, None, made) if name.startswith("policy/")}
    assert list(found) == [
        "policy/action",
        "policy/world",
        "policy/memory",
        "policy/came",
        "policy/imagined/frame_1_ahead",
        "policy/imagined/frame_2_ahead",
    ]
    world = found["policy/world"]
    assert isinstance(world, Curves) and world.names == ("world/error", "world/copy_error")
    np.testing.assert_array_equal(world.values[:, 0], made.numbers["world/error"])
    bare = dataclasses.replace(made, numbers={}, observed=None, imagined=None)
    names = [name for name, _ in episode_entities(store, 0, None, bare)]
    assert [name for name in names if name.startswith("policy")] == ["policy/action"]


@pytest.mark.slow
def test_a_policy_decides_on_every_recorded_frame(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", image_size=112, lengths=(13,))
    found = decide_on_recording(
        load_for_recording(str(save_run(tmp_path / "run", "e2", "regression")), store), store, 0
    )
    assert found.action.shape == (4, 7) and found.imagined is not None and found.observed is not None
    assert found.imagined.shape[0] == 4 and found.imagined.shape[2:] == found.observed.shape[1:]
    error = found.numbers["world/error"]
    assert np.isnan(error[0]) and np.isfinite(error[1:]).all()
    # The error is that between what was imagined one frame before and what came.
    expected = np.square(found.imagined[:-1, 0] - found.observed[1:]).mean((-1, -2))
    assert np.corrcoef(expected, error[1:])[0, 1] > 0.5
    with pytest.raises(UserError, match=r"image_size"):
        load_for_recording(str(tmp_path / "run"), make_store(tmp_path / "small", image_size=56, lengths=(13,)))


def test_bad_input_is_one_line(
    store: TrainingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, message in (
        (["--run", "mini"], "--run adds a policy's decisions to a --rerun FILE.rrd"),
        (["--rerun", str(tmp_path / "out.html")], "files that end in .rrd"),
    ):
        assert view.main([str(store.folder), *words]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "rerun", None)
    assert view.main([str(store.folder), "--rerun", str(tmp_path / "out.rrd")]) == 2
    error = capsys.readouterr().err
    assert "--rerun needs the package rerun-sdk" in error and "pip install 'wmjax[rerun]'" in error
    assert not list(tmp_path.iterdir())


@needs_rerun
def test_the_file_holds_what_was_logged(store: TrainingStore, latents: LatentStore, tmp_path: Path) -> None:
    write_rerun(tmp_path / "out.rrd", store, [0, 1], latents)
    assert [path.name for path in tmp_path.iterdir()] == ["out.rrd"]
    found = read_back(tmp_path / "out.rrd")
    assert {path.split("/")[1] for path in found} >= {"episode_0", "episode_1"}
    state = found["/episode_0/state"]
    np.testing.assert_allclose(state["values"], store.episode(0).state, rtol=1e-6)
    np.testing.assert_array_equal(state["steps"], np.arange(LENGTH))
    np.testing.assert_array_equal(found["/episode_0/camera/agentview"]["steps"], np.arange(0, LENGTH, 4))
    assert len([path for path in found if path.startswith("/episode_1/latents/")]) == 2


def read_back(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Control steps and, of curves, the values of each path of a Rerun file, by Rerun's own reader."""
    from rerun.chunk import RrdReader

    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for chunk in RrdReader(str(path)).stream().to_chunks():
        batch = chunk.to_record_batch()
        if chunk.is_static or "step" not in batch.schema.names:
            continue
        steps = np.asarray(batch.column("step").to_pylist())
        rows = batch.column("Scalars:scalars").to_pylist() if "Scalars:scalars" in batch.schema.names else []
        parts.setdefault(chunk.entity_path, []).append((steps, np.asarray(rows)))
    found = {}
    for name, several in parts.items():
        steps, order = np.concatenate([s for s, _ in several]), np.argsort(np.concatenate([s for s, _ in several]))
        values = np.concatenate([v for _, v in several])
        found[name] = {"steps": steps[order], "values": values[order] if len(values) else values}
    return found
