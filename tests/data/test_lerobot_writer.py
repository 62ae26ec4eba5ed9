import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from wmjax.core.errors import UserError
from wmjax.data.episode import EpisodeData
from wmjax.data.formats.lerobot.convert import convert
from wmjax.data.formats.lerobot.dataset import LeRobotDataset
from wmjax.data.formats.lerobot.layout import load_layout
from wmjax.data.formats.lerobot.stats import column_stats, count_levels, image_stats
from wmjax.data.formats.lerobot.writer import write_lerobot_v30
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

REFERENCE = Path(__file__).parent / "fixtures/lerobot_v30_image"
DATA, EPISODES, TASKS = (
    "data/chunk-000/file-000.parquet",
    "meta/episodes/chunk-000/file-000.parquet",
    "meta/tasks.parquet",
)


def write(folder, episodes, **settings):
    """Writes episodes as LIBERO's, under the column names of ``HuggingFaceVLA/libero``."""
    layout = load_layout("HuggingFaceVLA/libero")
    write_lerobot_v30(folder, episodes, OBSERVATION_SPEC, ACTION_SPEC, layout=layout, **settings)


def reference_episodes():
    dataset = LeRobotDataset(REFERENCE)
    for entry in dataset.episodes:
        columns, steps = dataset.columns(entry), np.arange(entry.length, dtype=np.int32)
        task = int(columns.task_index[0])
        meta = {"suite": "x", "task_id": task, "instruction": dataset.tasks[task]}
        images = dataset.images(entry, steps)
        yield EpisodeData(images, steps, columns.state, columns.action, columns.action, np.zeros(0), meta)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot") / "out"
    write(folder, reference_episodes())
    return folder


def test_same_files(written):
    def names(root):
        return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())

    assert names(written) == [name for name in names(REFERENCE) if name != "expected.npz"]


def test_same_info(written):
    found, expected = ((root / "meta/info.json").read_text() for root in (written, REFERENCE))
    assert found.rstrip() == expected.rstrip()


@pytest.mark.parametrize("name", [DATA, EPISODES, TASKS])
def test_same_columns_and_types(written, name):
    assert pq.read_schema(written / name).equals(pq.read_schema(REFERENCE / name), check_metadata=False)


def test_same_schema_metadata(written):
    def metadata(root, name, key):
        return json.loads(pq.read_schema(root / name).metadata[key])

    found, expected = (metadata(root, DATA, b"huggingface") for root in (written, REFERENCE))
    assert found["info"] == expected["info"] and set(found) == set(expected)
    assert len(found["fingerprint"]) == len(expected["fingerprint"])
    found, expected = (metadata(root, TASKS, b"pandas") for root in (written, REFERENCE))
    for varying in ("creator", "pandas_version"):
        assert varying in found
        del found[varying], expected[varying]
    assert found == expected


def test_same_rows_row_groups_and_compression(written):
    assert pq.read_table(written / DATA).equals(pq.read_table(REFERENCE / DATA))
    assert pq.read_table(written / TASKS).equals(pq.read_table(REFERENCE / TASKS))
    found, expected = (pq.ParquetFile(root / DATA).metadata for root in (written, REFERENCE))
    assert found.num_row_groups == expected.num_row_groups == 3
    for group in range(3):
        for column in range(found.num_columns):
            a, b = (m.row_group(group).column(column) for m in (found, expected))
            assert (a.path_in_schema, a.compression, a.num_values) == (b.path_in_schema, b.compression, b.num_values)


def test_same_episode_table_up_to_the_library_s_approximations(written):
    found, expected = (pq.read_table(root / EPISODES).to_pydict() for root in (written, REFERENCE))
    assert list(found) == list(expected)
    for name, values in expected.items():
        kind = name.rsplit("/", 1)[-1]
        if not name.startswith("stats/"):
            assert found[name] == values, name
        elif kind in ("min", "max", "count"):
            np.testing.assert_allclose(found[name], values, rtol=1e-12, err_msg=name)
        elif kind == "mean" or (kind == "std" and "images" not in name):
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=2e-5, err_msg=name)
        else:
            assert np.shape(found[name]) == np.shape(values), name


def test_same_global_statistics_up_to_the_library_s_approximations(written):
    found, expected = (json.loads((root / "meta/stats.json").read_text()) for root in (written, REFERENCE))
    assert set(found) == set(expected)
    for feature, stats in expected.items():
        assert list(found[feature]) == list(stats)
        for kind, values in stats.items():
            assert np.shape(found[feature][kind]) == np.shape(values)
            if kind in ("min", "max", "count", "mean"):
                np.testing.assert_allclose(found[feature][kind], values, rtol=1e-5, atol=2e-5)
            if kind == "std" and "images" not in feature:
                np.testing.assert_allclose(found[feature][kind], values, rtol=1e-5, atol=2e-5)


def test_statistics_are_numpy_s():
    images = np.random.default_rng(0).integers(5, 240, (4, 6, 7, 3), dtype=np.uint8)
    levels = count_levels(images[:1]) + count_levels(images[1:])
    found, values = image_stats(levels, 4), images.reshape(-1, 3) / 255
    for kind in ("min", "max", "mean", "std"):
        expected = getattr(values, kind)(axis=0)
        np.testing.assert_allclose(np.ravel(found[kind]), expected, rtol=1e-9)
    quantile = np.quantile(values, 0.1, axis=0, method="inverted_cdf")
    np.testing.assert_allclose(np.ravel(found["q10"]), quantile, rtol=1e-12)
    assert found["count"] == [4] and np.shape(found["mean"]) == (3, 1, 1)
    rows = np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32)
    np.testing.assert_allclose(column_stats(rows)["q90"], np.quantile(rows.astype(float), 0.9, axis=0))


def test_what_was_written_converts_like_the_reference(written, tmp_path):
    a, b = (convert(str(root), tmp_path / root.name, image_size=64) for root in (written, REFERENCE))
    assert a.hash == b.hash


def test_data_files_roll_over(tmp_path):
    write(tmp_path / "out", reference_episodes(), data_file_mb=0)
    dataset = LeRobotDataset(tmp_path / "out")
    assert [entry.data.name for entry in dataset.episodes] == [f"file-00{i}.parquet" for i in range(3)]
    expected = np.load(REFERENCE / "expected.npz")
    assert np.array_equal(dataset.columns(dataset.episodes[2]).state[5], expected["s2_5"])


def test_never_overwrites_and_leaves_nothing_half_written(written, tmp_path):
    with pytest.raises(UserError, match="nothing was overwritten"):
        write(written, reference_episodes())
    with pytest.raises(UserError, match="0 episodes"):
        write(tmp_path / "a", [])

    def strided():
        for episode in reference_episodes():
            episode.images, episode.frame_step = episode.images[::4], episode.frame_step[::4]
            yield episode

    with pytest.raises(UserError, match=r"3 images for 9 control steps; .*--every-step"):
        write(tmp_path / "a", strided())

    def two_sizes():
        yield from list(reference_episodes())[:1]
        for episode in list(reference_episodes())[1:]:
            episode.images = episode.images[:, :, :32]
            yield episode

    with pytest.raises(UserError, match="expected 2 x 64x64"):
        write(tmp_path / "a", two_sizes())
    assert list(tmp_path.iterdir()) == []
