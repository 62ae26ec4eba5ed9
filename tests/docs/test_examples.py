"""The examples run, one after the other, as a reader would run them; the episode's GIF is small and shows all of it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools import episode_gif
from wmjax.data.latents import LatentStore
from wmjax.data.store import TrainingStore
from wmjax.reporting.video.clips import write_video

ROOT = Path(__file__).parents[2]


def example(name: str, *arguments: str, cache: Path) -> str:
    """Runs an example in a separate process and returns its output."""
    line = [sys.executable, str(ROOT / "examples" / name), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "WMJAX_CACHE": str(cache)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_tiny_policy_trains_and_acts(tmp_path: Path) -> None:
    shown = example("train_tiny.py", str(tmp_path / "run"), "--config", "e0_mse", "--steps", "2", cache=tmp_path)
    assert shown.endswith(f"run: {tmp_path / 'run'}\n")
    lines = example("act.py", str(tmp_path / "run"), "--decisions", "3", cache=tmp_path).splitlines()
    assert [line.split(":")[0] for line in lines] == ["frame 0", "frame 1", "frame 2"]
    assert all("expert" in line for line in lines)


@pytest.mark.slow
@pytest.mark.long
def test_an_encoder_of_the_examples_trains_and_acts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = (str(run), "--config", "e2_mse", "--steps", "2", "--cells", "2")
    shown = example("add_encoder.py", *line, cache=tmp_path / "cache")
    assert shown.endswith(f"run: {run}\n")
    (stores,) = (tmp_path / "cache" / "latents").iterdir()
    latents = LatentStore(stores)
    assert latents.spec.kind == "examples.add_encoder:ColourGrid" and latents.latents.shape[2:] == (4, 6)
    store = TrainingStore(ROOT / "tests" / "fixtures" / "two_episodes")
    frames = np.asarray(store.frames[[0, 3, 4], 0], np.float32) / 255  # view 0 is not shifted
    colours = frames.reshape(3, 2, 56, 2, 56, 3).mean((2, 4)).reshape(3, 4, 3)
    found = np.asarray(latents.latents[0, [0, 4]], np.float32)
    np.testing.assert_allclose(found[..., :3], colours[[0, 2]], atol=1e-3)
    np.testing.assert_allclose(found[1, :, 3:], colours[2] - colours[1], atol=1e-3)
    assert len(example("act.py", str(run), "--decisions", "2", cache=tmp_path / "cache").splitlines()) == 2


def videos(folder: Path) -> Path:
    """A results folder with a failure and a success, in that order of names."""
    frames = np.zeros((9, 2, 112, 112, 3), np.uint8)
    for number in range(9):
        frames[number, :, number * 10 : number * 10 + 20, 30:60] = (200, 90, 20)
    for outcome in ("failure", "success"):
        write_video(folder / "videos" / f"suite-0__random-1__{outcome}.mp4", frames, ["caption"] * 9, rate=5)
    return folder


def test_the_gif_of_an_episode_shows_its_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos").mkdir()
    assert episode_gif.main([str(videos(tmp_path)), str(tmp_path / "out.gif")]) == 0
    assert "9 of 9 frames of suite-0__random-1__success.mp4" in capsys.readouterr().out
    with Image.open(tmp_path / "out.gif") as found:
        assert found.n_frames == 9 and found.info["loop"] == 0 and found.info["duration"] == 100
        found.seek(8)
        row = np.asarray(found.convert("RGB"))[180]  # the square has come down here
        assert (np.abs(row.astype(int) - (200, 90, 20)).max(-1) < 40).any()


def test_a_gif_is_made_smaller_until_it_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos").mkdir()
    folder, out = videos(tmp_path), tmp_path / "out.gif"
    assert episode_gif.main([str(folder), str(out)]) == 0
    whole = out.stat().st_size
    assert episode_gif.main([str(folder), str(out), "--limit", str(whole - 1)]) == 0
    assert out.stat().st_size < whole
    assert episode_gif.main([str(folder), str(out), "--limit", "100"]) == 2
    assert "raise --limit" in capsys.readouterr().err and not out.exists()
    assert episode_gif.main([str(tmp_path / "none"), str(out)]) == 2
