"""What all tests share: two simulated devices, kept compilations, and two real demonstrations."""

import os
import signal
import sys
import tempfile
from pathlib import Path

from tests import QUICK_FUSIONS

# Before jax is imported, which reads them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Jobs in the background of a shell, or under nohup, ignore these, and so would the commands that tests start and stop.
for _name, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_name) is signal.SIG_IGN:
        signal.signal(_name, _handler)
# Two devices, so that every jitted test runs on a real mesh; and quickly compiled programs, because most of the time of
# most tests is compilation.
FLAGS = f"--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=1 {QUICK_FUSIONS}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
# Many tests compile the same small models.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "wmjax-tests-xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

import tests.shapes  # noqa: E402

install_import_hook(tests.shapes.annotated_modules(), "tests.shapes.check_shapes")

from wmjax.sim.libero import OBSERVATION_SPEC  # noqa: E402

# The same examples on every run, so that a commit's tests do not depend on luck; --hypothesis-profile=random searches.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", derandomize=False, deadline=None)
settings.load_profile("fixed")


SLOW = frozenset((Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").splitlines())
"""Tests, and whole files of tests, that took long when they were measured last, see ``tools/slow_tests.py``."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # What is long is slow too: `-m "not slow"` replaces the configuration's `-m "not long"`.
        if item.get_closest_marker("long") or {item.nodeid, item.nodeid.partition("::")[0]} & SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_dropped():
    """Memory stays within a few GB: no file needs the programs of another."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory):
    """A training store of two demonstrations, recorded on this machine: replays of it are exact."""
    from wmjax.recording.record import record

    return record(tmp_path_factory.mktemp("recorded") / "store", "libero_spatial", [2], 2, OBSERVATION_SPEC)
