"""Trackers, which receive metrics beside ``metrics.jsonl``. A failed tracker is dropped; the training continues."""

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from wmjax.core.errors import UserError, one_line, unknown_name

log = logging.getLogger("wmjax.train")
PROJECT = "wmjax"
"""The project of services that have projects; WANDB_PROJECT and TRACKIO_PROJECT name another one."""
LINE = ("step", "split", "time")
"""What a line of ``metrics.jsonl`` has beside its numbers."""
Line = Mapping[str, Any]


class Tracker(Protocol):
    """Takes lines of ``metrics.jsonl`` as they are written."""

    def add(self, line: Line) -> None:
        """Takes one line: ``step``, ``split``, ``time`` and numbers."""
        ...

    def close(self) -> None:
        """Sends buffered lines."""
        ...


class TensorBoard:
    """Event files in ``RUN/tensorboard``, rewritten from the lines of ``metrics.jsonl`` when a run resumes.

    Args:
        run: the run's folder.
        step: where it goes on.
        lines: those up to there; None for a new run.

    """

    def __init__(self, run: Path, step: int, lines: Sequence[Line] | None) -> None:
        from tensorboardX import SummaryWriter

        board = run / "tensorboard"
        if lines is not None:  # the events follow from the lines
            for old in board.glob("events.out.tfevents.*"):
                old.unlink()
        # The purge makes a TensorBoard that is watching forget what it has read already.
        self._board = SummaryWriter(str(board), purge_step=0 if lines is not None else step + 1)
        for line in lines or []:
            self.add(line)

    def add(self, line: Line) -> None:
        """Takes one line."""
        for name, value in line.items():
            if name not in LINE:
                self._board.add_scalar(f"{line['split']}/{name}", value, line["step"], walltime=line.get("time"))

    def close(self) -> None:
        """Writes buffered lines."""
        self._board.close()


class Wandb:
    """Weights & Biases, configured by its own variables; WANDB_MODE=offline writes to ``RUN/wandb`` without an account.

    A run that goes on is the same run there, with the id of ``RUN/wandb-id.txt``.
    """

    def __init__(self, run: Path, step: int, lines: Sequence[Line] | None) -> None:
        wandb = importlib.import_module("wandb")
        name = run / "wandb-id.txt"
        if not name.is_file():
            name.write_text(wandb.util.generate_id(), encoding="utf-8")
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        known = name.read_text(encoding="utf-8").strip()
        self._run = wandb.init(project=project, name=run.name, id=known, resume="allow", dir=str(run))
        self._run.define_metric("*", step_metric="step")  # steps may repeat after a resume

    def add(self, line: Line) -> None:
        """Takes one line."""
        numbers = {f"{line['split']}/{name}": value for name, value in line.items() if name not in LINE}
        self._run.log({"step": line["step"], **numbers})

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()


class Trackio:
    """Trackio, on this machine unless its variables TRACKIO_SPACE_ID or TRACKIO_DIR name another place."""

    def __init__(self, run: Path, step: int, lines: Sequence[Line] | None) -> None:
        trackio = importlib.import_module("trackio")
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run = trackio.init(project=project, name=run.name, resume="never" if lines is None else "allow")

    def add(self, line: Line) -> None:
        """Takes one line."""
        numbers = {f"{line['split']}/{name}": value for name, value in line.items() if name not in LINE}
        self._run.log(numbers, step=line["step"])

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()


TRACKERS: dict[str, tuple[Callable[..., Tracker], str]] = {
    "tensorboard": (TensorBoard, "tensorboardX"),
    "wandb": (Wandb, "wandb"),
    "trackio": (Trackio, "trackio"),
}
"""The trackers by name, and the package that each needs."""


def tracker_names(text: str) -> list[str]:
    """The trackers in a text such as ``tensorboard,wandb``; ``jsonl`` is always active and may be named."""
    return [name for name in text.split(",") if name not in ("", "jsonl")]


def require_trackers(names: Sequence[str]) -> None:
    """Refuses trackers that cannot be used, before anything is trained.

    Raises:
        UserError: an unknown name, or a package that is not installed.

    """
    for name in names:
        if name not in TRACKERS:
            raise unknown_name("train.trackers", name, TRACKERS)
        package = TRACKERS[name][1]
        if importlib.util.find_spec(package) is None:
            raise UserError(f"train.trackers has {name}, but {package} is not installed; run pip install {package}")


class Trackers:
    """Several trackers as one that never raises.

    Args:
        names: of :data:`TRACKERS`.
        run: the run's folder.
        step: where it goes on.
        lines: the lines up to there; None for a new run.

    """

    def __init__(self, names: Sequence[str], run: Path, step: int, lines: Sequence[Line] | None) -> None:
        self._used: dict[str, Tracker] = {}
        for name in names:
            made = self._try(name, functools.partial(TRACKERS[name][0], run, step, lines))
            if made is not None:
                self._used[name] = made

    def add(self, line: Line) -> None:
        """Gives every tracker a line."""
        for name, tracker in list(self._used.items()):
            self._try(name, functools.partial(tracker.add, line))

    def close(self) -> None:
        """Closes them all."""
        for name, tracker in list(self._used.items()):
            self._try(name, tracker.close)
        self._used.clear()

    def _try(self, name: str, do: Callable[[], Any]) -> Any:
        """Calls a tracker, and drops it if the call fails."""
        try:
            return do()
        except Exception as error:  # whatever a service does, the training goes on
            self._used.pop(name, None)
            log.warning("the tracker %s failed (%s); metrics.jsonl continues without it", name, one_line(error))
            return None
