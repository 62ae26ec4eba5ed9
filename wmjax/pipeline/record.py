"""The implementation of the record command: demonstrations as a store or a LeRobot dataset, or random motion."""

import dataclasses
import functools
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from wmjax.core.errors import UserError
from wmjax.core.options import Short, number_list
from wmjax.core.settings import Count, Depth, Range, Settings
from wmjax.data.store import TrainingStore
from wmjax.pipeline.record_policy import record_policy
from wmjax.recording.demonstration import SLOTS_PER_ATTEMPT, DemonstrationConfig
from wmjax.recording.random_motion import EPISODES_PER_TASK, SUITES, TASKS_PER_SUITE, record_random_motion
from wmjax.recording.record import record, record_dataset
from wmjax.sim.libero import OBSERVATION_SPEC

LEROBOT_IMAGE_SIZE = 256
DEMONSTRATIONS_PER_TASK = 24


@dataclasses.dataclass(frozen=True)
class RecordSettings(Settings, section="record"):
    """The settings of the record command.

    Attributes:
        suite, tasks: where demonstrations are recorded.
        episodes_per_task: None is 24, and 6 with ``random_motion``.
        workers: simulator processes.
        demonstrations: how the expert acts, and what disturbs it.
        image_size: pixels; None is that of LIBERO's spec, 112, and 256 with ``every_step``.
        frame_stride: control steps between images; 1 with ``every_step``.
        run: a run, or ``mini``, whose policy acts while the expert labels (DAgger); "" for demonstrations.
        every_step: write a LeRobot v3.0 dataset, which has an image at every control step and no chunk labels.
        random_motion: record random motion instead of demonstrations.
        suites, tasks_per_suite, first_episode: of random motion: where, and the number of each task's first episode.

    """

    suite: str = "libero_spatial"
    tasks: tuple[Annotated[int, Range(0, 1_000_000)], ...] = tuple(range(10))
    episodes_per_task: Annotated[int, Range(1, SLOTS_PER_ATTEMPT)] | None = None
    workers: Depth = 2
    demonstrations: DemonstrationConfig = field(default_factory=DemonstrationConfig)
    image_size: Annotated[int, Range(1, 10_000)] | None = None
    frame_stride: Depth = OBSERVATION_SPEC.frame_stride
    run: str = ""
    every_step: bool = False
    random_motion: bool = False
    suites: tuple[str, ...] = tuple(SUITES)
    tasks_per_suite: Count = TASKS_PER_SUITE
    first_episode: Annotated[int, Range(0, 1_000_000)] = 0


SHORTS = {
    "suite": Short("suite", "such as libero_spatial", str),
    "tasks": Short("tasks", "task ids, such as 0,1,2", number_list),
    "episodes": Short(
        "episodes_per_task",
        f"per task; default {DEMONSTRATIONS_PER_TASK}, with --random-motion {EPISODES_PER_TASK}",
    ),
    "workers": Short("workers", "simulator processes"),
    "seed": Short("demonstrations.seed", "set of random placements"),
    "perturbed": Short("demonstrations.perturbed_fraction", "share of episodes whose executed actions are perturbed"),
    "failures": Short("demonstrations.failures.fraction", "share with provoked failures that the expert corrects"),
    "label-steps": Short(
        "demonstrations.label_steps",
        "control steps of the chunk that the undisturbed expert would execute from every image on, which training "
        "learns; 0 records none, as --every-step does",
    ),
    "branch-frames": Short(
        "demonstrations.branch_frames",
        "images of the future in which the undisturbed expert acts, rendered from every image on; default 0",
    ),
    "target-velocity": Short(
        "demonstrations.target_velocity", "speed at which the goal's target drifts, m/s, such as 0.04"
    ),
    "hold-steps": Short("demonstrations.hold_steps", "control steps at the start in which the robot holds still"),
    "image-size": Short(
        "image_size", f"pixels; default {OBSERVATION_SPEC.image_size}, with --every-step {LEROBOT_IMAGE_SIZE}"
    ),
    "frame-stride": Short("frame_stride", "control steps between images"),
    "run": Short("run", "DAgger: this run's policy (or mini) acts, the expert labels each state it reaches", str),
    "every-step": Short("every_step", "write a LeRobot v3.0 dataset, an image at every step", flag=True),
    "random-motion": Short("random_motion", "record random motion instead of demonstrations", flag=True),
    "suites": Short("suites", "of --random-motion", str, words=True),
    "tasks-per-suite": Short("tasks_per_suite", "of --random-motion"),
    "first-episode": Short("first_episode", "of --random-motion: number of each task's first one"),
}
"""The settings that have a short option, by option."""


def run_recording(out: Path, settings: RecordSettings) -> TrainingStore:
    """Records into a folder according to the settings; run again to resume.

    Raises:
        UserError: branches where none are recorded; see also :func:`wmjax.recording.record.record`,
            :func:`wmjax.recording.record.record_dataset`, :func:`wmjax.pipeline.record_policy.record_policy` and
            :func:`wmjax.recording.random_motion.record_random_motion`.

    """
    if settings.random_motion:
        return record_random_motion(
            out,
            settings.suites,
            tasks_per_suite=settings.tasks_per_suite,
            episodes=settings.episodes_per_task or EPISODES_PER_TASK,
            first_episode=settings.first_episode,
            workers=settings.workers,
        )
    every, config = settings.every_step, settings.demonstrations
    if config.branch_frames and (every or settings.run):
        option = "--every-step" if every else "--run"
        raise UserError(f"branch-frames is {config.branch_frames}; {option} records no branches, leave one of them out")
    size = settings.image_size or (LEROBOT_IMAGE_SIZE if every else OBSERVATION_SPEC.image_size)
    stride = 1 if every else settings.frame_stride
    spec = dataclasses.replace(OBSERVATION_SPEC, image_size=size, frame_stride=stride)
    config = dataclasses.replace(config, label_steps=0) if every else config
    episodes = settings.episodes_per_task or DEMONSTRATIONS_PER_TASK
    write: Any = record_dataset if every else record
    if settings.run:
        write = functools.partial(record_policy, run=settings.run)
    return write(out, settings.suite, settings.tasks, episodes, spec, workers=settings.workers, config=config)
