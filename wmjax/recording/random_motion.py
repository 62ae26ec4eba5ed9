"""Recording of frames for encoder pre-training: smooth random arm motion in the scenes of many LIBERO tasks.

No task is solved. The arm moves between way points, many of them just above objects. It closes and opens its gripper,
pushes objects and sometimes lifts them, so that the frames cover what can happen in a scene. The result is an ordinary
training store whose episode metas carry the objects' positions at every frame (for probes).

    python -m wmjax.record --random-motion --out FOLDER [--suites libero_object libero_goal libero_10 libero_90]
"""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from wmjax.core.command import Progress
from wmjax.core.errors import UserError
from wmjax.core.paths import cache_root, require_place
from wmjax.core.specs import ObservationSpec, spec_hash
from wmjax.core.store_files import MANIFEST
from wmjax.data.store import EpisodeData, TrainingStore, finalize, part_names, write_part
from wmjax.recording.slots import Slot, record_slots
from wmjax.sim.episode import SCENE_INDEX, EpisodeId
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC, simulator_version
from wmjax.sim.pool import Fault

LOG = logging.getLogger(__name__)
SUITES = {"libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
"""Default suites and how many tasks each has; libero_spatial is left out on purpose: it is evaluated on."""
TASKS_PER_SUITE, EPISODES_PER_TASK = 30, 6
"""Of the shipped encoder: 360 episodes of 30 frames in the default suites."""
STEPS = 120
POSITION_SCALE = 0.05
GAIN = 0.6
EPISODE_TIMEOUT = 600.0
"""Seconds after which an episode's worker counts as hung; an episode takes about 5 on two cores."""
HOPELESS_FAULTS = 3
"""If this many workers fail before the first episode is recorded, the simulator does not run at all."""


class Wanderer:
    """A random controller: P-control towards way points, smooth noise, a gripper that opens and closes.

    Way points last 10 to 24 control steps. Most lie above an object; then the hand descends onto it, closes
    and often carries or pushes it along to the next one.
    """

    def __init__(self, rng: np.random.Generator, home: Float[np.ndarray, "3"]) -> None:
        self.rng, self.home = rng, home
        self.noise, self.turn = np.zeros(3), np.zeros(3)
        self.target, self.left, self.gripper = home.copy(), 0, -1.0
        self.low = False

    def act(self, position: Float[np.ndarray, "3"], objects: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "7"]:
        """The next action in [-1, 1]; ``position`` of the hand and of the objects in metres."""
        if self.left == 0:
            self._choose(objects)
        self.left -= 1
        self.noise = 0.8 * self.noise + 0.2 * self.rng.normal(size=3)
        self.turn = 0.9 * self.turn + 0.1 * self.rng.normal(size=3) * np.array([0.1, 0.1, 0.3])
        move = GAIN * (self.target - position) / POSITION_SCALE + 0.4 * self.noise
        return np.clip(np.concatenate([move, self.turn, [self.gripper]]), -1.0, 1.0)

    def _choose(self, objects: Float[np.ndarray, "n 3"]) -> None:
        """Draws the next way point and gripper command."""
        rng = self.rng
        self.left = int(rng.integers(10, 25))
        if self.low:  # at an object: usually grip, then leave upwards or sideways
            self.gripper = 1.0 if rng.random() < 0.7 else -1.0
            self.low = rng.random() < 0.25
            self.target = self.target + rng.normal(size=3) * np.array([0.08, 0.08, 0.02])
            self.target[2] += 0.0 if self.low else rng.uniform(0.05, 0.2)
            return
        if rng.random() < 0.35:
            self.gripper = rng.choice([-1.0, 1.0])
        if len(objects) and rng.random() < 0.7:
            self.target = objects[rng.integers(len(objects))] + rng.normal(size=3) * np.array([0.02, 0.02, 0.01])
            self.low = rng.random() < 0.7
            self.target[2] += rng.uniform(0.0, 0.03) if self.low else rng.uniform(0.08, 0.2)
            return
        self.target = self.home + rng.uniform(-1, 1, 3) * np.array([0.15, 0.3, 0.15])


def record_episode(env: Any, index: int, steps: int = STEPS) -> EpisodeData:
    """Records ``steps`` control steps of random motion from a random placement of ``env``'s task."""
    episode = EpisodeId(env.suite, env.task_id, "random", SCENE_INDEX + index)
    env.reset(episode)
    wanderer = Wanderer(np.random.default_rng(episode.seed), env.state()[:3].astype(np.float64))
    bodies = {name: env.sim.model.body_name2id(o.root_body) for name, o in env._env.objects_dict.items()}
    images, frames, states, actions = [], [], [], []
    tracks: dict[str, list[list[float]]] = {name: [] for name in bodies}
    for step in range(steps):
        places = {name: env.sim.data.body_xpos[body].copy() for name, body in bodies.items()}
        if step % env.spec.frame_stride == 0:
            images.append(env.render())
            frames.append(step)
            for name, place in places.items():
                tracks[name].append(np.round(place, 4).tolist())
        state = env.state()
        action = wanderer.act(state[:3].astype(np.float64), np.array([*places.values()]).reshape(-1, 3))
        states.append(state)
        actions.append(action.astype(np.float32))
        env.step(actions[-1])
    meta = {
        "suite": env.suite,
        "task_id": env.task_id,
        "instruction": env.instruction,
        "seed": episode.seed,
        "init": f"random/{episode.index}",
        "settled_hash": env.settled_hash,
        "perturbation": "random_motion",
        "objects": tracks,
    }
    action_table = np.stack(actions)
    return EpisodeData(
        images=np.stack(images),
        frame_step=np.array(frames, np.int32),
        state=np.stack(states),
        action=action_table,
        executed=action_table.copy(),
        settled_state=env.settled_state,
        meta=meta,
    )


def part_name(slot: Slot) -> str:
    """File name of one episode, for example ``libero_goal-03-017``."""
    return f"{slot.suite}-{slot.task_id:02d}-{slot.number:03d}"


def record_slot(env: Any, slot: Slot, folder: Path) -> None:
    """Records one episode into a part; the job of a worker process."""
    write_part(folder, part_name(slot), record_episode(env, slot.number), env.spec, ACTION_SPEC)


def choose_tasks(suites: Sequence[str], per_suite: int) -> list[tuple[str, int]]:
    """Up to ``per_suite`` evenly spread tasks of each suite, interleaved so that a prefix is balanced too.

    Raises:
        UserError: a suite without known scenes.

    """
    chosen: list[tuple[float, str, int]] = []
    for suite in suites:
        if suite not in SUITES and suite != "libero_spatial":
            raise UserError(f"suite {suite!r} is not one of {', '.join([*SUITES, 'libero_spatial'])}")
        total = SUITES.get(suite, 10)
        count = min(per_suite, total)
        ids = [i * total // count for i in range(count)]
        order = np.random.default_rng(0).permutation(count)
        chosen += [(place / count, suite, ids[k]) for place, k in enumerate(order)]
    return [(suite, task_id) for _, suite, task_id in sorted(chosen)]


def missing_slots(folder: Path, tasks: Sequence[tuple[str, int]], episodes: range) -> list[Slot]:
    """The missing episodes of each task in a recording into ``folder``."""
    done = set(part_names(folder))
    slots = [Slot(suite, task_id, index) for suite, task_id in tasks for index in episodes]
    return [slot for slot in slots if part_name(slot) not in done]


def record_scenes(
    folder: Path, tasks: Sequence[tuple[str, int]], episodes: range, spec: ObservationSpec, workers: int = 2
) -> TrainingStore:
    """Records what is missing in ``folder`` with spawned processes, then merges it into a training store.

    An episode whose process fails is reported and skipped: scenes are interchangeable. Rerun to try it again.

    Raises:
        UserError: nothing could be recorded.

    """
    require_place(folder, "--out", "folder")
    slots = missing_slots(folder, tasks, episodes)
    if slots:
        tally = _Tally(len(slots))
        job = functools.partial(record_slot, folder=folder)
        record_slots(job, spec, slots, workers, EPISODE_TIMEOUT, tally.count, tally.skip)
    return finalize(folder, dataclasses.replace(spec, simulator=simulator_version()), ACTION_SPEC)


class _Tally:
    """Counts and reports the episodes of this call."""

    def __init__(self, total: int) -> None:
        self._total, self._show = total, Progress("random motion", "episodes")
        self._recorded = self._faults = 0

    def count(self, slot: Slot, outcome: None) -> None:
        """Notes a recorded episode."""
        self._recorded += 1
        self._show(self._recorded + self._faults, self._total)

    def skip(self, slot: Slot, fault: Fault) -> bool:
        """Notes an episode whose worker failed; it is not tried again.

        Raises:
            UserError: no worker has recorded anything.

        """
        self._faults += 1
        LOG.warning("%s: %s, run again to record it: %s", part_name(slot), fault.kind, fault.message)
        if not self._recorded and self._faults >= HOPELESS_FAULTS:
            last = fault.message.strip().splitlines()[-1]
            raise UserError(f"the simulator does not run ({last}); check it with `python -m wmjax.doctor`")
        return False


def cached_scenes(suites: Sequence[str]) -> list[TrainingStore]:
    """Frames of these suites' scenes, as many as the shipped encoder was pre-trained on, one store per suite.

    They are recorded once into the cache.

    Raises:
        UserError: an unknown suite, or episodes that could not be recorded.

    """
    stores = []
    spec = dataclasses.replace(OBSERVATION_SPEC, simulator=simulator_version())
    for suite in dict.fromkeys(suites):
        tasks, episodes = choose_tasks([suite], TASKS_PER_SUITE), range(EPISODES_PER_TASK)
        numbers = f"{TASKS_PER_SUITE}x{EPISODES_PER_TASK}-from{SCENE_INDEX:.0e}"
        folder = cache_root() / "scenes" / f"{suite}-{numbers}-{spec_hash(spec)}"
        if not (folder / MANIFEST).is_file() or missing_slots(folder, tasks, episodes):
            record_scenes(folder, tasks, episodes, OBSERVATION_SPEC)
            if missing := missing_slots(folder, tasks, episodes):
                raise UserError(f"{folder}: {len(missing)} episodes are missing, see above; run it again")
        stores.append(TrainingStore(folder))
    return stores


def record_random_motion(
    folder: Path,
    suites: Sequence[str],
    *,
    tasks_per_suite: int = TASKS_PER_SUITE,
    episodes: int = EPISODES_PER_TASK,
    first_episode: int = 0,
    workers: int = 2,
) -> TrainingStore:
    """Records episodes of random motion in evenly chosen tasks of each suite.

    Raises:
        UserError: an unknown suite, a number out of range, or nothing could be recorded.

    """
    tasks = choose_tasks(suites, tasks_per_suite)
    if episodes < 1 or first_episode < 0:
        raise UserError(f"episodes is {episodes}, first-episode {first_episode}; at least 1 and 0")
    return record_scenes(folder, tasks, range(first_episode, first_episode + episodes), OBSERVATION_SPEC, workers)
