"""Checks of this machine: simulator, rendering, devices, disk. A failed check names its fix."""

import dataclasses
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from wmjax.core.devices import require_devices
from wmjax.core.errors import UserError
from wmjax.core.files import disk_errors
from wmjax.core.paths import cache_root
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import OBSERVATION_SPEC, simulator_version
from wmjax.sim.pool import Fault
from wmjax.sim.rollout_pool import RolloutPool
from wmjax.sim.worker import Reset, WorkerSettings

REFERENCE = Path(__file__).parents[1] / "sim" / "reference_frame.png"
"""Both cameras of :data:`EPISODE`'s first frame, side by side, as the recorder's machine rendered them."""
EPISODE = EpisodeId("libero_spatial", 2, "random", 0)
FRAME_TOLERANCE = 2.0
"""Mean absolute difference, of 255, that GL drivers may cause. MuJoCo 3.17 differs by more than ten."""
DISK_GB = 3.0
"""The space of the default run: demonstrations, latents, checkpoints, videos, compiled programs."""

Status = Literal["ok", "note", "FAIL"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report."""

    status: Status
    text: str


def check_simulator() -> Finding:
    """The installed simulator packages and MuJoCo's version."""
    return Finding("ok", f"simulator: {simulator_version()}")


def render_first_frame(episode: EpisodeId = EPISODE) -> UInt8[np.ndarray, "height width 3"]:
    """Both cameras of an episode's first frame side by side, rendered in a worker process.

    Raises:
        UserError: the simulator or OpenGL does not start.

    """
    with RolloutPool(WorkerSettings(OBSERVATION_SPEC, frames=1), workers=1) as pool:
        pool.send(0, Reset(episode))
        (_, event) = pool.wait()[0]
        if isinstance(event, Fault):
            raise UserError(
                f"the simulator does not start: {event.message.strip().splitlines()[-1]}; run ./setup.sh sim"
            )
        return np.concatenate(list(pool.frames(0, 1)[0]), axis=1)


def check_rendering() -> Finding:
    """A rendered frame against the shipped reference."""
    frame = render_first_frame().astype(np.int32)
    reference = np.asarray(Image.open(REFERENCE)).astype(np.int32)
    difference = float(np.abs(frame - reference).mean())
    text = f"rendering: first frame of {EPISODE.key} differs by {difference:.2f} of 255 from the reference"
    if difference <= FRAME_TOLERANCE:
        return Finding("ok", text)
    return Finding(
        "FAIL", f"{text} (at most {FRAME_TOLERANCE}); the GL driver or MuJoCo is another: run ./setup.sh sim"
    )


def check_jax() -> Finding:
    """The devices that jit will use.

    Raises:
        UserError: there are none.

    """
    import jax

    require_devices()
    kinds = sorted({device.device_kind for device in jax.devices()})
    return Finding("ok", f"jax {jax.__version__}: {jax.device_count()} x {', '.join(kinds)} ({jax.default_backend()})")


def check_disk() -> Finding:
    """The free space at the cache."""
    folder = cache_root()
    with disk_errors(folder):
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free / 1e9
    text = f"disk: {free:.1f} GB free at {cache_root()}"
    if free >= DISK_GB:
        return Finding("ok", text)
    return Finding("FAIL", f"{text}, the default run needs {DISK_GB}; set WMJAX_CACHE to a larger disk")


def check_torch() -> Finding:
    """Whether PyTorch is installed (it is not imported, because two frameworks would share the GPU)."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if not missing:
        return Finding("ok", "torch and transformers: installed")
    return Finding("note", f"{' and '.join(missing)}: not installed; only encoders_export needs it (./setup.sh export)")


CHECKS: tuple[Callable[[], Finding], ...] = (check_simulator, check_rendering, check_jax, check_disk, check_torch)


def run_checks(checks: tuple[Callable[[], Finding], ...] = CHECKS) -> list[Finding]:
    """All findings; a UserError is a failed check, anything else is a bug and propagates."""
    findings = []
    for check in checks:
        try:
            findings.append(check())
        except UserError as error:
            findings.append(Finding("FAIL", f"{check.__name__.removeprefix('check_')}: {error}"))
        print(f"{findings[-1].status:>4}  {findings[-1].text}", flush=True)
    return findings
