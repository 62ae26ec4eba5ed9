"""Runs an estimate in a process of its own, with the interpreter that has the topology's compiler.

libtpu and CUDA's plugin live in ``.venv-estimate``: beside jax they change its default platform.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from wmjax.core.errors import UserError
from wmjax.scaling.chips import Topology, parse_topology
from wmjax.scaling.devices import environment
from wmjax.scaling.request import Request

ROOT = Path(__file__).resolve().parents[2]
COMPILERS = ROOT / ".venv-estimate"
PACKAGES = {"tpu": "libtpu", "gpu": "jax_plugins/xla_cuda12"}
"""Folders of site-packages that a compiler is in."""


def run(request: Request) -> dict[str, Any]:
    """The estimate, see :func:`wmjax.scaling.estimate.estimate`.

    Raises:
        UserError: the request is bad, or the compiler is not installed.
        RuntimeError: the process failed; its output is in the message.

    """
    topology = parse_topology(request.topology)
    python, site = interpreter(topology)
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
