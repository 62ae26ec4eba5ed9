"""Stores at a URL: the same samples as from the disk, few and small requests, one clear line for whatever is wrong."""

import dataclasses
import json
import multiprocessing
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.data.synthetic import make_latents, make_store
from wmjax import convert, diagnose, evaluate, export, probe, record, train, view
from wmjax.core import location as remote
from wmjax.core.errors import UserError
from wmjax.core.location import Remote, RemoteArray, local, location
from wmjax.core.options import CommandParser
from wmjax.core.specs import EncoderSpec
from wmjax.core.store_files import StoreWriter
from wmjax.data.latents import LatentStore, LatentWriter
from wmjax.data.loader import LoaderConfig, make_loader
from wmjax.data.store import TrainingStore, finalize, write_part
from wmjax.encoders import export as export_latents
from wmjax.experiment import config
from wmjax.experiment.checks import given_store
from wmjax.experiment.plan import save_settings
from wmjax.pipeline import demonstrations, latents
from wmjax.sim.libero import ACTION_SPEC

BUCKET = "memory://bucket"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    store = make_store(tmp_path_factory.mktemp("store"))
    return store, make_latents(tmp_path_factory.mktemp("latents"), store)


@pytest.fixture
def bucket(stores):
    """The two stores in a bucket: their URLs."""
    fs = fsspec.filesystem("memory")
    for name, store in zip(("demos", "latents"), stores, strict=True):
        for file in (*store.manifest["files"], "manifest.json"):
            fs.pipe_file(f"/bucket/{name}/{file}", (store.folder / file).read_bytes())
    yield f"{BUCKET}/demos", f"{BUCKET}/latents"
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture
def requests(monkeypatch):
    """Every read of the bucket: (path, bytes)."""
    made, read = [], MemoryFileSystem.cat_file

    def cat_file(self, path, start=None, end=None, **kwargs):
        found = read(self, path, start, end, **kwargs)
        made.append((path.rsplit("/", 1)[-1], len(found)))
        return found

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return made


def damage(path, change):
    fs = fsspec.filesystem("memory")
    fs.pipe_file(path, change(fs.cat_file(path)))


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_the_same_store_wherever_it_lies(stores, bucket):
    store, latents = TrainingStore(bucket[0]), LatentStore(bucket[1])
    assert (store.hash, latents.hash) == tuple(made.hash for made in stores)
    latents.check(store)
    for name in ("state", "action", "executed", "frame_step", "frame_row"):
        np.testing.assert_array_equal(getattr(store, name), getattr(stores[0], name))
    mine, theirs = store.episode(2), stores[0].episode(2)
    np.testing.assert_array_equal(mine.images, theirs.images)
    np.testing.assert_array_equal(mine.settled_state, theirs.settled_state)
    for opened in (store, latents):
        opened.verify()
        opened.verify_once()
    names = {path.rsplit("/", 1)[-1] for path in fsspec.filesystem("memory").find("/bucket")}
    assert names == {"manifest.json", *stores[0].manifest["files"], *stores[1].manifest["files"]}, "nothing is written"


def test_indexing_is_that_of_a_memory_map(stores, bucket):
    frames, latents = TrainingStore(bucket[0]).frames, LatentStore(bucket[1]).latents
    rng = np.random.default_rng(0)
    some, views = rng.integers(0, len(frames), 9), rng.integers(0, 3, 9)
    keys = {
        "frames": (3, -1, slice(2, 7), slice(None), slice(9, 0, -3), slice(5, 5), some, some - len(frames), np.int64(4),
                   (some, 1), (slice(2, 9), 0), (slice(None), slice(1, 2)), some.reshape(3, 3), np.zeros(0, int)),
        "latents": (0, (0, some), (1, slice(3, 8)), (2, 5), (views[:, None], some[:, None] // 2 + np.arange(3)),
                    (views, some, 4), (0, 1, 2, 3), (slice(None), 3, slice(1, 4))),
    }  # fmt: skip
    for array, mapped, name in ((frames, stores[0].frames, "frames"), (latents, stores[1].latents, "latents")):
        assert isinstance(array, RemoteArray)
        assert (array.shape, array.dtype, array.ndim, len(array)) == (
            mapped.shape, mapped.dtype, mapped.ndim, len(mapped))  # fmt: skip
        for key in keys[name]:
            found, expected = array[key], np.asarray(mapped[key])
            assert found.dtype == expected.dtype and found.flags.writeable, key
            np.testing.assert_array_equal(found, expected, str(key), strict=True)
        np.testing.assert_array_equal(np.asarray(array), mapped)
        assert np.array(array, np.float32).dtype == np.float32
    for key in (len(frames), -len(frames) - 1, [0, 99], None, ..., 1.5, True, np.ones(len(frames), bool),
                (slice(None), [0, 1]), (0,) * 6):  # fmt: skip
        with pytest.raises(IndexError):
            frames[key]
    with pytest.raises(ValueError):
        np.array(frames, copy=False)


CONFIG = LoaderConfig(batch_size=8, seed=3, num_epochs=2, drop_remainder=False, threads=2)


def batches(store, latents, host, hosts):
    config = dataclasses.replace(CONFIG, shard_index=host, shard_count=hosts)
    return list(make_loader(store, latents, np.arange(1, len(store.episodes)), config))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_samples_are_bit_equal_on_every_host(stores, bucket, hosts):
    opened = TrainingStore(bucket[0]), LatentStore(bucket[1])
    for host in range(hosts):
        mine, theirs = batches(*opened, host, hosts), batches(*stores, host, hosts)
        assert len(mine) == len(theirs) > 5
        for one, other in zip(mine, theirs, strict=True):
            assert one.keys() == other.keys() >= {"images", "latents", "future"}
            for name, value in one.items():
                np.testing.assert_array_equal(value, other[name], name, strict=True)


def test_a_host_reads_the_rows_of_its_own_samples(stores, bucket, requests, monkeypatch):
    monkeypatch.setattr(remote, "GAP_BYTES", 0)  # these stores are so small that all their rows are near each other
    opened, read = (TrainingStore(bucket[0]), LatentStore(bucket[1])), []
    for host, hosts in ((0, 1), (0, 4), (1, 4), (2, 4), (3, 4)):
        requests.clear()
        count = len(batches(*opened, host, hosts))
        read.append(sum(size for _, size in requests))
        assert len(requests) <= count * 2 * CONFIG.batch_size // hosts, "a row of frames and a row of latents a sample"
    assert all(0.2 * read[0] < size < 0.3 * read[0] for size in read[1:]), read


def test_opening_and_reading_make_few_requests(stores, bucket, requests):
    store = TrainingStore(bucket[0])
    small = ["action.npy", "executed.npy", "frame_step.npy", "manifest.json", "state.npy"]
    assert sorted(name for name, _ in requests) == sorted([*small, "frames.npy"])
    assert dict(requests)["frames.npy"] == remote.HEADER_BYTES
    requests.clear()
    row = store.frames[0].nbytes
    requests.clear()
    for key in (slice(3, 11), np.array([10, 3, 5, 5, 4]), (slice(3, 11), 1)):
        store.frames[key]
    assert requests == [("frames.npy", size) for size in (8 * row, 8 * row, 7 * row + row // 2)]


def test_the_gap_between_rows_decides_what_is_one_request(bucket, requests, monkeypatch):
    frames = TrainingStore(bucket[0]).frames
    row = frames[0].nbytes
    for gap, count in ((0, 3), (row - 1, 3), (row, 2), (2 * row, 1)):
        monkeypatch.setattr(remote, "GAP_BYTES", gap)
        requests.clear()
        frames[np.array([0, 1, 3, 6])]
        assert len(requests) == count, gap


def sums(folders):
    """In another process."""
    store, latents = TrainingStore(folders[0]), LatentStore(folders[1])
    return int(store.frames[[1, 5]].sum()), float(latents.latents[0, [1, 5]].sum(dtype=np.float64))


def test_threads_and_processes_share_nothing_that_breaks(stores, bucket):
    frames, expected = TrainingStore(bucket[0]).frames, np.asarray(stores[0].frames)
    rows = [np.random.default_rng(seed).integers(0, len(frames), 5) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for index, found in zip(rows, pool.map(frames.__getitem__, rows), strict=True):
            np.testing.assert_array_equal(found, expected[index])
    copied = pickle.loads(pickle.dumps(frames))
    np.testing.assert_array_equal(copied[rows[0]], expected[rows[0]])
    folders = [f"file://{store.folder}" for store in stores]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(sums, (folders,)) == sums([store.folder for store in stores])


def test_a_changed_byte_is_found(bucket):
    def flip(content):
        return content[:-1] + bytes([content[-1] ^ 1])

    store, latents = TrainingStore(bucket[0]), LatentStore(bucket[1])
    for opened, name in ((store, "frames.npy"), (latents, "latents.npy")):
        damage(f"{opened.folder.url[len('memory:/') :]}/{name}", flip)
        with pytest.raises(UserError, match=f"{opened.folder}/{name}: sha256 is .*copy it there again"):
            opened.verify()
    damage("/bucket/demos/settled.npz", flip)
    with pytest.raises(UserError, match=r"demos/settled\.npz: sha256"):
        store.settled_state(0)
    damage("/bucket/demos/action.npy", flip)
    with pytest.raises(UserError, match=r"demos/action\.npy: sha256"):
        TrainingStore(bucket[0])


def test_missing_and_truncated_objects(bucket):
    store, fs = TrainingStore(bucket[0]), fsspec.filesystem("memory")
    damage("/bucket/demos/frames.npy", lambda content: content[:-100])
    with pytest.raises(UserError, match=r"ends at byte .*truncated"):
        store.frames[-1]
    with pytest.raises(UserError, match=r"memory://bucket/demos/frames\.npy: \d+ bytes, its manifest says"):
        TrainingStore(bucket[0])
    fs.rm_file("/bucket/demos/frames.npy")
    with pytest.raises(UserError, match="missing") as error:
        store.frames[0]
    one_line(error)
    with pytest.raises(UserError, match=r"demos/frames\.npy: missing; copy it there again"):
        TrainingStore(bucket[0])
    with pytest.raises(UserError, match=r"memory://nowhere/x: no wmjax latent store there \(manifest\.json is missing"):
        LatentStore("memory://nowhere/x")
    damage("/bucket/latents/latents.npy", lambda content: b"x" * len(content))
    with pytest.raises(UserError, match=r"no \.npy"):
        LatentStore(bucket[1])


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (PermissionError("403\nforbidden"), "cannot be read, no permission .403 forbidden.; log in"),
        (ConnectionError("no route"), "cannot be read .ConnectionError: no route.; check the URL, the network"),
        (TimeoutError(), "cannot be read .TimeoutError"),
        (RuntimeError("backend's own"), "cannot be read .RuntimeError: backend's own"),
    ],
)
def test_a_bucket_that_does_not_answer(bucket, monkeypatch, raised, said):
    frames = TrainingStore(bucket[0]).frames

    def refuse(self, *arguments, **settings):
        raise raised

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    for read in (lambda: TrainingStore(bucket[0]), lambda: frames[0]):
        with pytest.raises(UserError, match=f"memory://bucket/demos/.*{said}") as error:
            read()
        one_line(error)


@pytest.mark.parametrize(("url", "package"), [("gs://b/x", "gcsfs"), ("s3://b/x", "s3fs")])
def test_a_missing_backend(monkeypatch, url, package):
    monkeypatch.setitem(sys.modules, package, None)
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(known, url.partition(":")[0], raising=False)  # another test may have imported it
    with pytest.raises(
        UserError, match=f"{url}/manifest.json: {url[:2]}:// needs a package .*; pip install {package}$"
    ) as error:
        TrainingStore(url)
    one_line(error)
    with pytest.raises(UserError, match=r"unknown scheme of sg://b/x/manifest\.json: 'sg'; did you mean s3 or gs"):
        TrainingStore("sg://b/x")


def test_places():
    for url in ("gs://bucket/demos", "s3://b/a", "memory://x", "file:///tmp/x", "file:///tmp/a b%20ü?#[1]*"):
        assert str(location(url)) == url and location(location(url)) == Remote(url)
    for path in ("/tmp/x", "x/y", "C:x", "gs:/bucket", "./a://b"):
        assert location(path) == local(path) == type(local(path))(path)
    assert str(Remote("gs://b/a/") / "x.npy") == "gs://b/a/x.npy" and Remote("gs://b/a/").name == "a"


@pytest.mark.parametrize(
    ("spelled", "url"),
    [("GS://b/Run/", "gs://b/Run"), ("file:///tmp/a/../x//y/", "file:///tmp/x/y"), ("s3://b//a///", "s3://b//a")],
)
def test_two_spellings_of_a_url_are_one_place(spelled: str, url: str) -> None:
    assert location(spelled) == location(url) == Remote(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://", r"gs://: names no place; write gs://BUCKET/FOLDER"),
        ("memory:///", "names no place"),
        ("file://runs/e2", r"file://runs/e2: no absolute path; write file:///FOLDER, with three slashes"),
        ("file://", "no absolute path"),
    ],
)
def test_a_url_that_names_no_place_is_refused(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        location(url)


def test_a_file_on_a_file_system_is_replaced_when_the_new_one_is_whole(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/a").write_text("old")
    place = location(f"file://{tmp_path}/there")
    place.upload(tmp_path / "here", ["a"])

    def half(source, target):
        Path(target).write_text("ne")
        raise KeyboardInterrupt

    (tmp_path / "here/a").write_text("new")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "copyfile", half)
        place.upload(tmp_path / "here", ["a"])
    assert (place / "a").read_text() == "old"
    place.upload(tmp_path / "here", ["a"])
    assert (place / "a").read_text() == "new" and place.files() == ["a"]


def test_names_that_lead_out_of_a_folder_are_refused():
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/outside/run/a/../../b", b"")
    try:
        with pytest.raises(UserError, match=r"holds an object named 'a/\.\./\.\./b', which is not a file below it"):
            Remote("memory://outside/run").files()
    finally:
        fs.rm("/outside", recursive=True)


def test_nothing_is_written_to_a_url(stores):
    store = stores[0]
    writes = (
        lambda url: StoreWriter(url, "x", 1),
        lambda url: LatentWriter(url, stores[1].spec, store, stores[1].views, "jax"),
        lambda url: finalize(url, store.spec, ACTION_SPEC),
        lambda url: write_part(url, "a", store.episode(0)),
    )
    for write in writes:
        with pytest.raises(UserError, match=r"gs://b/x: wmjax writes to local folders only; .*manifest\.json"):
            write("gs://b/x")


class FakeEncoder:
    """Latents that are the mean brightness of a clip plus a ramp."""

    backend = "jax"
    spec = EncoderSpec(cameras=("agentview",), name="fake", tokens_per_frame=4, dim=3)

    def encode(self, clips):
        ramp = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
        return np.float32(clips.mean((1, 2, 3, 4)) / 128)[:, None, None] + ramp


def test_latents_of_remote_frames_are_those_of_local_ones(stores, bucket, tmp_path, capsys):
    def run(*line):
        parser = CommandParser("encode", None)
        export_latents.add_arguments(parser)
        options, settings = parser.read([*line, "--views", "2", "--max-shift", "3"])
        return export_latents.run(options, settings, lambda _: FakeEncoder(), backend="jax")

    run("--data", bucket[0], "--out", str(tmp_path / "z"))
    assert f"--data.path {bucket[0]} --encoder.path {tmp_path / 'z'}" in capsys.readouterr().out
    run("--data", str(stores[0].folder), "--out", str(tmp_path / "local"))
    assert LatentStore(tmp_path / "z").hash == LatentStore(tmp_path / "local").hash
    fs = fsspec.filesystem("memory")
    for name in ("manifest.json", "latents.npy"):
        fs.pipe_file(f"/bucket/z/{name}", (tmp_path / "z" / name).read_bytes())
    capsys.readouterr()
    run("--data", bucket[0], "--out", "memory://bucket/z", "--verify", "5")
    assert "all hashes are right; of 5 random latents" in capsys.readouterr().out
    with pytest.raises(UserError, match="memory://bucket/z: wmjax writes to local folders only"):
        run("--data", bucket[0], "--out", "memory://bucket/z")


def test_the_page_of_a_remote_store(stores, bucket, tmp_path, capsys):
    out = str(tmp_path / "view.html")
    assert view.main([bucket[0], "--latents", bucket[1], "--episodes", "2", "--out", out]) == 0
    assert "memory://bucket/demos, hash" in (tmp_path / "view.html").read_text()
    assert view.main([bucket[0], "--out", "gs://b/view.html"]) == 2
    assert view.main(["memory://bucket/none"]) == 2
    for command in (convert.main, record.main):
        assert command([*(["here"] if command is convert.main else []), "--out", "gs://b/x"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert train.main(["--run", "gs://b/x"]) == 2
    for command in (evaluate.main, export.main, diagnose.main):
        assert command(["--run", str(tmp_path), "--out", "gs://b/x"]) == 2
    assert probe.main(["--data", bucket[0], "--backbone", "random", "--json", "gs://b/x"]) == 2
    said += capsys.readouterr().err.splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 9 and sum("gs://b/x: wmjax writes to local folders only" in line for line in errors) == 6
    assert "error: gs://b/x: gs:// needs a package that is not installed; pip install gcsfs" in errors


def test_settings_that_are_urls(stores, bucket, tmp_path, monkeypatch):
    given = {"data": {"path": bucket[0]}, "encoder": {"path": bucket[1], "views": 3, "max_shift": 6}}
    experiment = config.load("e2_flow", overrides=given)
    assert config.from_dict(json.loads(json.dumps(config.to_dict(experiment)))).data.path == bucket[0]
    for found in (
        given_store(experiment),
        demonstrations.demonstrations(experiment),
        demonstrations.find_store(experiment, None),
    ):
        assert found.hash == stores[0].hash and str(found.folder) == bucket[0]
    assert demonstrations.find_store(experiment, location(bucket[0])).hash == stores[0].hash
    assert given_store(experiment, needed=False) is None, "a dry run asks the network"
    monkeypatch.setattr("wmjax.pipeline.latents.latent_spec", lambda *_: stores[1].spec)
    found = latents.encode(experiment, TrainingStore(bucket[0]))
    assert found.hash == stores[1].hash and str(found.folder) == bucket[1]
    # A run that was begun on the local copies goes on from the bucket, and the reverse.
    there = config.to_dict(experiment)
    here = {**there, "data": {**there["data"], "path": str(stores[0].folder)}}
    none = {**there, "encoder": {**there["encoder"], "path": ""}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")  # something was trained there
    for values in (here, there, here):
        save_settings(tmp_path / "run", values)
    with pytest.raises(UserError, match=r"started with encoder\.path = .*, now it is ''"):
        save_settings(tmp_path / "run", none)


def test_the_cache_is_no_url(monkeypatch, capsys):
    monkeypatch.setenv("WMJAX_CACHE", "gs://bucket/cache")
    assert train.main(["--config", "e2_flow"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors == [
        "error: WMJAX_CACHE is gs://bucket/cache, but the cache is a local folder; name one, and give a run's URL to "
        "--run"
    ]
