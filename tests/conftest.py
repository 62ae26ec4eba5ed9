"""What all tests share: two simulated devices, kept compilations, and two real demonstrations."""

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.shapes

install_import_hook(tests.shapes.annotated_modules(), "tests.shapes.check_shapes")

from wmjax.sim.libero import OBSERVATION_SPEC  # noqa: E402

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Jobs in the background of a shell, or under nohup, ignore these, and so would the commands that tests start and stop.
for _name, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_name) is signal.SIG_IGN:
        signal.signal(_name, _handler)
# So that every jitted test runs on a real mesh.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()
# Many tests compile the same small models.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "wmjax-tests-xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# The same examples on every run, so that a commit's tests do not depend on luck; --hypothesis-profile=random searches.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", derandomize=False, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory):
    """A training store of two demonstrations, recorded on this machine: replays of it are exact."""
    from wmjax.recording.record import record

    return record(tmp_path_factory.mktemp("recorded") / "store", "libero_spatial", [2], 2, OBSERVATION_SPEC)
