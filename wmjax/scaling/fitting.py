"""What makes a training step fit into memory: ``model.backbone.remat auto`` as a rematerialisation and microbatches.

The real step is compiled with each of a few settings, the fastest first, until the compiler's plan fits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from wmjax.core.errors import UserError
from wmjax.experiment.changes import is_auto, with_choice
from wmjax.experiment.config import Experiment
from wmjax.models.nn.stack import Remat
from wmjax.scaling.clock import clocked

MARGIN = 0.1
"""The share of the free memory that a training step must leave, for the validation, the batches that are loaded ahead
and what is lost between arrays."""
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Ran out of memory", "exceeds the capacity")
"""What compilers say of a program that needs more memory than the device has."""


class Attempt(NamedTuple):
    """A compiled program, or what the compiler said if it needs more memory than there is; and seconds."""

    program: Any
    refused: str
    lower_s: float
    compile_s: float

    @property
    def needed(self) -> int | None:
        """Bytes of one device by the compiler's plan; None without a program."""
        if self.program is None:
            return None
        plan = self.program.memory_analysis()
        held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        return int(held + plan.temp_size_in_bytes + plan.generated_code_size_in_bytes)


class Choice(NamedTuple):
    """An experiment without ``auto``; its training step as it was compiled last, and whether that fits the memory.

    Nothing was compiled where there was nothing to choose.
    """

    experiment: Experiment
    attempt: Attempt | None = None
    fits: bool = True


def attempt(lower: Callable[[], Any]) -> Attempt:
    """Compiles what ``lower`` returns; errors other than that memory is missing are raised."""
    lowered, lowering = clocked(lower)
    try:
        program, compiling = clocked(lowered.compile)
    except Exception as error:
        text = " ".join(str(error).split())
        if not any(words in text for words in OUT_OF_MEMORY):
            raise
        return Attempt(None, text[:400], lowering, 0.0)
    return Attempt(program, "", lowering, compiling)


def choose(
    experiment: Experiment,
    compile_step: Callable[[Experiment], Attempt],
    free: float | None,
    parts: int,
    agreed: Callable[[bool], bool] = bool,
) -> Choice:
    """The experiment with the first settings whose training step fits, in place of ``auto``.

    These are ``names``, then ``full``, then ``full`` with batches that are halved again and again, whose gradients are
    accumulated to the same updates (:func:`wmjax.experiment.changes.with_choice`). Where no memory limit is known it is
    ``none``. If nothing fits, the choice is the last that was compiled.

    Args:
        experiment: returned as it is if its ``remat`` is not ``auto``.
        compile_step: compiles the training step of an experiment.
        free: bytes that a device has for the training, of which :data:`MARGIN` must be left; None if nobody knows.
        parts: devices that a batch is split over.
        agreed: what the processes of a job agree on, given whether the step fits by this process's devices.

    """
    if not is_auto(experiment):
        return Choice(experiment)
    if free is None:
        return Choice(with_choice(experiment, "none"))
    tried: list[tuple[Remat, int]] = [("names", 1), ("full", 1)]
    for remat, batches in tried:
        chosen = with_choice(experiment, remat, batches)
        found = compile_step(chosen)
        if agreed(found.needed is not None and found.needed <= usable(free)):
            return Choice(chosen, found)
        if remat == "full" and experiment.train.batch_size % (2 * batches * parts) == 0:
            tried.append(("full", 2 * batches))
    return Choice(chosen, found, fits=False)


def usable(free: float) -> float:
    """The bytes of the free memory that a training step may take."""
    return (1 - MARGIN) * free


def describe(choice: Choice, free: float | None) -> str:
    """The choice in one line, such as ``remat names: 38.4 of 151.4 GB``."""
    remat: Any = choice.experiment.model.backbone
    if choice.attempt is None or free is None or choice.attempt.needed is None:
        return f"remat {remat.remat}: no device states a memory limit"
    train = choice.experiment.train
    batches = f", {train.accumulate} batches of {train.batch_size} per update" if train.accumulate > 1 else ""
    return f"remat {remat.remat}{batches}: {choice.attempt.needed / 1e9:.1f} of {free / 1e9:.1f} GB"


def require_fitting(choice: Choice, free: float, parts: int) -> None:
    """Refuses a training whose step does not fit with any of the settings.

    Raises:
        UserError: names the missing GB and what would help.

    """
    if choice.fits:
        return
    fix = (
        "split parameters over devices with --mesh.fsdp and --mesh.shard_frozen true, or give --model.backbone.remat a "
        "value to train without this check"
    )
    rows, needed = choice.experiment.train.batch_size // parts, choice.attempt and choice.attempt.needed
    start = f"model.backbone.remat is 'auto', but with 'full' and {rows} samples per device the training step"
    if needed is None:
        refused = choice.attempt.refused if choice.attempt else ""
        raise UserError(f"{start} needs more than the {free / 1e9:.2f} GB that are free ({refused}); {fix}")
    missing = (needed - usable(free)) / 1e9
    raise UserError(
        f"{start} needs {needed / 1e9:.2f} GB, and {usable(free) / 1e9:.2f} of the {free / 1e9:.2f} GB that are free "
        f"may be used: {missing:.2f} GB are missing; {fix}"
    )
