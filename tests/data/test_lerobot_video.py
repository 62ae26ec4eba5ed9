"""The video of a LeRobot dataset without actions: it joins demonstrations, is never validated on, and has no labels."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.data.test_lerobot_reader import BOWL, LENGTHS, MILK, close, fixture, painted
from wmjax.convert import main
from wmjax.core.errors import UserError
from wmjax.data.formats.lerobot.convert import convert
from wmjax.data.formats.lerobot.video import convert_video
from wmjax.data.loader import BatchSource, LoaderConfig
from wmjax.data.split import VIDEO_ONLY, split_episodes, video_only_episodes
from wmjax.data.union import join_stores
from wmjax.data.weights import Mixture

MISSING = ("action", "observation.state")


def without_actions(variant, folder):
    """A dataset as the library wrote it, of which the columns of states and actions are gone."""
    shutil.copytree(fixture(variant), folder)
    for path in (folder / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.drop_columns([name for name in MISSING if name in table.column_names]), path)
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"] = {name: value for name, value in info["features"].items() if name not in MISSING}
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture(scope="module")
def like(tmp_path_factory):
    return convert(str(fixture("v30_image")), tmp_path_factory.mktemp("like") / "store", image_size=64)


@pytest.mark.parametrize("variant", ["v30_image", "v21_video"])
def test_frames_come_without_actions(like, variant, tmp_path):
    source = without_actions(variant, tmp_path / "in")
    with pytest.raises(UserError, match=r"columns .*action.* are missing"):
        convert(str(source), tmp_path / "refused", image_size=64)
    store = convert_video(str(source), tmp_path / "out", like)
    assert (store.spec, store.action_spec) == (like.spec, like.action_spec)
    assert [task.instruction for task in store.tasks] == [BOWL, MILK]
    for index, length in enumerate(LENGTHS):
        episode = store.episode(index)
        assert episode.frame_step.tolist() == list(range(0, length, 4)) and not episode.action.any()
        for image, step in zip(episode.images, episode.frame_step, strict=True):
            assert close(image[0], painted(index, step), "image" in variant)


def test_beside_demonstrations_only_the_frames_are_used(like, tmp_path):
    video = convert_video(str(without_actions("v30_image", tmp_path / "in")), tmp_path / "out", like)
    both = join_stores([like, video])
    train, validation = split_episodes(both.episodes, 0.5, 0)
    marked = [entry["index"] for entry in both.episodes if entry.get(VIDEO_ONLY)]
    assert (
        len(marked) == len(LENGTHS)
        and not set(marked) & set(validation.tolist())
        and set(marked) <= set(train.tolist())
    )
    assert len(validation)
    assert video_only_episodes(both.episodes, train, None) == tuple(marked)
    config = LoaderConfig(batch_size=8, video_only=tuple(marked), mixture=Mixture(weights=(1.0, 1.0)))
    source = BatchSource(both, None, train, config)
    seen = 0
    for number in range(6):
        batch = source[number]
        is_video = np.isin(both.frame_episode[batch["sample_id"]], marked)
        seen += is_video.sum()
        assert batch["action_mask"].any(1).tolist() == (~is_video).tolist()
        known = like.state[like.frame_row[np.isin(like.frame_episode, train)]].mean(0)
        np.testing.assert_allclose(batch["state"][is_video], np.tile(known, (is_video.sum(), 1)), rtol=1e-5)
    assert seen
    with pytest.raises(UserError, match="no training episode has actions; name a store that has some"):
        video_only_episodes(video.episodes, np.arange(len(LENGTHS)), None)


def test_the_command_converts_it_and_refuses_what_the_store_says(like, tmp_path, capsys):
    source = str(without_actions("v30_image", tmp_path / "in"))
    line = [source, "--out", str(tmp_path / "out"), "--video-only", str(like.folder)]
    assert main([*line, "--image-size", "28"]) == 2
    assert "--image-size is 28, but with --video-only the store" in capsys.readouterr().err
    assert main([*line, "--grippers", "6"]) == 2 and main([*line[:-1], str(tmp_path / "nothing")]) == 2
    assert not (tmp_path / "out").exists()
    assert main(line) == 0
    assert "3 episodes" in capsys.readouterr().out


def test_other_cameras_and_other_rates_are_refused(like, tmp_path):
    source = without_actions("v30_image", tmp_path / "in")
    info = json.loads((source / "meta/info.json").read_text())
    images = [name for name, value in info["features"].items() if value["dtype"] == "image"]
    renamed = json.dumps(info).replace(images[0], "observation.images.top")
    (source / "meta/info.json").write_text(renamed)
    with pytest.raises(UserError, match=r"no column of images is the camera .*there are .*name the columns"):
        convert_video(str(source), tmp_path / "out", like)
    (source / "meta/info.json").write_text(json.dumps(info))
    layout = tmp_path / "fast.toml"
    cameras = "\n".join(f'{name} = "{key}"' for name, key in zip(like.spec.cameras, images, strict=True))
    layout.write_text(
        f'state = "s"\naction = "a"\ncontrol_hz = 50.0\nfps_label = {info["fps"]}\n[cameras]\n{cameras}\n'
    )
    with pytest.raises(UserError, match=r"its rows have 50 Hz, the store of --video-only has 20"):
        convert_video(str(source), tmp_path / "out", like, layout=str(layout))
