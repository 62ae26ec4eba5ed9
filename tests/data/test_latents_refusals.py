"""The predecessor's third sin: latents of a dataset that does not say where an episode begins, or what it is about."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.data.test_lerobot_reader import fixture
from wmjax.convert import main as convert
from wmjax.encode import main as encode


def without_column(folder: Path, name: str) -> None:
    for path in (folder / "data").rglob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns([name]), path)


def without_words(folder: Path, _: str) -> None:
    path = folder / "meta/tasks.jsonl"
    path.write_text(path.read_text().replace("pick up the milk and place it in the basket", "  "))


@pytest.mark.parametrize(
    ("change", "name"),
    [(without_column, "episode_index"), (without_column, "task_index"), (without_words, "instruction")],
)
def test_nothing_is_encoded_of_a_dataset_without_it(tmp_path: Path, capsys, change, name: str) -> None:
    source = shutil.copytree(fixture("v21_image"), tmp_path / "in")
    change(source, name)
    assert convert([str(source), "--out", str(tmp_path / "store")]) == 2
    assert name in capsys.readouterr().err
    assert encode(["--data", str(tmp_path / "store"), "--out", str(tmp_path / "latents")]) == 2
    assert not (tmp_path / "latents").exists()
