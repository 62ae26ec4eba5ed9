"""The process of the checks: ``python -m wmjax.scaling.firstlight.worker REQUEST SCRATCH``, see :mod:`.supervise`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from wmjax.core import logs
from wmjax.core.command import run_command
from wmjax.core.devices import require_devices
from wmjax.core.paths import enable_compilation_cache
from wmjax.scaling.firstlight.request import Request

ROWS = "rows.jsonl"


def main() -> int:
    """Appends a line before and after each check to a file in SCRATCH."""

    def body() -> int:
        request, scratch = Request(**json.loads(sys.argv[1])), Path(sys.argv[2])
        enable_compilation_cache()
        os.environ["WMJAX_CACHE"] = str(scratch / "cache")  # what the checks make goes with them
        require_devices()
        from wmjax.scaling.firstlight.bench import Bench
        from wmjax.scaling.firstlight.checks import run_check

        bench = Bench(request, scratch)
        _append(scratch, about())
        for name in request.checks:
            _append(scratch, {"begins": name})
            _append(scratch, run_check(name, bench).as_dict())
        return 0

    logs.set_up()
    return run_command(body)


def about() -> dict[str, Any]:
    """The devices and the versions."""
    import flax
    import jax

    kinds = sorted({device.device_kind for device in jax.devices()})
    versions = {"jax": jax.__version__, "flax": flax.__version__, "python": sys.version.split()[0]}
    return {"devices": jax.device_count(), "kinds": kinds, "backend": jax.default_backend(), "versions": versions}


def _append(scratch: Path, values: dict[str, Any]) -> None:
    with (scratch / ROWS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


if __name__ == "__main__":
    sys.exit(main())
