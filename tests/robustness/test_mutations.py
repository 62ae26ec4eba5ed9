"""Damaged files of others and of our own: one line or a whole result, never a traceback."""

import fcntl
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.data.synthetic import make_latents, make_store
from tests.robustness.sources import SIZE, write_hdf5, write_v21, write_v30
from tests.rollout.test_report import HEADER, in_run
from wmjax.analysis.comparison import compare
from wmjax.analysis.overview import overview
from wmjax.core.errors import UserError
from wmjax.core.reading import LFS_POINTER, parse_json, read_json, read_json_lines, read_parquet, read_toml
from wmjax.data.episode import load_episode, save_episode
from wmjax.data.formats import libero_hdf5
from wmjax.data.formats.lerobot.convert import convert, read_episode
from wmjax.data.latents import LatentStore, LatentWriter
from wmjax.data.store import TrainingStore
from wmjax.models.backbones.qwen2_5_vl.config import from_hf_config, preset
from wmjax.models.backbones.qwen2_5_vl.weights import to_hf_config, weight_files
from wmjax.pipeline.failures import failed_episodes
from wmjax.reporting.curves import read_metrics
from wmjax.reporting.evaluation_page import write_report
from wmjax.rollout.results import EpisodeRecord, read_header, read_records

EXAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
"""JSON values that are not what was there."""


def one_line(call) -> Any:
    """The call's result; None if it refused in one line."""
    try:
        return call()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500, str(error)
        return None


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All paths in nested JSON, the root included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in paths_of(item, (*path, key)))]


@st.composite
def mutated(draw, value: Any) -> Any:
    """JSON with one thing in it replaced or taken away."""
    value = json.loads(json.dumps(value))
    path = draw(st.sampled_from(paths_of(value)))
    if not path:
        return draw(ODD)
    *before, last = path
    place = value
    for key in before:
        place = place[key]
    if draw(st.booleans()):
        place[last] = draw(ODD)
    elif isinstance(place, dict):
        del place[last]
    else:
        place.pop(last)
    return value


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Bytes that were cut off, overwritten, or emptied."""
    kind = draw(st.sampled_from(["cut", "bits", "text", "start"]))
    if kind == "cut":
        return content[: draw(st.integers(0, max(len(content) - 1, 0)))]
    if kind == "text":
        return draw(st.sampled_from([b"", b"[]", b"{}", b"null", b"\xff\xfe\x00", b"<html>", b'{"a":', b"\x00" * 64]))
    if kind == "start":
        return draw(st.binary(max_size=16)) + content[draw(st.integers(0, 64)) :]
    out = bytearray(content)
    for _ in range(draw(st.integers(1, 8))):
        out[draw(st.integers(0, len(out) - 1))] = draw(st.integers(0, 255))
    return bytes(out)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    return {
        "v21": write_v21(root / "v21", (9, 7)),
        "v30": write_v30(root / "v30", (9, 7)),
        "v21_video": write_v21(root / "v21_video", (9,), video=True),
    }


def imports(folder: Path, out: Path) -> Any:
    return one_line(lambda: convert(str(folder), out, image_size=SIZE))


FILES = {
    "v21": ("meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl", "data/chunk-000/episode_000000.parquet"),
    "v30": (
        "meta/info.json",
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
    ),
    "v21_video": ("videos/chunk-000/observation.images.image/episode_000000.mp4",),
}


def test_parquet_text_that_is_not_utf8(tmp_path):
    """Damage inside a text column, which parquet readers pass on and which fails where its cells are decoded."""
    text = pa.array([b"pick up the bowl", b"\x80pen the drawer"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"task_index": [0, 1], "task": text}), tmp_path / "tasks.parquet")
    with pytest.raises(UserError, match=r"tasks.parquet: truncated or damaged .*UTF.?8.*; copy it again"):
        read_parquet(tmp_path / "tasks.parquet", ["task_index", "task"], "copy it again")


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in FILES.items() for file in files])
def test_damaged_lerobot_files(tmp_path, datasets, name, file):
    content = (datasets[name] / file).read_bytes()
    copy = shutil.copytree(datasets[name], tmp_path / "in")

    @given(damaged(content))
    @settings(EXAMPLES, max_examples=25)
    def check(changed):
        (copy / file).write_bytes(changed)
        out = tmp_path / "out"
        store = imports(copy, out)
        if store is not None:
            assert np.isfinite(store.action).all() and np.abs(store.action).max() <= 1
        shutil.rmtree(out, ignore_errors=True)

    check()


COLUMNS: dict[str, Any] = {
    "lists": [[1]],
    "text": ["x"],
    "nulls": pa.array([None], pa.int64()),
    "floats": [0.5],
    "mappings": [{"a": 1}],
    "booleans": [True],
    "nothing": pa.nulls(1),
}
"""What a column may hold instead of what it should, one row of it."""


@pytest.mark.parametrize("name", ["v21", "v30"])
@pytest.mark.parametrize("column", ["episode_index", "frame_index", "task_index", "timestamp", "action"])
@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_another_type(tmp_path, datasets, name, column, kind):
    copy = shutil.copytree(datasets[name], tmp_path / "in")
    path = copy / FILES[name][-1]
    table = pq.read_table(path)
    cells = pa.array(COLUMNS[kind])
    others = pa.concat_arrays([cells] * table.num_rows)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, others), path)
    assert imports(copy, tmp_path / "out") is None


@pytest.mark.parametrize(("name", "file", "column"), [
    ("v21", "data/chunk-000/episode_000001.parquet", "action"),
    ("v30", "data/chunk-000/file-000.parquet", "episode_index"),
    ("v30", "meta/episodes/chunk-000/file-000.parquet", "length"),
    ("v30", "meta/tasks.parquet", "task_index"),
])  # fmt: skip
def test_a_column_that_is_there_twice(tmp_path, datasets, name, file, column):
    copy = shutil.copytree(datasets[name], tmp_path / "in")
    table = pq.read_table(copy / file)
    pq.write_table(table.append_column(column, table[column]), copy / file)
    with pytest.raises(UserError, match=rf"{file}: columns {column} occur more than once"):
        convert(str(copy), tmp_path / "out", image_size=SIZE)


def test_lists_as_polars_writes_them(tmp_path, datasets):
    copy = shutil.copytree(datasets["v21"], tmp_path / "in")
    for path in sorted(copy.glob("data/*/*.parquet")):
        table = pq.read_table(path)
        for name in ("action", "observation.state"):
            column = table[name].cast(pa.large_list(pa.float64()))
            table = table.set_column(table.schema.get_field_index(name), name, column)
        pq.write_table(table, path)
    plain = convert(str(datasets["v21"]), tmp_path / "plain", image_size=SIZE)
    np.testing.assert_array_equal(convert(str(copy), tmp_path / "out", image_size=SIZE).action, plain.action)


def test_the_mark_that_editors_of_windows_put_before_a_text(tmp_path, datasets):
    copy = shutil.copytree(datasets["v21"], tmp_path / "in")
    layout = tmp_path / "mine.toml"
    layout.write_text('state = "observation.state"\naction = "action"\n[cameras]\nimage = "observation.images.image"\n',
                      encoding="utf-8")  # fmt: skip
    for path in (*sorted((copy / "meta").iterdir()), layout):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    store = convert(str(copy), tmp_path / "out", image_size=SIZE, layout=str(layout))
    assert store.spec.cameras == ("image",) and store.tasks[0].instruction == "pick up the bowl"


def test_an_unpaired_surrogate_in_an_instruction_is_refused(tmp_path, datasets):
    """JSON may hold it, as ``\\ud83e`` without its other half; neither a tokenizer nor a page takes it."""
    copy = shutil.copytree(datasets["v21"], tmp_path / "in")
    (copy / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "lift it \\ud83e"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"instruction is 'lift it \\ud83e', which is not Unicode text"):
        convert(str(copy), tmp_path / "out", image_size=SIZE)
    (copy / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "lift it \\ud83e\\udd63"}\n', encoding="utf-8")
    assert convert(str(copy), tmp_path / "out", image_size=SIZE).tasks[0].instruction == "lift it \U0001f963"


@pytest.mark.parametrize("template", ["{episode_index:99999999999d}", "{episode_index.x}", "{other}", "{}", "{", "\0"])
def test_invalid_templates_of_paths(tmp_path, datasets, template):
    copy = shutil.copytree(datasets["v21"], tmp_path / "in")
    path = copy / "meta/info.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(info | {"data_path": f"data/{template}.parquet"}), encoding="utf-8")
    assert imports(copy, tmp_path / "out") is None


@pytest.mark.parametrize("value", [10**400, -(10**400), "x" * 5000, "a\nb", ["x" * 900] * 9])
@pytest.mark.parametrize("key", ["fps", "total_episodes", "total_frames", "codebase_version", "data_path", "features"])
def test_numbers_and_texts_of_any_length(tmp_path, datasets, key, value):
    """JSON's integers need not fit into a float, and a line of ours is a line whatever it quotes."""
    copy = shutil.copytree(datasets["v21"], tmp_path / "in")
    path = copy / "meta/info.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(info | {key: value}), encoding="utf-8")
    assert imports(copy, tmp_path / "out") is None


@pytest.mark.parametrize("name", ["v21", "v30"])
def test_info_json_with_other_values(tmp_path, datasets, name):
    copy = shutil.copytree(datasets[name], tmp_path / "in")
    path = copy / "meta/info.json"
    info = json.loads(path.read_text(encoding="utf-8"))

    @given(mutated(info))
    @settings(EXAMPLES, max_examples=80)
    def check(value):
        path.write_text(json.dumps(value), encoding="utf-8")
        imports(copy, tmp_path / "out")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    check()


def imports_hdf5(path: Path, out: Path, **options: Any) -> Any:
    return one_line(lambda: libero_hdf5.convert(path, out, image_size=16, **options))


def test_damaged_hdf5(tmp_path):
    path = write_hdf5(tmp_path / "a_demo.hdf5")
    content = path.read_bytes()

    @given(damaged(content))
    @settings(EXAMPLES, max_examples=80)
    def check(changed):
        path.write_bytes(changed)
        imports_hdf5(path, tmp_path / "out")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    check()


VALUES: dict[str, Any] = {
    "empty": np.zeros((0,)),
    "scalar": 3.0,
    "text": "x",
    "null": h5py.Empty("f8"),
    "integers": np.zeros((8, 7), np.int64),
    "wide": np.zeros((8, 9)),
    "short": np.zeros((3, 7)),
    "nan": np.full((8, 7), np.nan),
    "jpeg": np.frombuffer(b"\xff\xd8" * 20, np.uint8),
    "group": None,
}


@pytest.mark.parametrize("place", ["actions", "obs/ee_pos", "obs/agentview_rgb", "obs/eye_in_hand_rgb", "obs", "."])
@pytest.mark.parametrize("kind", VALUES)
def test_hdf5_with_other_things_in_it(tmp_path, place, kind):
    path = write_hdf5(tmp_path / "a_demo.hdf5")
    with h5py.File(path, "a") as file:
        where = f"data/demo_1/{place}".removesuffix("/.")
        del file[where]
        if VALUES[kind] is None:
            file.create_group(where)
        else:
            file[where] = VALUES[kind]
    assert imports_hdf5(path, tmp_path / "out") is None
    store = imports_hdf5(path, tmp_path / "skipped", skip_bad=True)
    assert [entry["source_episode"] for entry in store.episodes] == ["demo_0"]
    assert [entry["episode"] for entry in store.manifest["skipped"]] == ["task-000-demo_1"]


@pytest.mark.parametrize("name", ["problem_info", "env_args", "macros_image_convention", "bddl_file_name"])
@pytest.mark.parametrize("value", ["", "[]", "{}", "null", 3, b"\xff", np.zeros(3)])
def test_hdf5_attributes_that_are_something_else(tmp_path, name, value):
    path = write_hdf5(tmp_path / "a_demo.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs[name] = value
    store = imports_hdf5(path, tmp_path / "out")
    assert store is None or name == "bddl_file_name"


@pytest.mark.parametrize("sentence", [["lift", "it"], ["l", "i", "f", "t", " ", "i", "t"], ["lift it"], '"lift it"'])
def test_a_sentence_in_pieces_is_put_together(tmp_path, sentence):
    path = write_hdf5(tmp_path / "a_demo.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": sentence})
    assert imports_hdf5(path, tmp_path / "out").tasks[0].instruction == "lift it"


def test_a_file_that_is_being_written_is_not_called_damaged(tmp_path):
    path = write_hdf5(tmp_path / "a_demo.hdf5")
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as another process that writes it does
        with pytest.raises(UserError, match=r"a_demo\.hdf5: another program has it open .* HDF5_USE_FILE_LOCKING"):
            libero_hdf5.convert(path, tmp_path / "out", image_size=16)
    assert len(libero_hdf5.convert(path, tmp_path / "out", image_size=16).episodes) == 2


def test_totals_of_hdf5_files_are_compared_with_what_is_there(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("wmjax"), "propagate", True)
    path = write_hdf5(tmp_path / "a_demo.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs.update({"num_demos": 2, "total": 16})
        file["data/demo_1"].attrs["num_samples"] = 8
    libero_hdf5.convert(path, tmp_path / "whole", image_size=16)
    assert not caplog.text
    with h5py.File(path, "a") as file:
        file["data"].attrs.update({"num_demos": 50, "total": np.int64(7000)})
        file["data/demo_1"].attrs["num_samples"] = 90
        file["data/demo_0"].attrs["num_samples"] = "many"
    libero_hdf5.convert(path, tmp_path / "part", image_size=16)
    for words in ("50 demonstrations, 2 are there", "7000 rows, 16 are there", "90 rows of demo_1, 8 are there"):
        assert f"a_demo.hdf5: its attributes announce {words}" in caplog.text


def test_copies_without_attributes_say_how_their_rows_lie(tmp_path):
    path = write_hdf5(tmp_path / "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5")
    with h5py.File(path, "a") as file:
        for name in list(file["data"].attrs):
            del file["data"].attrs[name]
        file["data/demo_0/obs/ee_pos"][:, 0] = np.arange(8)
        file["data/demo_0/actions"][:, 0] = np.arange(8) / 10
    with pytest.raises(UserError, match=r"lacks LIBERO's attributes .* give --rows before"):
        libero_hdf5.convert(path, tmp_path / "out", image_size=16)
    store = libero_hdf5.convert(path, tmp_path / "out", image_size=16, rows="before")
    assert store.tasks[0].instruction == "turn on the stove"
    first = store.episode(0)
    assert first.length == 8 and np.allclose(first.action[:, 0], first.state[:, 0] / 10)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    store = make_store(root / "store", image_size=28, lengths=(9, 13))
    return store, make_latents(root / "latents", store, grid=2, dim=6)


@pytest.mark.parametrize("which", ["store", "latents"])
def test_manifests_of_stores_with_other_values(tmp_path, stores, which):
    original = stores[which == "latents"].folder
    copy = shutil.copytree(original, tmp_path / "copy")
    manifest = json.loads((original / "manifest.json").read_text(encoding="utf-8"))
    read = TrainingStore if which == "store" else LatentStore

    @given(mutated(manifest))
    @settings(EXAMPLES, max_examples=150)
    def check(value):
        (copy / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
        opened = one_line(lambda: read(copy))
        if opened is not None and which == "store":
            one_line(opened.verify)
            one_line(lambda: opened.episode(0))

    check()


@pytest.mark.parametrize("file", ["state.npy", "frame_step.npy", "frames.npy", "settled.npz", "manifest.json"])
def test_damaged_files_of_stores(tmp_path, stores, file):
    copy = shutil.copytree(stores[0].folder, tmp_path / "copy")
    content = (copy / file).read_bytes()

    @given(damaged(content))
    @settings(EXAMPLES, max_examples=40)
    def check(changed):
        (copy / file).write_bytes(changed)
        opened = one_line(lambda: TrainingStore(copy))
        if opened is not None:
            one_line(opened.verify)
            one_line(lambda: opened.settled_state(0))

    check()


def test_damaged_parts(tmp_path, stores):
    path = tmp_path / "part.npz"
    save_episode(path, stores[0].episode(0))
    content = path.read_bytes()

    @given(damaged(content))
    @EXAMPLES
    def check(changed):
        path.write_bytes(changed)
        one_line(lambda: load_episode(path))

    check()


PARTS: dict[str, Any] = {
    "nothing": {},
    "another name": {"latent": np.zeros((3, 3, 4, 6), np.float16)},
    "text": {"latents": np.full((3, 3, 4, 6), "x")},
    "complex": {"latents": np.zeros((3, 3, 4, 6), np.complex64)},
    "wide": {"latents": np.zeros((3, 3, 4, 6), np.float32)},
    "flat": {"latents": np.zeros(6, np.float16)},
}


@pytest.mark.parametrize("kind", PARTS)
def test_parts_of_latents_that_hold_something_else(tmp_path, stores, kind):
    store, latents = stores
    writer = LatentWriter(tmp_path / "latents", latents.spec, store, latents.views, "jax")
    for index, entry in enumerate(store.episodes):
        rows = slice(entry["frame_start"], entry["frame_start"] + entry["num_frames"])
        writer.write(index, np.asarray(latents.latents[:, rows], np.float32))
    part = tmp_path / "latents/parts/000000.npz"
    whole = part.read_bytes()
    np.savez(part, **PARTS[kind])
    with pytest.raises(UserError, match=r"000000\.npz: .*; delete it and "):
        writer.finish()
    part.write_bytes(whole)
    np.testing.assert_array_equal(writer.finish().latents, latents.latents)


def test_a_message_of_any_length_is_a_line_with_beginning_and_end():
    error = str(UserError(f"config.json: name is {'x' * 5000}\nand so on; correct it"))
    assert error.startswith("config.json: name is x") and error.endswith("x and so on; correct it")
    assert "\n" not in error and len(error) < 1500
    assert str(UserError("short  as it is")) == "short  as it is"


RECORD = {
    "key": "libero_spatial/0/random/1", "suite": "libero_spatial", "task_id": 0, "instruction": "lift",
    "init": "random", "index": 1, "seed": 1, "settled_hash": "a", "success": True, "steps": 5, "outcome": "success",
    "attempts": 1, "faults": ["crash"], "seconds": 1.5, "decisions": 2, "info": {"gate": 0.1}, "recipe_hash": "",
    "open_loop_horizon": 8, "execution_delay": 0,
}  # fmt: skip


@given(mutated(RECORD))
@EXAMPLES
def test_records_with_other_values(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "episodes.jsonl").write_text(json.dumps(value) + "\n", encoding="utf-8")
    records = one_line(lambda: read_records(folder))
    assert records is None or isinstance(records[0], EpisodeRecord)
    (folder / "header.json").write_text(json.dumps(value), encoding="utf-8")
    assert one_line(lambda: read_header(folder)) is None


EVALUATION: dict[str, Any] = {
    "header.json": HEADER
    | {
        "format_version": 1,
        "training": {"changed": {"train.steps": 20}, "suite": "libero_spatial", "tasks": [0, 1]},
        "timing": {"trained_delay": 0, "actions_end": 16, "memory_ends": 8},
        "observation": {"simulator": "published by its authors", "image_size": 112},
        "action": {"names": ["x", "y"]},
    },
    "summary.json": {
        "overall": {"successes": 2},
        "seconds": 3.5,
        "batch_fill": 0.5,
        "shards": 2,
        "commit": "0-dirty",
        "simulator": "a",
    },
    "../../../config.json": {"recipe": "e2_flow", "train": {"steps": 20, "batch_size": 8}},
}
"""JSON files of an evaluation and its run, with every field that is read again."""


@pytest.mark.parametrize("file", EVALUATION)
def test_files_of_evaluations_with_other_values(tmp_path, file):
    folder, other = in_run(tmp_path / "a", ['{"step": 20, "split": "val", "r2/0": 0.5}']), in_run(tmp_path / "b", [])

    @given(mutated(EVALUATION[file]))
    @settings(EXAMPLES, max_examples=100)
    def check(value):
        (folder / file).write_text(json.dumps(value), encoding="utf-8")
        for call in (
            lambda: write_report(folder, compare_with=[other]),
            lambda: compare(folder, other),
            lambda: overview(other, [folder]),
            lambda: failed_episodes(folder, ()),
        ):
            one_line(call)

    check()
    (folder / file).write_text(json.dumps(EVALUATION[file]), encoding="utf-8")
    assert one_line(lambda: write_report(folder, compare_with=[other]))


SUMMARIES: list[Any] = [
    {"overall": 3},
    {"overall": None},
    {"overall": [1]},
    {"seconds": "x"},
    {"seconds": 10**400},
    {"control_steps_per_second": [1]},
    {"batch_fill": "x"},
    [],
    None,
]


@pytest.mark.parametrize("value", SUMMARIES)
def test_summaries_with_other_values(tmp_path, value):
    folder = in_run(tmp_path, [])
    (folder / "summary.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(UserError, match=r"summary\.json: .* delete it and repeat"):
        write_report(folder)


def test_metrics_with_other_values_are_left_out(tmp_path):
    good = {"step": 1, "split": "train", "loss": 0.5}
    odd = [{"loss": 10**400}, {"step": 10**400}, {"step": None}, {"split": []}, {"loss": "x"}, {"loss": True}]
    lines = [json.dumps(each) for each in (good, *({**good, "step": 2, **change} for change in odd))]
    folder = in_run(tmp_path, [*lines, "3", "null", "[]"])
    found = read_metrics(folder.parents[2] / "metrics.jsonl")
    assert found.get("train", "loss") == [(1.0, 0.5)]
    assert write_report(folder).is_file()


@given(mutated(to_hf_config(preset("mini"))))
@settings(EXAMPLES, max_examples=150)
def test_backbone_configs_with_other_values(value):
    assume(isinstance(value, dict))
    one_line(lambda: from_hf_config(value))


@pytest.mark.parametrize("content", [b"[]", b"{}", b"null", b'{"weight_map": []}', b'{"weight_map": {"a": 3}}', b"\xff",
                                     b'{"weight_map": {"a": "../../etc/passwd"}}', b""])  # fmt: skip
def test_an_invalid_index_of_shards(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json: "):
        weight_files(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", LFS_POINTER + b"v1\n", b"[" * 10**5])
@pytest.mark.parametrize("read", [read_json, read_json_lines, read_parquet, read_toml])
def test_files_that_are_not_text(tmp_path, read, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    found = one_line(lambda: read(path, dict[str, Any], "copy it again"))
    assert found in (None, [], {})  # no lines, and no TOML, are valid


@pytest.mark.parametrize("read", [read_json, read_json_lines, read_parquet, read_toml])
def test_places_that_are_not_files(tmp_path, read):
    for path in (tmp_path, tmp_path / "nothing", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(UserError, match="; copy it again"):
            read(path, dict[str, Any], "copy it again")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": {"b": 1, "c": 2, "b": 1}}'])
def test_a_duplicate_key_is_refused(text):
    with pytest.raises(UserError, match=r"it: not valid JSON \(the key '[ab]' occurs twice\); copy it again"):
        parse_json(text, dict[str, Any], "it", "copy it again")


@given(st.text(max_size=30) | st.binary(max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_text_is_json_or_one_line(text):
    one_line(lambda: parse_json(text, dict[str, int], "it", "copy it again"))


def test_reading_an_episode_reports_every_fault_of_its_files(tmp_path, datasets):
    """The reader that a conversion calls, without the checks around it."""
    from wmjax.data.formats.lerobot.convert import observation_spec
    from wmjax.data.formats.lerobot.dataset import LeRobotDataset
    from wmjax.data.formats.lerobot.selection import Selection

    copy = shutil.copytree(datasets["v21"], tmp_path / "in")
    dataset = LeRobotDataset(copy)
    path = copy / "data/chunk-000/episode_000000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    spec = observation_spec(dataset, SIZE, 4)
    pieces = Selection().pieces(dataset)
    assert one_line(lambda: read_episode(dataset, pieces[0], spec, str(copy))) is None
    assert one_line(lambda: read_episode(dataset, pieces[1], spec, str(copy))) is not None
