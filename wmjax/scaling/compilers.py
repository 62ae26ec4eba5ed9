"""Runs an estimate in a separate process, with the interpreter that has the topology's compiler.

libtpu and CUDA's plugin live in ``.venv-estimate``: beside jax they change its default platform.
"""

import dataclasses
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wmjax.core.errors import UserError
from wmjax.core.files import hash_file, hash_json, write_json
from wmjax.core.paths import cache_root, resource_folder
from wmjax.core.settings import dotted
from wmjax.scaling.chips import Topology, parse_topology
from wmjax.scaling.devices import environment
from wmjax.scaling.request import Request

ROOT = Path(__file__).resolve().parents[2]
COMPILERS = ROOT / ".venv-estimate"
PACKAGES = {"tpu": "libtpu", "gpu": "jax_plugins/xla_cuda12"}
"""Folders of site-packages that a compiler is in."""


def run(request: Request) -> dict[str, Any]:
    """The estimate, see :func:`wmjax.scaling.estimate.estimate`; stored in ``<cache>/estimates``.

    Raises:
        UserError: the request is bad, or the compiler is not installed.
        RuntimeError: the process failed; its output is in the message.

    """
    topology = parse_topology(request.topology)
    python, site = interpreter(topology)
    cached = cache_root() / "estimates" / f"{key(request, site)}.json"
    if cached.is_file():
        try:
            return dict(json.loads(cached.read_text(encoding="utf-8")))
        except ValueError:  # half of it was lost with the disk's cache: it is made again
            pass
    found = compile_in_own_process(request, topology, python, site)
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_json(cached, found)
    return found


def key(request: Request, site: Path) -> str:
    """A hash of everything that determines an estimate: the request, versions, variables, our code and named configs.

    Args:
        request: what is estimated.
        site: the folder of packages of the interpreter that compiles; empty for this one.

    """
    variables = {name: value for name, value in os.environ.items() if name.startswith(("XLA_", "JAX_", "LIBTPU_"))}
    configs = [
        hash_file(path)
        for value in dotted(request.settings).values()
        if isinstance(value, str) and (path := Path(value) / "config.json").is_file()
    ]
    return hash_json([dataclasses.asdict(request), sorted(_versions(site)), variables, configs, code_hash()])


def _versions(site: Path) -> Iterator[str]:
    """Packages that programs depend on, and their versions."""
    place = sys.path if site == Path() else [str(site)]
    for package in importlib.metadata.distributions(path=place):
        name = package.metadata["Name"].lower()
        if name.startswith(("jax", "libtpu", "flax", "optax", "nvidia")):
            yield f"{name} {package.version}"


@functools.cache
def code_hash() -> str:
    """The hash of the package's modules and of the files of ``train``, by name and content."""
    folders = ((ROOT / "wmjax", "*.py"), (resource_folder("train"), "*.toml"))
    paths = [(root, path) for root, kind in folders for path in root.rglob(kind)]
    return hash_json({f"{root.name}/{path.relative_to(root)}": hash_file(path) for root, path in paths})


def compile_in_own_process(request: Request, topology: Topology, python: str, site: Path) -> dict[str, Any]:
    """Computes the estimate in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        line = [python, "-m", "wmjax.scaling.worker", json.dumps(dataclasses.asdict(request)), str(answer)]
        variables = environment(topology, site)
        variables["PYTHONPATH"] = f"{ROOT}:{variables.get('PYTHONPATH', '')}"
        done = subprocess.run(line, env=variables, capture_output=True, text=True, check=False)
        if done.returncode == 0 and answer.is_file():
            found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            return found
    last = next((text for text in reversed(done.stderr.splitlines()) if text.startswith("error: ")), None)
    if done.returncode == 2 and last:
        raise UserError(last.removeprefix("error: "))
    raise RuntimeError(f"the compiler for {request.topology} ended with {done.returncode}\n{done.stderr[-4000:]}")


def interpreter(topology: Topology) -> tuple[str, Path]:
    """The Python that can compile for a topology, and its folder of packages.

    Raises:
        UserError: the compiler is not installed.

    """
    if topology.platform == "cpu":
        return sys.executable, Path()
    sites = [
        site for site in COMPILERS.glob("lib/python3*/site-packages") if (site / PACKAGES[topology.platform]).is_dir()
    ]
    if not sites:
        raise UserError(
            f"the compiler for {topology.name} is not installed in {COMPILERS}; run ./setup.sh estimate, "
            "or take --topology cpu:N"
        )
    return str(COMPILERS / "bin" / "python"), sites[0]
