"""The settings that a new run chooses by the memory of its devices, once; a run that has started keeps them."""

import dataclasses
import functools
import logging
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from wmjax.core import distributed
from wmjax.core.location import Location
from wmjax.core.reading import read_json
from wmjax.experiment.changes import as_chosen, is_auto, with_choice
from wmjax.experiment.config import Experiment
from wmjax.experiment.plan import RunPlan, require_saved, save_settings, started_settings
from wmjax.models.nn.stack import Remat
from wmjax.pipeline.utilisation import one_sample
from wmjax.scaling.fitting import (
    Attempt,
    Choice,
    attempt,
    choose,
    describe,
    require_fitting,
)
from wmjax.scaling.program import placed, programs
from wmjax.trainer.build import DataSpecs
from wmjax.trainer.config import Inputs
from wmjax.trainer.sharding import BATCH, batch_parts, make_mesh

log = logging.getLogger("wmjax.train")


def free_memory() -> int | None:
    """Bytes that the fullest device of this process has left; None where devices state no limit, as CPUs do."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if any("bytes_limit" not in each for each in stats):
        return None
    return min(each["bytes_limit"] - each.get("bytes_in_use", 0) for each in stats)


def resumed(plan: RunPlan, place: Location | None = None) -> RunPlan:
    """The plan with what its run has chosen, if that has started; else as it is.

    ``place`` has the settings that the first process saved, where this process does not see its folder.
    """
    if place is None:
        saved = started_settings(plan.folder)
    else:
        saved = read_json(place / "config.json", dict[str, Any], "choose another folder with --run")
    return plan if saved is None else dataclasses.replace(plan, experiment=as_chosen(plan.experiment, saved))


def chosen(plan: RunPlan, inputs: Inputs, free: int | None, *, shared: bool = True) -> RunPlan:
    """The plan without ``auto``, whose settings are saved anew if anything was chosen.

    All processes call it: each compiles the same programs, and the first one's memory decides.

    Args:
        plan: of a run that has not started, or that has nothing to choose.
        inputs: those of its training.
        free: of :func:`free_memory`.
        shared: whether all processes see the run's folder.

    Raises:
        UserError: the training step fits with none of the settings.

    """
    if not is_auto(plan.experiment):
        return plan
    mesh = make_mesh(plan.experiment.mesh)
    compile_step, parts = functools.partial(_compile, inputs=inputs, mesh=mesh), batch_parts(mesh)
    found = choose(plan.experiment, compile_step, free, parts, _of_first)
    if free is not None:
        require_fitting(found, free, parts)
    return _saved(plan, found, free, shared)


def chosen_side_by_side(plan: RunPlan) -> RunPlan:
    """The plan of one of several seeds without ``auto``: ``none`` on CPUs, elsewhere ``full``, without compiling."""
    if not is_auto(plan.experiment):
        return plan
    remat: Remat = "none" if free_memory() is None else "full"
    log.info("remat %s: seeds that are trained side by side do not measure it", remat)
    return dataclasses.replace(plan, experiment=with_choice(plan.experiment, remat))


def _saved(plan: RunPlan, found: Choice, free: int | None, shared: bool) -> RunPlan:
    log.info("%s", describe(found, free))
    plan = dataclasses.replace(plan, experiment=found.experiment)
    distributed.alone(lambda: save_settings(plan.folder, plan.settings))
    if shared:
        require_saved(plan.folder, plan.settings)
    return plan


def _of_first(fits: bool) -> bool:
    """What the first process found."""
    return bool(distributed.broadcast_from_first(lambda: int(fits)))


def _compile(experiment: Experiment, *, inputs: Inputs, mesh: Mesh) -> Attempt:
    """The training step on these inputs, which the training then finds in the compilation cache."""
    built, rows = programs(experiment, mesh, DataSpecs.of(inputs)), experiment.train.batch_size
    batch = {
        name: jax.ShapeDtypeStruct((rows, *column.shape[1:]), column.dtype)
        for name, column in one_sample(inputs).items()
    }
    data = placed(batch, mesh, BATCH), placed(inputs.prompts, mesh, PartitionSpec())
    return attempt(lambda: built.train_step.lower(*built.shapes.named(), *data))
