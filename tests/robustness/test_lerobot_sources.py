"""LeRobot datasets as they are found: clocks, totals, stale indices, conventions, bad episodes."""

import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.robustness import sources
from tests.robustness.sources import CAMERAS, edit_info, edit_rows, edit_table, set_column, write_v21, write_v30
from wmjax.convert import main
from wmjax.core.errors import UserError
from wmjax.data.formats.lerobot.convert import convert
from wmjax.data.formats.lerobot.dataset import LeRobotDataset
from wmjax.data.store import TrainingStore

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def imported(source: Path, **options) -> TrainingStore:
    return convert(str(source), source.parent / f"{source.name}-store", image_size=sources.SIZE, **options)


def refused(source: Path, match: str, **options) -> str:
    with pytest.raises(UserError, match=match) as caught:
        imported(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def require_right_rows(store: TrainingStore) -> None:
    """Every stored frame shows the row that it is stored for."""
    for entry in store.episodes:
        span = slice(entry["frame_start"], entry["frame_start"] + entry["num_frames"])
        assert sources.shown_rows(store.frames[span]) == store.frame_step[span].tolist()


@pytest.fixture(autouse=True)
def heard(caplog, monkeypatch):
    """Warnings reach the test although the commands' logger keeps its own handlers."""
    monkeypatch.setattr(logging.getLogger("wmjax"), "propagate", True)
    return caplog


# Clocks: the frame of a row is the one at its time, and as many frames after the first as it is rows.


@pytest.mark.parametrize("write", [write_v21, write_v30])
def test_videos_are_read_row_by_row(tmp_path, write):
    require_right_rows(imported(write(tmp_path / "d", video=True)))


def test_a_wrong_rate_in_the_metadata_gives_way_to_the_timestamps(tmp_path, heard):
    source = write_v21(tmp_path / "d", video=True)
    edit_info(source, lambda info: info.update(fps=20))
    require_right_rows(imported(source))
    assert "says 20 fps, the timestamps are those of 10" in heard.text


def test_a_rate_that_no_layout_has_is_refused(tmp_path):
    source = write_v21(tmp_path / "d", video=True)
    edit_info(source, lambda info: info.update(fps=30))
    refused(source, "fps of meta/info.json is 30, .* rows of 20 Hz, labelled 10")


LAYOUT = 'state = "observation.state"\naction = "action"\n[cameras]\nfront = "observation.images.image"\n'


@pytest.mark.parametrize(
    ("said", "rate"),
    [("control_hz = 20\nfps_label = 10\n", 20), ("control_hz = 10\n", 10), ("control_hz = 10.05\n", 10.05), ("", 10)],
)
def test_a_layout_may_correct_the_rate_if_it_says_which(tmp_path, said, rate):
    source = write_v21(tmp_path / "d")
    (tmp_path / "mine.toml").write_text(said + LAYOUT, encoding="utf-8")
    assert imported(source, layout=str(tmp_path / "mine.toml")).spec.control_hz == rate


@pytest.mark.parametrize("said", ["control_hz = 20\n", "control_hz = 0.1\n", "control_hz = 20\nfps_label = 30\n",
                                  "control_hz = 10.2\n"])  # fmt: skip
def test_a_layouts_rate_that_nothing_confirms_is_refused(tmp_path, said):
    source = write_v21(tmp_path / "d")
    (tmp_path / "mine.toml").write_text(said + LAYOUT, encoding="utf-8")
    refused(
        source,
        r"fps of meta/info.json is 10, layout mine has rows of .* Hz; correct control_hz .* or add fps_label = 10",
        layout=str(tmp_path / "mine.toml"),
    )


@pytest.mark.parametrize("rate", [5, 15, 20, 30])
def test_a_video_of_another_rate_is_refused(tmp_path, rate):
    source = write_v21(tmp_path / "d", (16,), video=True)
    for camera in CAMERAS:
        sources.write_mp4(source / f"videos/chunk-000/{camera}/episode_000000.mp4", sources.frames(16), fps=rate)
    refused(source, rf"no frame for row \d+ at .* another rate \({rate} fps\)")


def test_a_video_that_lacks_a_frame_in_the_middle_is_refused(tmp_path):
    source = write_v21(tmp_path / "d", (16,), video=True)
    cut = np.delete(sources.frames(16), 5, axis=0)
    for camera in CAMERAS:
        sources.write_mp4(source / f"videos/chunk-000/{camera}/episode_000000.mp4", cut)
    refused(source, "15 frames for rows 0 to 15")


@pytest.mark.parametrize("cameras", [CAMERAS, CAMERAS[1:]])
def test_rows_that_were_cut_off_beside_a_whole_video_are_refused(tmp_path, cameras):
    """The frames of the first rows would be shown for the last ones, or the reverse."""
    source = write_v21(tmp_path / "d", (16, 12), video=True)
    for camera in cameras:
        sources.write_mp4(source / f"videos/chunk-000/{camera}/episode_000001.mp4", sources.frames(15))
    refused(source, r"episode_000001.mp4: 15 frames for 12 rows; rows were cut off")
    store = imported(source, skip_bad=True)
    require_right_rows(store)
    assert [entry["source_episode"] for entry in store.episodes] == [0]


def test_a_video_that_begins_late_counts_from_its_first_frame(tmp_path):
    source = write_v21(tmp_path / "d", (16,), video=True)
    for camera in CAMERAS:
        sources.write_mp4(source / f"videos/chunk-000/{camera}/episode_000000.mp4", sources.frames(16), delay=2)
    require_right_rows(imported(source))


@pytest.mark.parametrize("frames_off", [0.4, 0.6, 1.0, -1.0])
def test_a_start_that_drifts_is_refused_and_can_be_skipped(tmp_path, frames_off):
    source = write_v30(tmp_path / "d", video=True)

    def drift(listed):
        for row in listed:
            for camera in CAMERAS:
                for end in ("from", "to"):
                    row[f"videos/{camera}/{end}_timestamp"] += frames_off / sources.FPS * row["episode_index"]

    edit_rows(source / EPISODES, drift)
    refused(source, r"episode 1 starts at .* frames from the end of the one before")
    store = imported(source, skip_bad=True)
    require_right_rows(store)
    assert [entry["episode"] for entry in store.manifest["skipped"]] == ["episode-000001", "episode-000002"]


def test_unlisted_episodes_leave_a_gap_that_does_not_count_as_drift(tmp_path, heard):
    source = write_v30(tmp_path / "d", video=True)
    edit_rows(source / EPISODES, lambda listed: listed.pop(1))
    require_right_rows(imported(source))
    assert "announces 3 episodes, 2 are there" in heard.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [*t[:5], *(np.asarray(t[5:]) + 0.1)], "timestamp goes from .* at row 5"),
        (lambda t: [0.0] * len(t), "timestamp goes from"),
        (lambda t: [float("nan")] * len(t), "timestamp goes from nan"),
        (lambda t: t[::-1], "timestamp goes from"),
        (lambda t: (np.asarray(t) / 3).tolist(), "rate of the timestamps of episode 0 is 30"),
    ],
)
def test_rows_that_are_not_evenly_spaced_are_refused(tmp_path, change, message):
    source = write_v21(tmp_path / "d")
    path = source / "data/chunk-000/episode_000000.parquet"
    times = pq.read_table(path)["timestamp"].to_pylist()
    edit_table(path, set_column("timestamp", change(times)))
    refused(source, message)


# What the files say, instead of a guess.


def split_files(source: Path, at: int) -> None:
    """Puts the rows from ``at`` on into the next data file, and says nothing of it in the metadata."""
    table = pq.read_table(source / DATA)
    pq.write_table(table.slice(0, at), source / DATA)
    pq.write_table(table.slice(at), source / "data/chunk-000/file-001.parquet")


@pytest.mark.parametrize("at", [12, 21, 15])
def test_rows_are_found_where_they_are(tmp_path, at):
    """Also in the middle of an episode, at row 15."""
    source = write_v30(tmp_path / "d")
    whole = imported(source)
    moved = shutil.copytree(source, tmp_path / "moved")
    split_files(moved, at)
    store = imported(moved)
    assert np.array_equal(store.action, whole.action) and np.array_equal(store.frames[:], whole.frames[:])


def test_file_numbers_that_name_no_file_do_not_matter(tmp_path):
    source = write_v30(tmp_path / "d")
    edit_rows(source / EPISODES, lambda listed: [row.update({"data/file_index": 7}) for row in listed])
    assert len(imported(source).episodes) == 3


@pytest.mark.parametrize(
    ("columns", "index", "expected"),
    [
        (
            {"task_index": [0], "room": ["kitchen"], "__index_level_0__": ["lift it"]},
            ["__index_level_0__"],
            "lift it",
        ),
        ({"category": ["kitchen"], "task": ["lift it"], "task_index": [0]}, [], "lift it"),
        ({"instruction": ["lift it"], "scene": ["kitchen"], "task_index": [0]}, ["instruction"], "lift it"),
        ({"task_index": [0], "words": ["lift it"]}, [], "lift it"),
    ],
)
def test_the_instruction_is_the_tasks_own_column(tmp_path, columns, index, expected):
    source = write_v30(tmp_path / "d", (9,))
    table = pa.table(columns).replace_schema_metadata({"pandas": json.dumps({"index_columns": index})})
    pq.write_table(table, source / "meta/tasks.parquet")
    assert imported(source).tasks[0].instruction == expected


def test_a_table_of_tasks_that_says_nothing_is_refused(tmp_path):
    source = write_v30(tmp_path / "d", (9,))
    pq.write_table(pa.table({"task_index": [0], "a": ["x"], "b": ["y"]}), source / "meta/tasks.parquet")
    refused(source, "expected task_index and the task; name the latter 'task'")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "é"])
def test_json_lines_end_at_newlines_only(tmp_path, mark):
    source = write_v21(tmp_path / "d", (9,), tasks=(f"pick up the{mark}bowl",))
    assert imported(source).tasks[0].instruction == f"pick up the{mark}bowl"


# Totals, changed sources.


def test_unlisted_episodes_of_images_are_taken_from_the_data(tmp_path, heard):
    source = write_v30(tmp_path / "d")
    edit_rows(source / EPISODES, lambda listed: listed.__delitem__(slice(1, None)))
    assert [entry["length"] for entry in imported(source).episodes] == [12, 9, 14]
    assert "lists 1 of 3 episodes; 2 more are in the data files" in heard.text


def test_deleted_episodes_stay_deleted(tmp_path, heard):
    source = write_v30(tmp_path / "d")
    edit_rows(source / EPISODES, lambda listed: listed.pop(1))
    edit_info(source, lambda info: info.update(total_episodes=2, total_frames=26))
    assert [entry["length"] for entry in imported(source).episodes] == [12, 14]
    assert not heard.records


@pytest.mark.parametrize(("key", "said", "found"), [("total_frames", 99, 35), ("total_episodes", 5, 3)])
def test_totals_that_differ_are_said_with_both_numbers(tmp_path, heard, key, said, found):
    source = write_v30(tmp_path / "d")
    edit_info(source, lambda info: info.update({key: said}))
    imported(source)
    assert f"announces {said} {key.removeprefix('total_')}, {found} are there" in heard.text


def rescale(source: Path) -> None:
    for path in source.glob("data/*/*.parquet"):
        halves = (np.asarray(pq.read_table(path)["action"].to_pylist()) / 2).tolist()
        edit_table(path, set_column("action", halves))


def repaint(source: Path) -> None:
    for camera in CAMERAS:
        path = source / f"videos/chunk-000/{camera}/episode_000000.mp4"
        sources.write_mp4(path, sources.frames(12, first=3))


def rename_task(source: Path) -> None:
    path = source / "meta/tasks.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("bowl", "milk"), encoding="utf-8")


@pytest.mark.parametrize("change", [rescale, repaint, rename_task])
def test_a_changed_source_is_not_mixed_with_its_old_half(tmp_path, change: Callable[[Path], None]):
    source = write_v21(tmp_path / "d", video=True)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        imported(source, progress=stop)
    change(source)
    refused(source, "holds episodes of another content")


# Conventions.


def grip(source: Path, values: Callable[[int], np.ndarray], state: Callable[[int], np.ndarray] | None = None) -> None:
    for path in source.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        action = np.asarray(table["action"].to_pylist())
        action[:, 6] = values(len(action))
        table = set_column("action", action.tolist())(table)
        if state is not None:
            table = set_column("observation.state", state(len(action)).tolist())(table)
        pq.write_table(table, path)


def opens_then_closes(opened: float, closed: float) -> Callable[[int], np.ndarray]:
    return lambda n: np.where(np.arange(n) < n // 2, opened, closed)


@pytest.mark.parametrize(
    ("opened", "closed", "convention"),
    [(1, 0, "open-one"), (0, 1, "open-zero"), (1, -1, "open-positive"), (-1, 1, "open-negative")],
)
def test_gripper_commands_are_stored_in_one_convention(tmp_path, opened, closed, convention):
    source = write_v21(tmp_path / "d")
    grip(source, opens_then_closes(opened, closed))
    store = imported(source, gripper=convention)
    for entry in store.episodes:
        command = store.action[entry["step_start"] : entry["step_start"] + entry["length"], 6]
        assert np.array_equal(command, opens_then_closes(-1, 1)(entry["length"]))


@pytest.mark.parametrize(("opened", "closed"), [(1, 0), (0, 1), (0, 0), (0.9, 0)])
def test_commands_in_0_to_1_are_not_accepted_silently(tmp_path, opened, closed):
    source = write_v21(tmp_path / "d")
    grip(source, opens_then_closes(opened, closed))
    refused(source, "say what opens it with --gripper-convention open-one or open-zero")


def test_fingers_that_do_the_opposite_are_noticed(tmp_path):
    def fingers(n: int) -> np.ndarray:
        state = np.zeros((n, 8))
        state[:, 6] = np.where(np.arange(n) <= n // 2, 0.04, 0.0)
        state[:, 7] = -state[:, 6]
        return state

    source = write_v21(tmp_path / "d", (24,))
    grip(source, opens_then_closes(1, -1), fingers)
    refused(source, "the fingers part when told to close")
    assert imported(source, gripper="open-positive").action[0, 6] == -1


@pytest.mark.parametrize("value", [1.0000002, -1.0000001, 1.000009])
def test_rounding_does_not_count_as_out_of_range(tmp_path, value):
    source = write_v21(tmp_path / "d", (9,))
    grip(source, lambda n: np.full(n, value))
    assert np.abs(imported(source).action).max() == 1.0


def tiff(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="TIFF")
    return buffer.getvalue()


def sixteen_bits(n: int) -> list[dict]:
    return [{"bytes": sources.png(np.full((32, 32), 3000, np.uint16)), "path": "x"} for _ in range(n)]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (sixteen_bits, "image has mode I;16"),
        (lambda n: [{"bytes": tiff(np.zeros((32, 32), np.int32)), "path": "x"}] * n, "image has mode I"),
        (lambda n: [{"bytes": tiff(np.zeros((32, 32), np.float32)), "path": "x"}] * n, "image has mode F"),
        (lambda n: [{"bytes": b"", "path": "x"}] * n, "image bytes are missing"),
        (lambda n: [None] * n, "image bytes are missing"),
    ],
)
def test_pixels_that_are_not_colours_are_refused(tmp_path, cells, message):
    source = write_v21(tmp_path / "d", (9,))
    path = source / "data/chunk-000/episode_000000.parquet"
    edit_table(path, set_column(CAMERAS[1], cells(9)))
    refused(source, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("shape"), r"shape is None"),
        (lambda f: f.update(shape=[48, 64, 3]), "48x64, the policy's are square"),
        (lambda f: f.update(shape=[32, 32, 1]), "1 channels"),
        (lambda f: f.update(shape=[32, 32]), r"shape is \(32, 32\)"),
        (lambda f: f.update(shape="32"), r"shape is '32'"),
        (lambda f: f.update(info={"video.is_depth_map": True}), "holds depth"),
    ],
)
def test_cameras_without_square_colour_images_are_refused(tmp_path, change, message):
    source = write_v21(tmp_path / "d", (9,))
    edit_info(source, lambda info: [change(info["features"][camera]) for camera in CAMERAS])
    refused(source, message)


# Bad episodes.


def empty(source: Path) -> None:
    edit_table(source / "data/chunk-000/episode_000001.parquet", lambda table: table.slice(0, 0))
    listed = [{"episode_index": i, "length": n} for i, n in enumerate((12, 0, 14))]
    sources.write_lines(source / "meta/episodes.jsonl", listed)


def lost(source: Path) -> None:
    (source / "data/chunk-000/episode_000001.parquet").unlink()


def pointer(source: Path) -> None:
    path = source / "data/chunk-000/episode_000001.parquet"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty, "episode 1 has 0 rows"),
        (lost, "missing"),
        (pointer, "a Git LFS pointer"),
    ],
)
def test_a_bad_episode_is_named_and_can_be_left_out(tmp_path, capsys, damage, message):
    source = write_v21(tmp_path / "d", tasks=("open the drawer", "put the bowl inside"))
    damage(source)
    refused(source, message)
    out = tmp_path / "skipped"
    assert main([str(source), "--out", str(out), "--image-size", "32", "--skip-bad"]) == 0
    assert "left out 1 episodes" in capsys.readouterr().out
    skipped = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["skipped"]
    assert [entry["episode"] for entry in skipped] == ["episode-000001"] and skipped[0]["reason"]
    assert [entry["source_episode"] for entry in TrainingStore(out).episodes] == [0, 2]


@pytest.mark.parametrize("version", ["v21", "v30"])
def test_an_index_with_two_instructions_is_refused(tmp_path, version):
    if version == "v21":
        source = write_v21(tmp_path / "d", (9,))
        lines = [{"task_index": 0, "task": task} for task in ("open it", "open it", "close it")]
        sources.write_lines(source / "meta/tasks.jsonl", lines)
    else:
        source = write_v30(tmp_path / "d", (9,))
        table = pa.table({"task_index": [0, 0, 0], "task": ["open it", "open it", "close it"]})
        pq.write_table(table, source / "meta/tasks.parquet")
    refused(source, "task_index 0 is both 'open it' and 'close it'")


def test_a_list_of_no_episodes_is_refused(tmp_path):
    source = write_v21(tmp_path / "d", (9,))
    (source / "meta/episodes.jsonl").write_text("\n", encoding="utf-8")
    refused(source, "meta: no episodes are listed; download")


def test_a_dataset_of_only_bad_episodes_is_refused(tmp_path):
    source = write_v21(tmp_path / "d", (9,))
    edit_table(source / "data/chunk-000/episode_000000.parquet", set_column("task_index", [7] * 9))
    refused(source, "no episode can be used: .* task_index is 7", skip_bad=True)


def test_an_episode_that_is_listed_twice_is_refused(tmp_path):
    source = write_v30(tmp_path / "d")
    edit_rows(source / EPISODES, lambda listed: listed.append(dict(listed[1])))
    with pytest.raises(UserError, match="episode 1 is listed twice"):
        LeRobotDataset(source)
