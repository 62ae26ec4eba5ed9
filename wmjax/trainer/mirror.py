"""A run's copy at a URL, such as ``gs://bucket/e2``, for machines whose disk is lost with them.

A run writes to a local folder, and after each checkpoint the first process copies what is new. A checkpoint's manifest
is copied last and removed first, so that what has one is complete, and its hashes tell whether it is intact. Another
machine goes on from the copy: it fetches the newest checkpoint and the run's other files. Only one job at a time may
train a run; nothing at a URL could stop a second one.

Several processes need no folder that all of them see. Each has its own, and hashes and copies what it wrote of a
checkpoint. The first process, which needs the whole checkpoint to evaluate it, fetches the parts of the others and
copies the manifest. Where a run goes on, every process fetches the checkpoint.
"""

import contextlib
import functools
import json
import logging
import re
import shutil
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

import jax

from wmjax.core import distributed
from wmjax.core.errors import UserError
from wmjax.core.files import disk_errors, hash_file, hash_json
from wmjax.core.location import MissingError, Remote
from wmjax.core.paths import cache_root
from wmjax.trainer import checkpoint
from wmjax.trainer.orbax_writers import join, own_files

CHECKPOINTS, MIRRORED = "checkpoints", "mirrored"
CONFIG = "config.json"
"""The file that tells a run from other things; at a URL it comes first."""
COMPLETE = re.compile(rf"{CHECKPOINTS}/(\d{{8}})/{re.escape(checkpoint.MANIFEST)}")
"""The object that makes a checkpoint complete."""
FETCHING = ".fetching"
PART = ".part-{}.json"
"""The object with the hashes of what a process wrote of a checkpoint, until the first process has read it."""

log = logging.getLogger("wmjax.train")


def local_folder(place: Remote, kind: str) -> Path:
    """The folder in the cache that belongs to a URL; ``kind`` names what it is used for."""
    return cache_root() / kind / f"{place.name[:40]}-{hash_json(place.url)[:10]}"


def steps_at(files: Sequence[str]) -> list[int]:
    """The steps of the complete checkpoints among the files of a run, ascending."""
    return sorted(int(found[1]) for name in files if (found := COMPLETE.fullmatch(name)))


class Mirror:
    """The copy of one run.

    Args:
        place: the URL of the copy.

    Raises:
        UserError: a chain of file systems, which can only be read.

    """

    def __init__(self, place: Remote) -> None:
        if "::" in place.url:
            raise UserError(f"{place}: '::' chains file systems, in which no run can be kept; name another URL")
        self.place = place
        self._lock = threading.Lock()
        self._sent: dict[str, tuple[int, int]] = {}
        self._sent_by_others: dict[int, frozenset[str]] = {}

    @functools.cached_property
    def run(self) -> Path:
        """The local folder of this process, which must have joined the others."""
        process = jax.process_index()
        folder = local_folder(self.place, MIRRORED)
        return folder.with_name(f"{folder.name}-process-{process}") if process else folder

    def exchange(self, step: int, folder: Path) -> None:
        """Copies what the other processes wrote of a checkpoint to the URL, and from there to the first process.

        All processes call it, in a background thread. An error of one is raised there when all have arrived.

        Args:
            step: of the checkpoint.
            folder: what this process wrote of it; that of the first process then holds the whole checkpoint.

        Raises:
            UserError: the URL cannot be written to or read, or what a process wrote is missing or damaged there.

        """
        error: UserError | None = None
        for action in (self._clear, self._send_part):
            try:
                if error is None:
                    action(step, folder)
            except UserError as caught:
                error = caught
            distributed.wait(f"{action.__name__}-{step}")
        if error is not None:
            raise error
        if distributed.is_first():
            self._collect(step, folder)

    def _clear(self, step: int, folder: Path) -> None:
        """First process: removes what an interrupted or damaged save of this step left at the URL."""
        if distributed.is_first():
            self._remove_checkpoint(step, self.place.files())

    def _send_part(self, step: int, folder: Path) -> None:
        """Other processes: copies the own files of a checkpoint, and then their hashes."""
        process, place = jax.process_index(), self.place / _folder(step)
        if process == 0:
            return
        names = own_files(folder, process)
        place.upload(folder, names)
        part = folder / PART.format(process)
        part.write_text(json.dumps({name: hash_file(folder / name) for name in names}), encoding="utf-8")
        place.upload(folder, [part.name])

    def _collect(self, step: int, folder: Path) -> None:
        """First process: downloads what the others have copied, and checks that it is what they wrote."""
        place, hashes = self.place / _folder(step), dict[str, str]()
        parts = [PART.format(process) for process in range(1, jax.process_count())]
        for part in parts:
            try:
                hashes.update(json.loads((place / part).read_text(encoding="utf-8")))
            except MissingError as error:
                raise UserError(
                    f"{place}: lacks {part}, one of {len(parts) + 1} processes could not copy its part; run again"
                ) from error
        place.download(folder, [*hashes])
        if damaged := [name for name, digest in hashes.items() if hash_file(folder / name) != digest]:
            raise UserError(f"{place}: {damaged[0]} is not what a process wrote there; run again")
        place.remove(parts)
        join(folder)
        self._sent_by_others[step] = frozenset(f"{_folder(step)}/{name}" for name in hashes)

    def follow(self, step: int) -> None:
        """Other processes: has the checkpoint in this process's folder with which the first one goes on.

        Raises:
            UserError: the URL cannot be read, or what is there is damaged.

        """
        if distributed.is_first():
            return
        with disk_errors(self.run):
            for other in set(checkpoint.complete_steps(self.run / CHECKPOINTS)) - {step}:
                shutil.rmtree(self.run / _folder(other))
        files = self.place.files()
        with contextlib.suppress(UserError):
            checkpoint.verify(self.run / _folder(step))
            if self._has(step, files):
                return
        if not self._fetch_step(step, files, rest=False):
            raise UserError(
                f"{self.place}: step {step}, with which process 0 goes on, is damaged there; remove it there"
            )

    def fetch(self) -> None:
        """Updates the local folder from the copy, if the copy has a later checkpoint.

        A checkpoint that arrives damaged is named in a warning, and the one before is fetched. Whatever else keeps one
        from arriving ends the command: the next push would remove from the copy what is not here.

        Raises:
            UserError: the URL cannot be read or holds something else than a run, the disk cannot be written to, or no
                checkpoint there is intact.

        """
        files = self.place.files()
        steps, own = steps_at(files), checkpoint.complete_steps(self.run / CHECKPOINTS)
        others = [name for name in files if not name.startswith(".")]
        if others and not steps and CONFIG not in files:
            raise UserError(f"{self.place}: holds {others[0]}, but no run's {CONFIG}; name another URL with --run")
        newer = [step for step in steps if step > max(own, default=-1)]
        if any(self._fetch_step(step, files) for step in reversed(newer)):
            return
        if newer and not own:
            raise UserError(f"{self.place}: none of its {len(newer)} checkpoints is intact; train under another URL")

    def push(self) -> None:
        """Copies the checkpoints that the URL lacks and the files that changed, and removes checkpoints that are gone.

        Raises:
            UserError: the URL cannot be written to. The next call copies what is missing.

        """
        with self._lock:
            try:
                self._push()
            except UserError as error:
                raise UserError(f"{error}; {self.run} has what was to be copied") from error

    def _push(self) -> None:
        there = self.place.files()
        own = checkpoint.complete_steps(self.run / CHECKPOINTS)
        for step in set(steps_at(there)) - set(own):
            self._remove_checkpoint(step, there)
        lacking = [step for step in own if not self._has(step, there)]
        for step in lacking:
            sent = self._sent_by_others.get(step, frozenset())
            self._remove_checkpoint(step, there, kept=sent)
            files = sorted((self.run / _folder(step)).rglob("*"))
            names = {str(path.relative_to(self.run)) for path in files if path.is_file()} - sent
            self.place.upload(self.run, sorted(name for name in names if not COMPLETE.fullmatch(name)))
        self._push_rest(there)
        for step in lacking:  # after the metrics: whoever goes on from it has those of its step
            self.place.upload(self.run, [_manifest(step)])

    def _push_rest(self, there: Sequence[str]) -> None:
        """Copies the files beside the checkpoints that changed since the last time, and removes those that are gone."""
        states = {}
        for path in sorted(self.run.rglob("*")):
            name = str(path.relative_to(self.run))
            hidden = any(part.startswith(".") for part in Path(name).parts)
            with contextlib.suppress(FileNotFoundError):  # a tracker's file that lived shortly
                if path.is_file() and not hidden and not name.startswith(f"{CHECKPOINTS}/"):
                    states[name] = _state(path)
        changed = [name for name, state in states.items() if self._sent.get(name) != state]
        for names in ([CONFIG] if CONFIG in changed else [], [name for name in changed if name != CONFIG]):
            if names:
                self.place.upload(self.run, names)
                self._sent |= {name: states[name] for name in names}
        gone = [name for name in self._sent if name not in states]
        self.place.remove([name for name in gone if name in there])
        for name in gone:
            del self._sent[name]

    def _has(self, step: int, there: Sequence[str]) -> bool:
        """Whether the copy has this very checkpoint: its manifest holds the hashes of all its files."""
        name = _manifest(step)
        return name in there and (self.place / name).read_bytes() == (self.run / name).read_bytes()

    def _remove_checkpoint(self, step: int, there: Sequence[str], kept: Collection[str] = ()) -> None:
        names = [name for name in there if name.startswith(f"{_folder(step)}/") and name not in kept]
        self.place.remove(sorted(names, key=lambda name: name != _manifest(step)))

    def _fetch_step(self, step: int, files: Sequence[str], *, rest: bool = True) -> bool:
        """Downloads a checkpoint and the files beside the checkpoints, and lets them in if the checkpoint is intact.

        All of it is downloaded beside the run first, and the checkpoint comes in last. A machine that is lost on the
        way therefore leaves what it had, and fetches again.
        """
        prefix = f"{_folder(step)}/"
        staging, folder = self.run / FETCHING, self.run / prefix
        beside = [name for name in files if not name.startswith((f"{CHECKPOINTS}/", ".")) and "/." not in name]
        beside = beside if rest else []
        with disk_errors(self.run):
            shutil.rmtree(staging, ignore_errors=True)
            self.place.download(staging, [name for name in files if name.startswith(prefix)])
            try:
                checkpoint.verify(staging / prefix)
            except UserError as error:
                log.warning("%s: step %d: %s", self.place, step, error)
                shutil.rmtree(staging)
                return False
            self.place.download(staging, beside)
            for name in beside:
                (self.run / name).parent.mkdir(parents=True, exist_ok=True)
                (staging / name).replace(self.run / name)
                self._sent[name] = _state(self.run / name)
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            (staging / prefix).rename(folder)
            shutil.rmtree(staging)
        log.info("fetched step %d from %s", step, self.place)
        return True


def _state(path: Path) -> tuple[int, int]:
    """Size and time, which differ if the file was written to."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _folder(step: int) -> str:
    return f"{CHECKPOINTS}/{step:08d}"


def _manifest(step: int) -> str:
    return f"{_folder(step)}/{checkpoint.MANIFEST}"
