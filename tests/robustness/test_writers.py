"""One writer per run: errors name it, the lock of a killed one is released, and an unusable place is one line."""

import errno
import fcntl
import multiprocessing
import multiprocessing.process
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import pytest

import wmjax.convert
import wmjax.diagnose
import wmjax.encode
import wmjax.export
import wmjax.pretrain
import wmjax.probe
import wmjax.record
import wmjax.view
from tests.data.synthetic import make_store
from tests.robustness.sources import CAMERAS, SIZE, edit_table, set_column, write_hdf5, write_v21, write_v30
from tests.rollout.fakes import PROTOCOL, SPEC
from tests.rollout.runs import save_run
from wmjax.core.errors import UserError
from wmjax.core.files import only_one, owned
from wmjax.data.formats import libero_hdf5
from wmjax.data.formats.lerobot.convert import convert
from wmjax.pipeline.evaluate import evaluate
from wmjax.rollout.actors import Random
from wmjax.rollout.settings import EvaluateSettings


@pytest.mark.parametrize("what", ["run", "sweep"])
def test_the_second_writers_error_names_the_first(what: str, tmp_path: Path) -> None:
    with owned(tmp_path / "a" / "b", what, "choose another"):
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        with (
            pytest.raises(UserError, match=f"^{what} .*/a/b is in use by {holder}; wait until it ends, or choose"),
            owned(tmp_path / "a" / "b", what, "choose another"),
        ):
            pytest.fail("two writers")
        with owned(tmp_path / "a" / "c", what, "choose another"):  # another folder is free
            pass
    with owned(tmp_path / "a" / "b", what, "choose another"):  # and so is this one, afterwards
        pass


def _hold(folder: Path, held: Any) -> None:
    with owned(folder, "run", "wait"):
        held.set()
        os.kill(os.getpid(), 9)


def test_the_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "run", held))
    process.start()
    process.join(60)
    assert held.is_set() and process.exitcode == -9
    with owned(tmp_path / "run", "run", "wait"):
        assert str(os.getpid()) in (tmp_path / "run/.lock").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", ["file", "file/below", "file/far/below"])
def test_a_file_in_place_of_a_run_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"run .* is a file, or below one; choose another"):
        owned(tmp_path / place, "run", "choose another").__enter__()
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run is trained there, with a warning; a store that several processes share is not made."""

    def none(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    with owned(tmp_path / "run", "run", "wait"):
        pass
    assert "has no locks" in caplog.text
    with pytest.raises(UserError, match=r"has no locks .*; write to another"), only_one(tmp_path / ".lock"):
        pass


def test_two_conversions_into_one_folder(tmp_path: Path) -> None:
    """The second one is refused, whether the first is at work or has just ended."""
    source = write_v21(tmp_path / "data", (9, 7))
    refusals: list[str] = []

    def again(done: int, total: int) -> None:
        with pytest.raises(UserError) as caught:
            convert(str(source), tmp_path / "out", image_size=SIZE)
        refusals.append(str(caught.value))

    store = convert(str(source), tmp_path / "out", image_size=SIZE, progress=again)
    assert len(store.episodes) == 2 and not (tmp_path / "out/parts").exists()
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    assert len(refusals) == 2 and all(f"is in use by {holder}; wait" in text for text in refusals)
    with pytest.raises(UserError, match="holds a finished store"):
        convert(str(source), tmp_path / "out", image_size=SIZE)


def half(values: Any) -> Any:
    return [[value / 2 for value in row] for row in values]


def rescale_v30(source: Path) -> None:
    path = source / "data/chunk-000/file-000.parquet"
    edit_table(path, lambda table: set_column("action", half(table["action"].to_pylist()))(table))


def rename_v30(source: Path) -> None:
    edit_table(source / "meta/tasks.parquet", set_column("__index_level_0__", ["lift the milk"]))


def shift_state(source: Path) -> None:
    for path in sorted(source.glob("data/*/*.parquet")):
        edit_table(
            path,
            lambda table: set_column("observation.state", half(table["observation.state"].to_pylist()))(table),
        )


def at_the_same_time(source: Path) -> None:
    """Other content of the same size and time of modification, as ``cp -p`` of another version leaves."""
    path = source / "meta/tasks.jsonl"
    before = path.stat()
    path.write_text(path.read_text(encoding="utf-8").replace("bowl", "milk"), encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("write", "change"),
    [(write_v30, rescale_v30), (write_v30, rename_v30), (write_v21, shift_state), (write_v21, at_the_same_time)],
)
def test_a_source_is_known_by_its_content(
    write: Callable[..., Path], change: Callable[[Path], None], tmp_path: Path
) -> None:
    source = write(tmp_path / "data", (9, 7))
    with pytest.raises(KeyboardInterrupt):
        convert(str(source), tmp_path / "out", image_size=SIZE, progress=_stop)
    change(source)
    with pytest.raises(UserError, match="holds episodes of another content"):
        convert(str(source), tmp_path / "out", image_size=SIZE)
    assert not (tmp_path / "out/manifest.json").exists()


def test_an_import_does_not_resume_with_another_layout(tmp_path: Path) -> None:
    """Which is not to be seen from the names of its cameras and values."""
    source, layout = write_v21(tmp_path / "data", (9, 7)), tmp_path / "mine.toml"
    text = 'state = "observation.state"\naction = "action"\n[cameras]\na = "{}"\nb = "{}"\n'
    layout.write_text(text.format(*CAMERAS), encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        convert(str(source), tmp_path / "out", image_size=SIZE, layout=str(layout), progress=_stop)
    layout.write_text(text.format(*reversed(CAMERAS)), encoding="utf-8")
    with pytest.raises(UserError, match="holds episodes of another content"):
        convert(str(source), tmp_path / "out", image_size=SIZE, layout=str(layout))


def test_two_evaluations_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would record every episode once more."""
    refusals: list[str] = []

    def again(*_: Any, **__: Any) -> SimpleNamespace:
        with pytest.raises(UserError) as caught:
            evaluate(Random(SPEC), PROTOCOL, tmp_path / "out", EvaluateSettings())
        refusals.append(str(caught.value))
        return SimpleNamespace(control_steps=1, fill=None)

    monkeypatch.setattr("wmjax.pipeline.evaluate.run_episodes", again)
    evaluate(Random(SPEC), PROTOCOL, tmp_path / "out", EvaluateSettings())
    assert len(refusals) == 1 and f"is in use by process {os.getpid()}" in refusals[0]
    evaluate(Random(SPEC), PROTOCOL, tmp_path / "out", EvaluateSettings())  # and afterwards it goes on
    assert len(refusals) == 2


@pytest.mark.parametrize("place", ["demo_0/actions", "demo_1/actions", "demo_1/obs/ee_pos", "demo_1/obs/agentview_rgb"])
def test_an_hdf5_file_is_known_by_its_content_too(place: str, tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a_demo.hdf5")
    with pytest.raises(KeyboardInterrupt):
        libero_hdf5.convert(path, tmp_path / "out", image_size=16, progress=_stop)
    size = path.stat().st_size
    with h5py.File(path, "a") as file:
        file[f"data/{place}"][0] = 1
    assert path.stat().st_size == size
    with pytest.raises(UserError, match="holds episodes of another files"):
        libero_hdf5.convert(path, tmp_path / "out", image_size=16)


def _stop(done: int, total: int) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("inputs")
    return {
        "data": str(write_v21(root / "data", (9, 7))),
        "store": str(make_store(root / "store", image_size=28, lengths=(9, 13)).folder),
        "run": str(save_run(root / "run", "e0", "regression")),
    }


OUTPUTS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "convert": (wmjax.convert.main, ["{data}"]),
    "record": (wmjax.record.main, ["--episodes", "1"]),
    "record every step": (wmjax.record.main, ["--episodes", "1", "--every-step"]),
    "record random motion": (wmjax.record.main, ["--random-motion", "--episodes", "1"]),
    "view": (wmjax.view.main, ["{store}"]),
    "encode": (wmjax.encode.main, ["--data", "{store}", "--model", "mini"]),
    "diagnose": (wmjax.diagnose.main, ["--run", "{run}"]),
    "pretrain": (wmjax.pretrain.main, ["--config", "e0_mse", "--scale", "smoke"]),
    "probe": (wmjax.probe.main, ["--data", "{store}", "--backbone", "random", "--scale", "smoke"]),
    "export": (wmjax.export.main, ["--run", "{run}"]),
    "export a policy": (wmjax.export.main, ["--run", "{run}", "--policy", "bfloat16"]),
}
"""Commands with an ``--out``, and their arguments."""
FILES = ("view", "diagnose", "probe")
"""Those that write a file."""


@pytest.mark.parametrize("place", ["file", "file/below"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    name: str,
    place: str,
    inputs: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main_, words = OUTPUTS[name]
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", lambda _: pytest.fail("a simulator was started"))
    monkeypatch.setattr("wmjax.encoders.encode.LatentWriter.write", lambda *_: pytest.fail("encoded"))
    monkeypatch.setattr("wmjax.pipeline.diagnose.diagnose", lambda *_: pytest.fail("diagnosed"))
    monkeypatch.setattr("wmjax.pipeline.probe.probe", lambda *_: pytest.fail("probed"))
    monkeypatch.setattr("wmjax.pipeline.train.run", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    line = [word.format(**inputs) for word in words]
    blocked = tmp_path / "file"
    if name in FILES and place == "file":  # a folder stands where they write a file, which another one would replace
        blocked.unlink()
        blocked.mkdir()
    assert main_([*line, "--json" if name == "probe" else "--out", str(tmp_path / place)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and str(blocked) in last
    assert blocked.is_dir() or blocked.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["manifest.json", "frames.npy", "train.parquet", "header.json"])
@pytest.mark.parametrize("command", FILES)
def test_a_report_replaces_no_data(
    command: str, name: str, inputs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main_, words = OUTPUTS[command]
    (tmp_path / name).write_text("mine", encoding="utf-8")
    line = [word.format(**inputs) for word in words]
    assert main_([*line, "--json" if command == "probe" else "--out", str(tmp_path / name)]) == 2
    assert "a data file exists there and was not overwritten; choose another name" in capsys.readouterr().err
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"
