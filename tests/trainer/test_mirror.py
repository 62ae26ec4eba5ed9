"""The copy of a run at a URL: another machine goes on from it, bit for bit, and what is there is whole or absent."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from benchmarks.kill_chain import differences
from tests.data.synthetic import make_store
from tests.trainer.toy import fit_toy, toy_config, toy_inputs
from wmjax.core.errors import UserError
from wmjax.core.location import Remote
from wmjax.policy.fetch import fetch_policy
from wmjax.train import main as train_command
from wmjax.trainer import checkpoint
from wmjax.trainer.config import Inputs
from wmjax.trainer.mirror import Mirror, steps_at

ROOT = Path(__file__).parents[2]
CONFIG = toy_config(steps=12, max_to_keep=2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return toy_inputs(make_store(tmp_path_factory.mktemp("store")), CONFIG)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Remote]:
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path / "cache"))
    yield Remote("memory://bucket/run")
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Remote) -> Remote:
    if request.param == "memory":
        return memory
    if request.param == "file":
        return Remote(f"file://{tmp_path / 'bucket'}/run")
    values = {"AWS_ENDPOINT_URL": request.getfixturevalue("s3_server"), "AWS_ACCESS_KEY_ID": "x"}
    for name, value in {**values, "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").makedirs(f"bucket-{os.getpid()}", exist_ok=True)
    return Remote(f"s3://bucket-{os.getpid()}/{tmp_path.name}/run")


class LostError(Exception):
    """The machine is gone."""


def train_until(step: int, mirror: Mirror, inputs: Inputs) -> None:
    """Loses the machine, its disk included, right after the checkpoint of a step was copied."""

    def lose(at: int, *_: object) -> None:
        if at == step:
            raise LostError

    with pytest.raises(LostError):
        fit_toy(inputs, mirror.run, CONFIG, copy=mirror, on_checkpoint=lose)
    shutil.rmtree(mirror.run)


def test_a_run_goes_on_on_another_machine(place: Remote, inputs: Inputs, tmp_path: Path) -> None:
    expected = fit_toy(inputs, tmp_path / "whole", CONFIG)
    train_until(8, Mirror(place), inputs)
    mirror = Mirror(place)
    assert steps_at(place.files()) == [4, 8] and not mirror.run.exists()
    mirror.fetch()
    assert checkpoint.complete_steps(mirror.run / "checkpoints") == [8]
    found = fit_toy(inputs, mirror.run, CONFIG, copy=mirror)
    mirror.push()
    assert found.name == expected.name == "00000012" and differences(mirror.run, tmp_path / "whole") == []
    assert steps_at(place.files()) == [8, 12]  # the older one was removed here, and therefore there
    assert (place / "metrics.jsonl").read_bytes() == (mirror.run / "metrics.jsonl").read_bytes()
    before = sorted(place.files())
    mirror.push()
    assert sorted(place.files()) == before and not [name for name in before if ".lock" in name or "/." in name]


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_two_processes_without_a_common_folder_save_and_resume(place: Remote, tmp_path: Path) -> None:
    """What one of them could not copy ends both, and leaves the checkpoint before."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.apart", port, str(index), place.url],
            env={**os.environ, **flags, "WMJAX_CACHE": str(tmp_path / str(index))},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in (0, 1)
    ]
    printed = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert "00000003: lacks .part-1.json, one of 2 processes could not copy its part" in printed[0]
    assert "00000003: cannot be written" in printed[1]
    assert "WARNING" not in printed[0] + printed[1]
    assert steps_at(place.files()) == [1, 2] and not [name for name in place.files() if ".part" in name]
    assert [name for name in place.files() if "00000002/ema/ocdbt.process_1/d/" in name]
    (folder,) = (tmp_path / "1/mirrored").iterdir()
    assert folder.name.endswith("-process-1")
    assert checkpoint.complete_steps(folder / "checkpoints") == [2]
    checkpoint.verify(fetch_policy(place), ("ema",))


def saved_run(run: Path, steps: tuple[int, ...], assets: bool = True) -> None:
    """A run's folder with checkpoints of a small tree."""
    for step in steps:
        tree = {"kernel": np.full(3, step, np.float32)}
        checkpoint.save(run / "checkpoints", step, {"ema": tree, "state": tree}, {"experiment": {}}, max_to_keep=10)
    if assets:
        (run / "assets/tokenizer").mkdir(parents=True)
        (run / "assets/tokenizer/vocabulary.json").write_text("{}")


def test_a_checkpoint_is_whole_or_absent_at_every_moment(
    memory: Remote, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The network fails at every file in turn; in between, what has a manifest there is intact."""
    mirror, put, uploads = Mirror(memory), MemoryFileSystem.put_file, []
    saved_run(mirror.run, (1,))

    def failing(self: MemoryFileSystem, source: str, target: str, **kwargs: object) -> None:
        uploads.append(target)
        if len(uploads) == allowed + 1:
            raise ConnectionError("the network is gone")
        put(self, source, target, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "put_file", failing)
    allowed = 0
    while True:
        uploads.clear()
        try:
            mirror.push()
        except UserError as error:
            assert "cannot be written (ConnectionError: the network is gone)" in str(error)
            assert f"{mirror.run} has what was to be copied" in str(error)
        else:
            break
        assert steps_at(memory.files()) == []
        with pytest.raises(UserError, match="it has no complete checkpoint"):
            fetch_policy(memory)
        allowed += 1
    assert allowed > 10 and steps_at(memory.files()) == [1] and uploads[-1].endswith("00000001/manifest.json")
    checkpoint.verify(fetch_policy(memory), ("ema",))


def test_a_network_that_fails_does_not_stop_the_training(
    memory: Remote, inputs: Inputs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = Mirror(memory)
    broken = MemoryFileSystem.find

    def refuse(self: MemoryFileSystem, *_: object, **__: object) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(MemoryFileSystem, "find", refuse)
    fit_toy(inputs, mirror.run, CONFIG, copy=mirror)
    said = [record.message for record in caplog.records if "no answer" in record.message]
    assert len(said) == 3 and all("has what was to be copied" in line for line in said)
    monkeypatch.setattr(MemoryFileSystem, "find", broken)
    mirror.push()
    assert steps_at(memory.files()) == [8, 12]


def test_a_damaged_copy_is_passed_over(memory: Remote, caplog: pytest.LogCaptureFixture) -> None:
    mirror = Mirror(memory)
    saved_run(mirror.run, (1, 2))
    mirror.push()
    fs = fsspec.filesystem("memory")
    (victim,) = [name for name in memory.files() if "00000002/ema/" in name and name.endswith("_METADATA")][:1]
    fs.pipe_file(f"/bucket/run/{victim}", b"damaged")
    shutil.rmtree(mirror.run)
    mirror.fetch()
    assert checkpoint.complete_steps(mirror.run / "checkpoints") == [1]
    assert any("step 2" in line and "damaged" in line for line in caplog.messages)
    assert not list(mirror.run.glob(".*"))
    fs.pipe_file(f"/bucket/run/{victim.replace('00000002', '00000001')}", b"damaged")
    shutil.rmtree(mirror.run)
    with pytest.raises(UserError, match="none of its 2 checkpoints is intact"):
        mirror.fetch()


def test_what_is_further_here_stays(memory: Remote) -> None:
    mirror = Mirror(memory)
    saved_run(mirror.run, (1,))
    mirror.push()
    saved_run(mirror.run, (2,), assets=False)
    (mirror.run / "metrics.jsonl").write_text("of step 2\n")
    mirror.fetch()
    assert checkpoint.complete_steps(mirror.run / "checkpoints") == [1, 2]
    assert (mirror.run / "metrics.jsonl").read_text() == "of step 2\n"
    saved_run(mirror.run, (1,), assets=False)  # another one of the same step, as after a damage
    mirror.push()
    name = "checkpoints/00000001/manifest.json"
    assert (memory / name).read_bytes() == (mirror.run / name).read_bytes() and steps_at(memory.files()) == [1, 2]


def test_a_policy_is_fetched_without_the_optimizers_state(place: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(place)
    saved_run(mirror.run, (1, 2))
    mirror.push()
    folder = fetch_policy(place)
    assert folder.name == "00000002" and {path.name for path in folder.iterdir()} == {
        "ema",
        "manifest.json",
        "manifest.sha256",
    }
    checkpoint.verify(folder, ("ema",))
    assert (folder.parent.parent / "assets/tokenizer/vocabulary.json").is_file()
    assert fetch_policy(place / "checkpoints" / "00000001").name == "00000001"

    def refuse(*_: object) -> None:
        raise AssertionError("downloaded again")

    monkeypatch.setattr(Remote, "download", refuse)
    assert fetch_policy(place) == folder
    with pytest.raises(UserError, match=r"no policy, complete are 1, 2; name a run's URL"):
        fetch_policy(place / "checkpoints" / "00000003")


@pytest.mark.parametrize("url", ["memory://bucket/nothing", "file:///nonexistent/run"])
def test_nothing_there_is_no_policy(memory: Remote, url: str) -> None:
    with pytest.raises(UserError, match="it has no complete checkpoint"):
        fetch_policy(Remote(url))


def test_a_place_that_cannot_be_written_to_is_named(memory: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(memory)
    saved_run(mirror.run, (1,))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("403")

    monkeypatch.setattr(MemoryFileSystem, "put_file", refuse)
    with pytest.raises(UserError, match=r"memory://bucket/run: cannot be written, no permission \(403\); log in"):
        mirror.push()


def test_a_network_that_fails_while_fetching_is_no_damage(memory: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest checkpoint stays at the URL: were the older one taken, the next push would remove it."""
    mirror = Mirror(memory)
    saved_run(mirror.run, (1, 2))
    mirror.push()
    shutil.rmtree(mirror.run / "checkpoints/00000002")

    def refuse(*_: object, **__: object) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(MemoryFileSystem, "get_file", refuse)
    with pytest.raises(UserError, match=r"cannot be copied to .*no answer"):
        mirror.fetch()
    assert steps_at(memory.files()) == [1, 2]


def test_a_fetch_that_is_interrupted_is_made_again(memory: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is lost at every file in turn; a checkpoint that is here has the metrics of its step beside it."""
    mirror, get, fetched = Mirror(memory), MemoryFileSystem.get_file, []
    saved_run(mirror.run, (1,))
    (mirror.run / "metrics.jsonl").write_text("of step 1\n")
    mirror.push()
    shutil.rmtree(mirror.run)

    def failing(self: MemoryFileSystem, source: str, target: str, **kwargs: object) -> None:
        fetched.append(target)
        if len(fetched) == allowed + 1:
            raise KeyboardInterrupt
        get(self, source, target, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "get_file", failing)
    for allowed in range(100):  # noqa: B007
        fetched.clear()
        try:
            mirror.fetch()
        except KeyboardInterrupt:
            assert checkpoint.complete_steps(mirror.run / "checkpoints") == []
        else:
            break
    assert allowed > 10 and checkpoint.complete_steps(mirror.run / "checkpoints") == [1]
    assert (mirror.run / "metrics.jsonl").read_text() == "of step 1\n" and not list(mirror.run.glob(".*"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/manifest.json", r"memory://bucket/run: holds manifest.json, but no run's config.json; name another URL"),
        ("", r"memory://bucket/run: a file, not a folder; name the folder"),
    ],
)
def test_what_is_no_run_is_left_alone(memory: Remote, name: str, message: str) -> None:
    fsspec.filesystem("memory").pipe_file(f"/bucket/run{name}", b"{}")
    with pytest.raises(UserError, match=message):
        Mirror(memory).fetch()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_seeds_side_by_side_keep_no_copy(memory: Remote, capsys: pytest.CaptureFixture[str], dry: list[str]) -> None:
    assert train_command(["--run", memory.url, "--scale", "smoke", "--train.seeds", "2", *dry]) == 2
    assert "--run is memory://bucket/run, but train.seeds keeps no copies of its runs" in capsys.readouterr().err


def test_a_disk_without_a_place_for_it_is_named(memory: Remote) -> None:
    mirror = Mirror(Remote("file:///proc/run"))
    saved_run(mirror.run, (1,))
    with pytest.raises(UserError, match=r"^file:///proc/run: cannot be written \(.*No such file"):
        mirror.push()


def test_the_settings_come_first(memory: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first push that is interrupted leaves what the next one takes for a run."""
    mirror, put = Mirror(memory), MemoryFileSystem.put_file
    mirror.run.mkdir(parents=True)
    for name in ("a.txt", "config.json"):
        (mirror.run / name).write_text("{}")

    def failing(self: MemoryFileSystem, source: str, target: str, **kwargs: object) -> None:
        if not target.endswith("config.json"):
            raise KeyboardInterrupt
        put(self, source, target, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(MemoryFileSystem, "put_file", failing)
        mirror.push()
    mirror.fetch()
    mirror.push()
    assert memory.files() == ["a.txt", "config.json"]


def test_a_chain_of_file_systems_keeps_no_run() -> None:
    with pytest.raises(UserError, match="'::' chains file systems"):
        Mirror(Remote("file:///tmp/a::b"))


def test_a_policy_that_was_trained_again_is_fetched_again(memory: Remote) -> None:
    """Its files have other names, as Orbax chooses them."""
    mirror = Mirror(memory)
    saved_run(mirror.run, (1,))
    mirror.push()
    surplus = fetch_policy(memory) / "ema/of_the_old_one"
    surplus.write_text("")
    saved_run(mirror.run, (1,), assets=False)
    mirror.push()
    checkpoint.verify(fetch_policy(memory), ("ema",))
    assert not surplus.exists()


def test_what_was_fetched_is_not_sent_again(memory: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Mirror(memory)
    saved_run(first.run, (1,))
    first.push()
    shutil.rmtree(first.run)
    second, sent = Mirror(memory), []
    second.fetch()
    monkeypatch.setattr(Remote, "upload", lambda self, folder, names: sent.extend(names))
    second.push()
    assert sent == []
    (second.run / "metrics.jsonl").write_text("{}\n")
    second.push()
    assert sent == ["metrics.jsonl"]


def test_what_is_removed_here_is_removed_there(memory: Remote) -> None:
    """Such as TensorBoard's events, which each start writes anew."""
    mirror = Mirror(memory)
    saved_run(mirror.run, (1,))
    (mirror.run / "events.1").write_text("")
    mirror.push()
    (mirror.run / "events.1").rename(mirror.run / "events.2")
    mirror.push()
    assert [name for name in memory.files() if name.startswith("events")] == ["events.2"]
