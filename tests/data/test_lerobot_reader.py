import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wmjax.convert import main
from wmjax.core.errors import UserError
from wmjax.data.formats.lerobot.convert import convert, resolve
from wmjax.data.formats.lerobot.dataset import LeRobotDataset
from wmjax.data.formats.lerobot.layout import load_layout
from wmjax.data.observation import resize_image

FIXTURES = Path(__file__).parent / "fixtures"
VARIANTS = ("v30_image", "v30_video", "v21_image", "v21_video")
LENGTHS = (9, 14, 6)
BOWL = "pick up the black bowl next to the plate and place it on the plate"
MILK = "pick up the milk and place it in the basket"


def fixture(variant):
    return FIXTURES / f"lerobot_{variant}"


def painted(episode, step):
    """The image that the fixtures' author painted."""
    y, x = np.mgrid[:64, :64]
    channels = (
        (4 * x + 40 * episode) % 256,
        (4 * y + 8 * step) % 256,
        np.full((64, 64), (60 * episode + 10 * step) % 256),
    )
    return np.stack(channels, axis=-1).astype(np.uint8)


def close(image, expected, exact):
    if exact:
        return np.array_equal(image, expected)
    return np.abs(image.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("variant", VARIANTS)
def test_reads_what_the_library_wrote(variant):
    dataset = LeRobotDataset(fixture(variant))
    expected = np.load(dataset.folder / "expected.npz")
    assert [entry.length for entry in dataset.episodes] == list(LENGTHS)
    for entry in dataset.episodes:
        columns = dataset.columns(entry)
        steps = np.arange(entry.length)
        images = dataset.images(entry, steps)
        assert images.shape == (entry.length, 2, 64, 64, 3) and images.dtype == np.uint8
        instructions = {dataset.tasks[task] for task in columns.task_index.tolist()}
        assert instructions == {MILK if entry.index == 1 else BOWL}
        for t in steps:
            assert np.array_equal(columns.state[t], expected[f"s{entry.index}_{t}"])
            assert np.array_equal(columns.action[t], expected[f"a{entry.index}_{t}"])
            image = painted(entry.index, t)
            assert close(images[t, 0], image, "image" in variant)
            assert close(images[t, 1], image[::-1], "image" in variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_converts_to_a_training_store(tmp_path, variant):
    store = convert(str(fixture(variant)), tmp_path / "out", image_size=64)
    store.verify()
    assert [task.instruction for task in store.tasks] == [BOWL, MILK]
    assert store.spec.resize_filter == "none" and store.spec.rotation == 180
    expected = np.load(fixture(variant) / "expected.npz")
    for index, length in enumerate(LENGTHS):
        episode = store.episode(index)
        assert episode.frame_step.tolist() == list(range(0, length, 4))
        assert np.array_equal(episode.state, [expected[f"s{index}_{t}"] for t in range(length)])
        assert np.array_equal(episode.executed, episode.action)
        for image, step in zip(episode.images, episode.frame_step, strict=True):
            assert close(image[0], painted(index, step), "image" in variant)
    assert not (tmp_path / "out/parts").exists()


def test_resizes_with_the_rollout_s_filter(tmp_path):
    store = convert(str(fixture("v30_image")), tmp_path / "out", image_size=28, frame_stride=3)
    assert store.spec.resize_filter == "bilinear" and store.spec.frame_stride == 3
    assert store.spec.drawn_size == len(painted(1, 6))
    assert np.array_equal(store.episode(1).images[2, 0], resize_image(painted(1, 6), 28))


def test_resumes_and_never_overwrites(tmp_path, monkeypatch):
    from wmjax.data.formats.lerobot import convert as module

    whole = convert(str(fixture("v21_image")), tmp_path / "a", image_size=28)
    read, calls = module.read_episode, []

    def dies(dataset, piece, *args):
        index = piece.entry.index
        if index == 2 and not calls.count(2):
            calls.append(2)
            raise KeyboardInterrupt
        calls.append(index)
        return read(dataset, piece, *args)

    monkeypatch.setattr(module, "read_episode", dies)
    with pytest.raises(KeyboardInterrupt):
        convert(str(fixture("v21_image")), tmp_path / "b", image_size=28)
    with pytest.raises(UserError, match="another observation_spec"):
        convert(str(fixture("v21_image")), tmp_path / "b", image_size=56)
    with pytest.raises(UserError, match="another episodes"):
        convert(str(fixture("v21_image")), tmp_path / "b", image_size=28, max_episodes=2)
    assert convert(str(fixture("v21_image")), tmp_path / "b", image_size=28).hash == whole.hash
    assert calls == [0, 1, 2, 2]
    (tmp_path / "b/parts").mkdir()  # killed after the manifest was written
    (tmp_path / "b/parts/plan.json").write_text("{}")
    with pytest.raises(UserError, match="nothing was overwritten"):
        convert(str(fixture("v21_image")), tmp_path / "b", image_size=28)
    assert not (tmp_path / "b/parts").exists()


def test_another_source_in_the_same_place_is_not_mixed_in(tmp_path):
    source = shutil.copytree(fixture("v21_image"), tmp_path / "in")

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(str(source), tmp_path / "out", image_size=28, progress=stop)
    shutil.rmtree(source)
    shutil.copytree(fixture("v30_image"), source)
    with pytest.raises(UserError, match="another content"):
        convert(str(source), tmp_path / "out", image_size=28)


@pytest.mark.parametrize("count", [0, -1])
def test_less_than_one_episode_is_refused(tmp_path, count):
    with pytest.raises(UserError, match=f"max_episodes is {count}; set it to at least 1"):
        convert(str(fixture("v21_image")), tmp_path / "out", max_episodes=count)


@pytest.mark.parametrize("names", [["channels", "height", "width"], None])
def test_the_order_of_the_axes_in_the_metadata_does_not_matter(tmp_path, names):
    copy = shutil.copytree(fixture("v30_image"), tmp_path / "in")
    cameras = ("observation.images.image", "observation.images.image2")
    edit_json(
        copy / "meta/info.json",
        lambda info: [info["features"][camera].update(shape=[3, 64, 64], names=names) for camera in cameras],
    )
    assert LeRobotDataset(copy).image_size == (64, 64)
    assert convert(str(copy), tmp_path / "out", image_size=64).frames.shape[2:] == (64, 64, 3)


@pytest.mark.parametrize(("variant", "name"), [("v30_image", "HuggingFaceVLA/libero"), ("v30_video", "lerobot/libero")])
def test_a_local_copy_is_labelled_by_how_it_stores_its_images(tmp_path, variant, name):
    store = convert(str(fixture(variant)), tmp_path, image_size=64)
    assert {task.suite for task in store.tasks} == {name} and store.spec.simulator == f"as published in {name}"
    # Who names the layout is obeyed, however the images are stored.
    assert LeRobotDataset(fixture(variant), load_layout("HuggingFaceVLA/libero")).layout.name == "HuggingFaceVLA/libero"


def test_physical_intelligence_columns(tmp_path):
    copy = shutil.copytree(fixture("v21_image"), tmp_path / "pi")
    names = {
        "observation.images.image": "image",
        "observation.images.image2": "wrist_image",
        "observation.state": "state",
        "action": "actions",
    }
    for path in copy.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.rename_columns([names.get(n, n) for n in table.column_names]), path)
    info = json.loads((copy / "meta/info.json").read_text())
    info["features"] = {names.get(key, key): value for key, value in info["features"].items()}
    info["codebase_version"] = "v2.0"
    (copy / "meta/info.json").write_text(json.dumps(info))
    store = convert(str(copy), tmp_path / "out", image_size=64)
    assert store.tasks[0].suite == "physical-intelligence/libero"
    assert np.array_equal(store.episode(1).images[1, 1], painted(1, 4)[::-1])


def edit_table(path, change):
    pq.write_table(change(pq.read_table(path)), path)


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def set_column(name, values):
    def change(table):
        field = table.schema.field(name)
        changed = pa.array(values(table[name].to_pylist()), field.type)
        return table.set_column(table.schema.get_field_index(name), field, changed)

    return change


def poison(values):
    values[3][1] = float("nan")
    return values


def out_of_range(values):
    values[4][6] = 2.0
    return values


DATA3, DATA21 = "data/chunk-000/file-000.parquet", "data/chunk-000/episode_000001.parquet"
VIDEO3 = "videos/observation.images.image2/chunk-000/file-000.mp4"
VIDEO21 = "videos/chunk-000/observation.images.image/episode_000001.mp4"
DAMAGE = {
    "truncated parquet": ("v30_image", lambda d: truncate(d / DATA3), "truncated or damaged"),
    "truncated parquet v2.1": ("v21_image", lambda d: truncate(d / DATA21), "truncated or damaged"),
    "truncated video": ("v30_video", lambda d: truncate(d / VIDEO3), r"\.mp4: .*truncated"),
    "truncated video v2.1": ("v21_video", lambda d: truncate(d / VIDEO21), r"\.mp4: .*truncated"),
    "missing video": ("v21_video", lambda d: (d / VIDEO21).unlink(), r"\.mp4: missing"),
    "missing data": ("v21_image", lambda d: (d / DATA21).unlink(), r"episode_000001\.parquet: missing"),
    "missing info": ("v21_image", lambda d: (d / "meta/info.json").unlink(), "no LeRobot dataset there"),
    "missing tasks": ("v21_image", lambda d: (d / "meta/tasks.jsonl").unlink(), r"tasks\.jsonl: missing"),
    "missing tasks v3": ("v30_image", lambda d: (d / "meta/tasks.parquet").unlink(), r"tasks\.parquet: missing"),
    "missing episodes": ("v30_image", lambda d: shutil.rmtree(d / "meta/episodes"), "no parquet files"),
    "damaged episodes": (
        "v21_image",
        lambda d: (d / "meta/episodes.jsonl").write_text('{"length": 3}'),
        r"episodes\.jsonl:1: the key 'episode_index' is missing",
    ),
    "NaN in state": (
        "v30_image",
        lambda d: edit_table(d / DATA3, set_column("observation.state", poison)),
        r"state\[3, 1\] is nan",
    ),
    "action out of range": (
        "v21_image",
        lambda d: edit_table(d / DATA21, set_column("action", out_of_range)),
        r"action\[4, 6\] is 2, outside \[-1, 1\]",
    ),
    "no episode index column": (
        "v30_image",
        lambda d: edit_table(d / DATA3, lambda t: t.drop_columns(["episode_index"])),
        "columns episode_index are missing",
    ),
    "no episode index": (
        "v21_image",
        lambda d: edit_json(d / "meta/info.json", lambda i: i["features"].pop("episode_index")),
        "columns episode_index are missing",
    ),
    "no task index": (
        "v30_image",
        lambda d: edit_json(d / "meta/info.json", lambda i: i["features"].pop("task_index")),
        "columns task_index are missing",
    ),
    "no camera": (
        "v30_image",
        lambda d: edit_json(
            d / "meta/info.json",
            lambda i: [i["features"].pop(f"observation.images.{camera}") for camera in ("image", "image2")],
        ),
        "columns of images are missing",
    ),
    "unknown task": (
        "v21_image",
        lambda d: edit_table(d / DATA21, set_column("task_index", lambda v: [7] * len(v))),
        "task_index is 7, which meta/tasks does not have",
    ),
    "empty instruction": (
        "v21_image",
        lambda d: (d / "meta/tasks.jsonl").write_text(
            '{"task_index": 0, "task": ""}\n{"task_index": 1, "task": "pick up the milk"}\n'
        ),
        "instruction is ''",
    ),
    "rows missing": (
        "v21_image",
        lambda d: edit_table(d / DATA21, lambda t: t.slice(0, 9)),
        "has 9 rows, meta says 14",
    ),
    "rows shuffled": (
        "v21_image",
        lambda d: edit_table(d / DATA21, lambda t: t.take(list(range(14))[::-1])),
        "frame_index does not count",
    ),
    "image of another size": (
        "v30_image",
        lambda d: edit_json(
            d / "meta/info.json",
            lambda i: [i["features"][f"observation.images.{c}"].update(shape=[32, 32, 3]) for c in ("image", "image2")],
        ),
        r"image 0 is 64x64, meta/info\.json says 32x32",
    ),
    "image without bytes": (
        "v30_image",
        lambda d: edit_table(
            d / DATA3, set_column("observation.images.image", lambda v: [{"bytes": None, "path": "x.png"} for _ in v])
        ),
        "image bytes are missing",
    ),
    "damaged image": (
        "v30_image",
        lambda d: edit_table(
            d / DATA3,
            set_column("observation.images.image", lambda v: [{"bytes": c["bytes"][:90], "path": "x"} for c in v]),
        ),
        "image cannot be decoded",
    ),
    "metadata is a list": (
        "v21_image",
        lambda d: (d / "meta/info.json").write_text("[]"),
        r"info\.json: the file is \[\]; expected dict",
    ),
    "old version": (
        "v21_image",
        lambda d: edit_json(d / "meta/info.json", lambda i: i.update(codebase_version="v1.6")),
        r"codebase_version is 'v1\.6'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_clear_line_and_no_store(tmp_path, damage):
    variant, change, message = DAMAGE[damage]
    copy = shutil.copytree(fixture(variant), tmp_path / "in")
    change(copy)
    with pytest.raises(UserError, match=message) as error:
        convert(str(copy), tmp_path / "out", image_size=64)
    assert "\n" not in str(error.value) and ";" in str(error.value)
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_source_that_is_nothing_is_refused():
    with pytest.raises(UserError, match="neither an existing folder nor a hub id"):
        resolve("/no/such/folder", None)


def test_failed_download_is_one_line(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"'lerobot/libero': .*no route to host\); check name and network"):
        resolve("lerobot/libero", None)


def test_unknown_layout_names_the_nearest():
    with pytest.raises(UserError, match="did you mean lerobot/libero"):
        load_layout("lerobot/libera")


def test_command(tmp_path, capsys):
    out = tmp_path / "store"
    assert main([str(fixture("v30_image")), "--out", str(out), "--image-size", "28", "--max-episodes", "2"]) == 0
    assert "2 episodes, 2 tasks" in capsys.readouterr().out
    assert main([str(fixture("v30_image")), "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
