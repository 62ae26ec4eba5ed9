"""The wheel is whole: installed where no repository is, it trains, acts, and passes the doctor."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = {
    "wmjax": "wmjax",
    "encoders_export": "encoders_export",
    "train": "wmjax/_train",
    "eval/protocols": "wmjax/_eval/protocols",
}
"""Folders of the repository that the wheel carries, and where they lie in it."""
READS_ITS_DATA = """
import jax, numpy as np, wmjax
from wmjax.core.paths import records_folder, resource_folder
from wmjax.data.formats.lerobot.layout import layouts
from wmjax.experiment.config import axis_names, load, read_axis, recipe_names
from wmjax.rollout.protocol import load_protocol, protocol_names
from wmjax.rollout.protocol_list import load_protocol_list
for recipe in recipe_names():
    load(recipe)
for axis in ("scales", "data"):
    for name in axis_names(axis):
        read_axis(axis, name)
for name in protocol_names():
    load_protocol_list(name) or load_protocol(name)
policy = wmjax.load_policy("mini", batch_size=1)
frames = np.zeros((1, policy.frames_per_decision, 2, 112, 112, 3), np.uint8)
prompt = policy.prompt("pick up the black bowl")
observation = wmjax.Observation(frames, np.zeros((1, 8), np.float32), prompt, first=np.ones(1, bool))
_, actions, _ = policy(policy.initial_carry(), observation, jax.random.split(jax.random.key(0), 1))
assert actions.shape == (1, 8, 7) and np.isfinite(actions).all()
print(len(layouts()), len(recipe_names()), len(protocol_names()))
print(wmjax.__file__, resource_folder("train"), resource_folder("eval"), records_folder(), sep="\\n")
"""


def shipped() -> Iterator[tuple[Path, str]]:
    """Every file that must be in the wheel, and its name there."""
    for folder, place in PLACES.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path, f"{place}/{path.relative_to(ROOT / folder).as_posix()}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", folder, ROOT], check=True, timeout=200)
    (path,) = folder.glob("wmjax-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts' folder of a new environment that holds wmjax from the wheel.

    Its dependencies are this environment's: their folder is added as a plain path, so that the editable installation
    that may lie there stays without effect.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", wheel], check=True, timeout=200)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
    dependencies = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (site / "dependencies.pth").write_text("\n".join(dependencies) + "\n", encoding="utf-8")
    return python.parent


def run(command: list[str | Path], folder: Path) -> str:
    """What a command prints in an empty folder that knows nothing of the repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"JAX_PLATFORMS": "cpu", "WMJAX_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(wheel: Path) -> None:
    expected = {name: path for path, name in shipped()}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert held == set(expected)
        for name, path in expected.items():
            assert archive.read(name) == path.read_bytes(), name


@pytest.mark.slow
def test_recipes_protocols_and_the_shipped_policy_are_read_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    counts, *places = run([installed / "python", "-c", READS_ITS_DATA], tmp_path).splitlines()
    assert all(int(count) > 0 for count in counts.split())
    package, train, evaluation, records = map(Path, places)
    assert package.is_relative_to(installed.parent)
    assert (train, evaluation) == (package.parent / "_train", package.parent / "_eval")
    assert records == tmp_path / "cache" / "results"


@pytest.mark.slow
def test_a_training_is_planned_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    printed = run([installed / "wmjax", "train", "--config", "e2_flow", "--dry-run"], tmp_path)
    assert "e2_flow" in printed and str(ROOT) not in printed
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
@pytest.mark.sim
def test_the_doctor_finds_nothing_wrong_with_the_wheel(installed: Path, tmp_path: Path) -> None:
    printed = run([installed / "wmjax", "doctor"], tmp_path)
    assert "FAIL" not in printed and "from the reference" in printed
