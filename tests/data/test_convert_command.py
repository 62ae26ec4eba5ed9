"""The options of the convert and diagnose commands, without data: one line for what cannot be."""

from pathlib import Path

import pytest

from wmjax import convert, diagnose
from wmjax.core.options import CommandParser
from wmjax.core.settings import build
from wmjax.data.formats.base import ConvertSettings
from wmjax.pipeline.convert import SHORTS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--image-size 0", "convert.image_size is 0; it must be at least 1"),
        ("--frame-stride -1", "convert.frame_stride is -1; it must be at least 1"),
        ("--max-episodes many", "convert.max_episodes is 'many'; expected int"),
        ("--convert.max_episodes 0", "convert.max_episodes is 0; it must be at least 1"),
        ("--grippers a,b", "'a,b' is not a list of numbers; write them as 0,1"),
        ("--gripper-convention open", "convert.gripper_convention is 'open'; choose one of 'open-negative', 'open-pos"),
        ("--format tarball", "unknown convert.format 'tarball'; known: "),
        ("--format libero_hdf5 --layout x", "--layout is for LeRobot datasets, nowhere is converted as LIBERO"),
        ("--convert.select 3", "convert.select is 3; expected tuple[str, ...]"),
        ("--rows between", "convert.rows is 'between'; choose one of"),
        (
            "--convert.rows before",
            "--rows is for LIBERO's HDF5 files, nowhere is converted as LeRobot datasets",
        ),
        ("--record.suite x", "unknown section of settings 'record'; known: convert"),
    ],
)
def test_options_of_a_conversion(words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert convert.main(["nowhere", "--out", str(tmp_path / "store"), *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not list(tmp_path.iterdir())


def test_every_setting_of_a_conversion_has_a_short_option() -> None:
    parser = CommandParser("convert", None)
    parser.add_settings("convert", SHORTS, ConvertSettings())
    line = (
        "--image-size 64 --frame-stride 2 --max-episodes 3 --gripper-convention open-one --skip-bad --layout 8 "
        "--grippers none --select cameras=top tasks=0,2 --revision 1234 --video-only STORE --rows before "
        "--format lerobot"
    )
    found = build(ConvertSettings, parser.read(line.split())[1]["convert"])
    assert found == ConvertSettings(
        64, 2, 3, "open-one", True, "8", (), ("cameras=top", "tasks=0,2"), "1234", "STORE", "before", "lerobot"
    )


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_batches_of_a_diagnosis(value: str, capsys: pytest.CaptureFixture) -> None:
    assert diagnose.main(["--run", "nowhere", "--batches", value]) == 2
    assert capsys.readouterr().err == f"error: --batches is {value!r}; give a whole number from 1 to 1000000\n"
