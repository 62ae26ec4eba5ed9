"""LeRobot episodes whose task changes between frames: each frame is trained with the task of its row."""

import logging
from itertools import chain

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.synthetic import make_latents
from tests.robustness import sources
from tests.robustness.sources import set_column, write_v21, write_v30
from wmjax.convert import main
from wmjax.core.errors import UserError
from wmjax.data.formats.lerobot.convert import convert
from wmjax.data.formats.lerobot.dataset import LeRobotDataset
from wmjax.data.formats.lerobot.layout import load_layout
from wmjax.data.formats.lerobot.video import convert_video
from wmjax.data.formats.lerobot.writer import write_lerobot_v30
from wmjax.data.loader import BatchSource, LoaderConfig
from wmjax.data.split import SOURCE_ROW, recording_of, split_episodes
from wmjax.data.store import TrainingStore

INSTRUCTIONS = ("reach for the bowl", "grasp the bowl", "put it on the plate")
ROWS = ([0] * 12, [0] * 4 + [1] * 5, [2] * 3 + [0] * 6 + [2] * 5)
"""The task of each row of the three episodes."""
PIECES = [(0, 0, 12), (1, 0, 4), (1, 4, 9), (2, 0, 3), (2, 3, 9), (2, 9, 14)]
"""Episode, first row and end of each run of one task."""
CHUNK = 4


def changing(folder, write, video=False, rows=ROWS):
    """A dataset with these tasks of its rows."""
    write(folder, tuple(map(len, rows)), video=video, tasks=INSTRUCTIONS)
    files = sorted((folder / "data").rglob("*.parquet"))
    for path, values in zip(files, rows if len(files) > 1 else [list(chain(*rows))], strict=True):
        sources.edit_table(path, set_column("task_index", values))
    return folder


def imported(source, **options):
    return convert(str(source), source.parent / "store", image_size=sources.SIZE, **options)


def samples(store, latents=None):
    """Every frame of a store once, in order, as it is trained on."""
    count = len(store.frame_step)
    config = LoaderConfig(batch_size=count, chunk=CHUNK, history=3, future=2, shuffle=False, num_epochs=1)
    return BatchSource(store, latents, np.arange(len(store.episodes)), config)[0]


def recorded_actions(episode):
    table = sources.rows(episode, len(ROWS[episode]), 0, video=True)
    return np.asarray(table["action"].to_pylist(), np.float32)


@pytest.mark.parametrize("write", [write_v21, write_v30])
@pytest.mark.parametrize("video", [False, True])
def test_each_frame_is_trained_with_the_task_of_its_row(tmp_path, write, video):
    store = imported(changing(tmp_path / "d", write, video), frame_stride=2)
    found = [(e["source_episode"], e.get(SOURCE_ROW, 0), e.get(SOURCE_ROW, 0) + e["length"]) for e in store.episodes]
    assert found == PIECES
    batch = samples(store)
    shown = sources.shown_rows(store.frames[:])  # by the pixels alone
    assert len(shown) == sum(len(range(start, end, 2)) for _, start, end in PIECES)
    for index, frame in enumerate(batch["sample_id"]):
        episode, row = store.episodes[store.frame_episode[frame]]["source_episode"], shown[frame]
        assert store.tasks[batch["task"][index]].instruction == INSTRUCTIONS[ROWS[episode][row]]
        end = next(end for e, start, end in PIECES if e == episode and start <= row < end)
        count = min(CHUNK, end - row)
        assert batch["action_mask"][index].tolist() == [True] * count + [False] * (CHUNK - count)
        actions = recorded_actions(episode)[row : row + count]
        np.testing.assert_array_equal(batch["action"][index, :count], actions)
        assert not batch["action"][index, count:, :6].any()  # stays where it is, and is not learned


def test_history_and_future_end_where_the_task_changes(tmp_path):
    store = imported(changing(tmp_path / "d", write_v30), frame_stride=2)
    batch = samples(store, make_latents(tmp_path / "latents", store))
    frames = {name: (batch[name][:, :, 0, 0] * 128).round().astype(int) for name in ("latents", "future")}
    own = store.frame_episode[batch["sample_id"]][:, None]
    assert (store.frame_episode[frames["latents"]] == own).all()
    assert (store.frame_episode[frames["future"]] == own)[batch["future_mask"]].all()
    counts = np.array([entry["num_frames"] for entry in store.episodes])
    assert batch["future_mask"].sum() == (counts - 1).clip(0).sum() + (counts - 2).clip(0).sum()


def test_selected_tasks_are_those_of_the_rows(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("wmjax"), "propagate", True)
    source = changing(tmp_path / "d", write_v21)
    arguments = [str(source), "--image-size", str(sources.SIZE), "--frame-stride", "1"]
    assert main([*arguments, "--out", str(tmp_path / "all")]) == 0
    assert "2 of 3 episodes have several tasks: split where the task changes, they give 5 episodes" in caplog.text
    for select, limit, expected in (
        (["tasks=0"], "9", [PIECES[0], PIECES[1], PIECES[4]]),
        (["tasks=1:3"], "9", [PIECES[2], PIECES[3], PIECES[5]]),
        (["tasks=1:3"], "1", [PIECES[2]]),
        (["tasks=2", "episodes=1:3"], "9", [PIECES[3], PIECES[5]]),
    ):
        out = tmp_path / f"{'-'.join(select)}-{limit}"
        caplog.clear()
        assert main([*arguments, "--out", str(out), "--max-episodes", limit, "--select", *select]) == 0
        pieces = len(set(expected) - {PIECES[0]})  # of the other episodes
        assert f"they give {pieces} episodes of the selected tasks" in caplog.text
        store = TrainingStore(out)
        found = [(e["source_episode"], e.get(SOURCE_ROW, 0)) for e in store.episodes]
        assert found == [(episode, start) for episode, start, _ in expected]
        actions = [recorded_actions(episode)[start:end] for episode, start, end in expected]
        np.testing.assert_array_equal(store.action, np.concatenate(actions))
    with pytest.raises(UserError, match="--select leaves no episode"):
        imported(source, select=("tasks=1", "episodes=0"))


def test_what_our_writer_writes_of_it_is_read_again(tmp_path):
    store = imported(changing(tmp_path / "d", write_v30), frame_stride=1)
    episodes = [store.episode(index) for index in range(len(store.episodes))]
    layout = load_layout("HuggingFaceVLA/libero")
    write_lerobot_v30(tmp_path / "written", episodes, store.spec, store.action_spec, layout=layout)
    again = convert(str(tmp_path / "written"), tmp_path / "again", image_size=sources.SIZE, frame_stride=1)
    np.testing.assert_array_equal(again.frames, store.frames)
    np.testing.assert_array_equal(again.action, store.action)
    told = [[entry["instruction"] for entry in each.episodes] for each in (store, again)]
    assert told[0] == told[1] == [INSTRUCTIONS[ROWS[episode][start]] for episode, start, _ in PIECES]


def test_of_video_alone_each_frame_has_the_task_of_its_row(tmp_path):
    source = changing(tmp_path / "d", write_v21, video=True)
    store = convert_video(str(source), tmp_path / "video", imported(source, frame_stride=2))
    batch = samples(store)
    for frame, row in enumerate(sources.shown_rows(store.frames[:])):
        episode = store.episodes[store.frame_episode[frame]]["source_episode"]
        assert store.tasks[batch["task"][frame]].instruction == INSTRUCTIONS[ROWS[episode][row]]


def test_an_episode_with_an_unknown_task_is_left_out_whole(tmp_path):
    source = changing(tmp_path / "d", write_v21, rows=(ROWS[0], [0] * 4 + [7] * 5, ROWS[2]))
    with pytest.raises(UserError, match="episode 1: task_index is 7, which meta/tasks does not have"):
        imported(source)
    for select, kept in (((), [0, 2, 2, 2]), (("tasks=0",), [0, 2])):
        out = tmp_path / f"store-{len(select)}"
        store = convert(str(source), out, image_size=sources.SIZE, skip_bad=True, select=select)
        assert [entry["source_episode"] for entry in store.episodes] == kept
        assert [entry["episode"] for entry in store.manifest["skipped"]] == ["episode-000001"]


def test_the_reader_gives_the_task_of_each_row(tmp_path):
    dataset = LeRobotDataset(changing(tmp_path / "d", write_v30))
    assert [dataset.columns(entry).task_index.tolist() for entry in dataset.episodes] == list(ROWS)
    assert pq.read_table(tmp_path / "d/meta/tasks.parquet")["__index_level_0__"].to_pylist() == list(INSTRUCTIONS)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=20), st.floats(0.05, 0.9))
def test_the_parts_of_an_episode_stay_on_one_side(tasks, fraction):
    """Each list has the tasks of one recorded episode's parts; those of one part are not marked."""
    table = []
    for number, parts in enumerate(tasks):
        for row, task in enumerate(parts):
            mark = {SOURCE_ROW: row} if len(parts) > 1 else {}
            table.append({"index": len(table), "suite": "s", "task_id": task, "source_episode": number, **mark})
    train, held_out = split_episodes(table, fraction, 0)
    assert sorted([*train, *held_out]) == list(range(len(table)))
    sides = [{table[index]["source_episode"] for index in side} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert {table[index]["task_id"] for index in train} == {entry["task_id"] for entry in table}
    parts = recording_of(table).tolist()
    assert [table[first]["source_episode"] for first in parts] == [entry["source_episode"] for entry in table]
    assert parts == [min(i for i, other in enumerate(parts) if other == first) for first in parts]
    if [0] in tasks and tasks.count([0]) == len(tasks) > 1:
        assert len(sides[1]) == min(max(round(fraction * len(tasks)), 1), len(tasks) - 1)
