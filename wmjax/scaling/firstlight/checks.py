"""The checks by name, and their runner: one check's failure does not affect the others."""

import logging
import time
from collections.abc import Callable, Mapping

from wmjax.core.errors import one_line
from wmjax.scaling.firstlight import acting, models, training
from wmjax.scaling.firstlight.bench import Bench
from wmjax.scaling.firstlight.request import NAMES, Finding, MissingPieceError, Row

Check = Callable[[Bench], Finding]
log = logging.getLogger("wmjax.firstlight")


def _check(name: str) -> Check:
    return next(getattr(room, f"check_{name}") for room in (models, training, acting) if hasattr(room, f"check_{name}"))


CHECKS: Mapping[str, Check] = {name: _check(name) for name in NAMES}


def run_check(name: str, bench: Bench, checks: Mapping[str, Check] = CHECKS) -> Row:
    """Runs one check and returns its line; every exception except signals becomes a finding."""
    started = time.monotonic()
    try:
        finding = checks[name](bench)
    except MissingPieceError as missing:
        finding = Finding("skip", one_line(missing))
    except Exception as error:  # drivers and compilers raise what they like
        log.exception("check %s", name)
        finding = Finding("fail", f"{type(error).__name__}: {one_line(error)}")
    return Row(name, finding, time.monotonic() - started)
