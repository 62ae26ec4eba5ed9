"""Prepares a process for the simulator before its import, and explains why the simulator does not start.

robosuite logs to one file for all users of a machine, numba keeps compiled code beside its sources or at home,
LIBERO looks into the home folder, and robosuite takes ``CUDA_VISIBLE_DEVICES`` for the number of an EGL device. Nothing
here imports the simulator.
"""

import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from wmjax.core.distributed import visible_gpus
from wmjax.core.errors import UserError
from wmjax.core.paths import cache_root
from wmjax.core.settings import parse_integer

GL_PACKAGES = "libosmesa6 libegl1 libgl1-mesa-dri libopengl0 libglvnd0"
GL_SIGNS = ("egl", "osmesa", "opengl", "libgl", "glx", "'nonetype' object has no attribute", "display")
"""Words that mark an error as OpenGL's; for a missing library PyOpenGL reports that None has no attribute."""
SHARED_MEMORY = Path("/dev/shm")


def prepare() -> None:
    """Sets the variables that the simulator reads while it is imported; the user's settings stay if they work."""
    os.environ["MUJOCO_GL"] = os.environ.get("MUJOCO_GL") or "egl"
    _prepare_home()
    macros = _robosuite_macros()
    if macros is not None:
        macros.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    _prepare_numba(macros)


def _prepare_home() -> None:
    """Sets a home folder for packages that read one, if there is none or it belongs to another user."""
    try:
        home: Path | None = Path.home()
    except RuntimeError:
        home = None
    if home is None or not os.access(home, os.R_OK | os.X_OK):
        place = _own_folder("home")
        if home is None and place is not None:
            os.environ["HOME"] = str(place)
        if place is not None:
            os.environ.setdefault("LIBERO_CONFIG_PATH", str(place / "libero"))
            os.environ.setdefault("MPLCONFIGDIR", str(place / "matplotlib"))


def _robosuite_macros() -> ModuleType | None:
    """Robosuite's settings, before robosuite itself is imported and reads them."""
    if (loaded := sys.modules.get("robosuite.macros")) is not None:
        return loaded
    if (package := importlib.util.find_spec("robosuite")) is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "macros.py"
    spec = importlib.util.spec_from_file_location("robosuite.macros", path)
    if not path.is_file() or spec is None or spec.loader is None:
        return None
    macros = importlib.util.module_from_spec(spec)
    sys.modules["robosuite.macros"] = macros
    spec.loader.exec_module(macros)
    return macros


def _prepare_numba(macros: ModuleType | None) -> None:
    """A folder for compiled kernels that can be written to; without one they are compiled anew in each process."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    beside = Path(macros.__file__ or "").parent / "utils" / "__pycache__" if macros is not None else None
    if given is None and beside is not None and _is_writable(beside):
        return
    if given is not None and _is_writable(Path(given)):
        return
    folder = _own_folder("numba")
    if folder is not None:
        os.environ["NUMBA_CACHE_DIR"] = str(folder)
    elif macros is not None:
        os.environ.pop("NUMBA_CACHE_DIR", None)
        macros.CACHE_NUMBA = False  # type: ignore[attr-defined]


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _own_folder(name: str) -> Path | None:
    """A folder of this user in the cache, else among the temporary files; None if neither can be written to."""
    places = []
    with contextlib.suppress(UserError):
        places.append(cache_root() / name)
    with contextlib.suppress(FileNotFoundError):  # a container whose disk is read-only has no place for such files
        places.append(Path(tempfile.gettempdir()) / f"wmjax-{os.getuid()}" / name)
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            if os.access(place, os.W_OK | os.X_OK):
                return place
    return None


def render_variables(
    worker: int, devices: Sequence[int] = (), environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The variables with which a worker draws on a GPU of its own, so that workers take the GPUs in turn.

    Without ``devices`` these are the GPUs that the parent sees. The worker's own is then the first in
    ``CUDA_VISIBLE_DEVICES``, which selects it as :func:`egl_devices` says. What the user sets stays.

    Args:
        worker: the worker's number.
        devices: numbers of EGL's devices; empty for the visible GPUs.
        environment: of the parent.

    """
    if (environment.get("MUJOCO_GL") or "egl").lower() != "egl" or "MUJOCO_EGL_DEVICE_ID" in environment:
        return {}
    if devices:
        return {"MUJOCO_EGL_DEVICE_ID": str(devices[worker % len(devices)])}
    gpus = visible_gpus(environment)
    first = worker % max(1, len(gpus))
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first:] + gpus[:first])} if len(gpus) > 1 else {}


@contextlib.contextmanager
def egl_devices() -> Iterator[None]:
    """Hides ``CUDA_VISIBLE_DEVICES`` from robosuite, which would read it as the number of an EGL device.

    Its first number still selects the device if EGL lists that many; a UUID, a MIG slice or a larger number does not.
    """
    hidden = os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    first = (hidden or "").split(",")[0].strip()
    chosen = False
    try:
        device = parse_integer(first)
        if device is not None and "MUJOCO_EGL_DEVICE_ID" not in os.environ and device < count_egl_devices():
            os.environ["MUJOCO_EGL_DEVICE_ID"], chosen = first, True
        yield
    finally:
        if hidden is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = hidden
        if chosen:
            os.environ.pop("MUJOCO_EGL_DEVICE_ID", None)


def count_egl_devices() -> int:
    """Number of devices that EGL lists; 0 if EGL is not installed or not used."""
    if os.environ.get("MUJOCO_GL", "egl").lower() != "egl":
        return 0
    try:
        os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
        from mujoco.egl import egl_ext

        return len(egl_ext.eglQueryDevicesEXT())
    except Exception:  # no library, no driver: what renders then says why
        return 0


def require_shared_memory(needed: int) -> None:
    """Refuses to start workers whose frames do not fit, because writing them would kill the workers without a message.

    Raises:
        UserError: fewer bytes are free.

    """
    if SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < needed:
        raise UserError(
            f"{SHARED_MEMORY}: {free / 1e6:.2f} MB free, the simulator's frames need {needed / 1e6:.2f}; start the "
            "container with more (docker run --shm-size=1g), or take fewer workers"
        )


def why_not(cause: BaseException) -> UserError:
    """The error for a simulator that cannot be imported or cannot render; it names the cause and the fix."""
    text = f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:300]
    low, gl = text.lower(), os.environ.get("MUJOCO_GL")
    platform = os.environ.get("PYOPENGL_PLATFORM")
    if isinstance(cause, ModuleNotFoundError):
        return UserError(f"package {cause.name} is not installed; run ./setup.sh sim")
    if isinstance(cause, PermissionError):
        return UserError(f"the simulator cannot read or write {cause.filename}; give this user the permission to")
    if "cannot cache function" in low or ("numba" in low and "cache" in low):
        return UserError(f"the simulator cannot keep compiled code ({text}); set NUMBA_CACHE_DIR to a writable folder")
    if "mujoco_gl" in low or (gl or "").lower() not in ("egl", "osmesa", "glfw", "glx", ""):
        return UserError(f"MUJOCO_GL is {gl!r}, which does not work here ({text}); set it to egl or osmesa")
    if "mujoco_egl_device_id" in low:
        device = os.environ.get("MUJOCO_EGL_DEVICE_ID")
        return UserError(
            f"MUJOCO_EGL_DEVICE_ID is {device!r}, which EGL does not list ({text}); unset it, or "
            "correct evaluation.render_devices"
        )
    if platform is not None and gl is not None and platform.lower() != gl.lower():
        return UserError(f"PYOPENGL_PLATFORM is {platform!r}, but MUJOCO_GL {gl!r} ({text}); unset the former")
    if any(sign in low for sign in GL_SIGNS):
        return UserError(
            f"headless rendering does not start (MUJOCO_GL={gl!r}: {text}); run ./setup.sh sim, or apt-get install "
            f"{GL_PACKAGES}"
        )
    return UserError(f"the simulator cannot be imported ({text}); check it with `python -m wmjax.doctor`")
