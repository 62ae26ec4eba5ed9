"""Closed-loop control steps per second, from the loop that peers use to ours, one rung after the other.

    python benchmarks/closed_loop.py RUN [RUN ...] [--task 2] [--episodes 4] [--out results.json]

RUN is a run's folder (such as a `mini` e0 and an e2). Every rung runs the same episodes (random resets of
``spatial_dev``) to success or the step limit, with the same jitted policy, batch 1; time includes resets and policy
calls, not compilation or building the simulation. Rungs of one render path must have equal success bits.

  plain       LIBERO's OffScreenRenderEnv: both 256 px cameras at every step, hard reset, one process
  ours 256    our observation (rendered at the end of the step) at every step, 256 px, hard reset
  due frames  + only the frames that a decision reads
  reset       + soft reset, proven to be the same start (equal settled hashes)
  controller  + one evaluation of the dynamics per substep instead of three, bit-identical
  render      + 112 px, no reflection, 3 mm mesh detail (part of ObservationSpec, what the policy was trained on)
  pool        + two simulator processes beside the policy
"""

import argparse
import dataclasses
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wmjax.rollout.actors import Decision
from wmjax.rollout.policy_actor import PolicyActor
from wmjax.rollout.protocol import load_protocol
from wmjax.sim.episode import EpisodeId
from wmjax.specs import ObservationSpec

MAX_STEPS, HORIZON, STRIDE = 220, 8, 4
FULL = ObservationSpec(image_size=256, reflection=True, mesh_detail_mm=0.0)


@dataclasses.dataclass(frozen=True)
class Rung:
    """What one rung of the ladder does; ``path`` names its render path."""

    name: str
    path: str
    spec: ObservationSpec = FULL
    plain: bool = False
    due_only: bool = True
    soft_reset: bool = True
    quick_controller: bool = True
    workers: int = 1


RUNGS = (
    Rung("plain", "observation 256", plain=True),
    Rung("ours 256", "step end 256", due_only=False, soft_reset=False, quick_controller=False),
    Rung("due frames", "step end 256", soft_reset=False, quick_controller=False),
    Rung("reset", "step end 256", quick_controller=False),
    Rung("controller", "step end 256"),
    Rung("render", "step end 112", spec=ObservationSpec()),
    Rung("pool", "step end 112", spec=ObservationSpec(), workers=2),
)


@dataclasses.dataclass
class Result:
    """What a rung did."""

    rung: str
    path: str
    control_steps: int
    seconds: float
    successes: list[bool]

    @property
    def rate(self) -> float:
        """Control steps per second of wall time."""
        return self.control_steps / self.seconds


class PlainLoop:
    """LIBERO's OffScreenRenderEnv as the published evaluation scripts use it, in this process."""

    def __init__(self, suite: str, task: int) -> None:
        from wmjax.sim.libero import import_libero, load_task

        loaded = load_task(suite, task)
        self.instruction = loaded.instruction
        sizes = {"camera_heights": 256, "camera_widths": 256}
        self._env = import_libero().wrapper.OffScreenRenderEnv(bddl_file_name=loaded.bddl_file, **sizes)

    def reset(self, episode: EpisodeId) -> None:
        """Seeds, resets hard, settles."""
        self._env.seed(episode.seed)
        np.random.seed(episode.seed)
        self._env.reset()
        for _ in range(10):
            self.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))

    def step(self, action: np.ndarray) -> bool:
        """One step with its observation; both cameras are rendered in it."""
        self.observation, _, done, _ = self._env.step(action)
        return bool(done)

    def render(self) -> np.ndarray:
        """The observation's images, oriented and resized as a policy of 112 px needs them."""
        names = ("agentview_image", "robot0_eye_in_hand_image")
        return np.stack([shrink(self.observation[name][::-1, ::-1]) for name in names])

    def state(self) -> np.ndarray:
        """The 8-d state, from the observation."""
        from wmjax.data.observation import build_state

        o = self.observation
        return build_state(o["robot0_eef_pos"], o["robot0_eef_quat"], o["robot0_gripper_qpos"])

    def close(self) -> None:
        """Frees the simulation."""
        self._env.close()


class OurLoop:
    """LiberoEnv with some of its savings switched off."""

    def __init__(self, suite: str, task: int, rung: Rung) -> None:
        from wmjax.sim import env as module

        self._env = module.LiberoEnv(suite, task, rung.spec)
        self._rung, self.instruction = rung, self._env.instruction
        if not rung.soft_reset:
            self._env._env.hard_reset = True
        self.render()

    def reset(self, episode: EpisodeId) -> None:
        """As LiberoEnv; a hard reset compiles the model anew, and the renderer with it."""
        if self._rung.soft_reset:
            self._env.reset(episode)
            return
        self._env._renderer = None
        self._env.reset(episode)

    def step(self, action: np.ndarray) -> bool:
        """One control step, by robosuite's own code or by ours; renders it if every step is."""
        if self._rung.quick_controller:
            success = self._env.step(action)
        else:
            success = bool(self._env._env.step(np.asarray(action, np.float64))[2] or self._env._env._check_success())
            self._env._synchronise()
        if not self._rung.due_only:
            self._frame = self._env.render()
        return success

    def render(self) -> np.ndarray:
        """Both cameras, resized to what the policy needs."""
        return np.stack([shrink(image) for image in self._env.render()])

    def state(self) -> np.ndarray:
        """The 8-d state."""
        return self._env.state()

    def close(self) -> None:
        """Frees the simulation."""
        self._env.close()


def shrink(image: np.ndarray) -> np.ndarray:
    """To 112 px, bilinear."""
    if image.shape[0] == 112:
        return image
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((112, 112), Image.Resampling.BILINEAR))


def play(loop: Any, actor: PolicyActor, episode: EpisodeId) -> tuple[int, bool]:
    """One episode, open loop between decisions; returns control steps and success."""
    loop.reset(episode)
    frames = [loop.render()] * (HORIZON // STRIDE)
    step = number = 0
    while step < MAX_STEPS:
        decision = Decision(0, episode, number, step, np.stack(frames), loop.state(), loop.instruction)
        frames, number = [], number + 1
        for action in actor.act([decision])[0].actions[:HORIZON]:
            step += 1
            if loop.step(action):
                return step, True
            if step % STRIDE == 0:
                frames.append(loop.render())
            if step == MAX_STEPS:
                break
    return step, False


def serial(rung: Rung, run: Path, episodes: list[EpisodeId]) -> Result:
    """A rung in one process: simulator and policy take turns."""
    from wmjax.policy import load_policy

    actor = PolicyActor(load_policy(run, batch_size=1, open_loop_horizon=HORIZON))
    suite, task = episodes[0].suite, episodes[0].task_id
    loop = PlainLoop(suite, task) if rung.plain else OurLoop(suite, task, rung)
    actor.prepare(1, HORIZON)
    play(loop, actor, dataclasses.replace(episodes[0], index=episodes[0].index + 10_000))  # numba, caches
    started = time.monotonic()
    played = [play(loop, actor, episode) for episode in episodes]
    seconds = time.monotonic() - started
    loop.close()
    return Result(rung.name, rung.path, sum(steps for steps, _ in played), seconds, [bit for _, bit in played])


def pooled(rung: Rung, run: Path, episodes: list[EpisodeId]) -> Result:
    """The real evaluation path: processes, one queue. A first evaluation warms the workers up."""
    import tempfile

    from wmjax.policy import load_policy
    from wmjax.rollout.results import Results
    from wmjax.rollout.runner import Runner
    from wmjax.rollout.videos import Videos
    from wmjax.sim.pool import Pool
    from wmjax.sim.worker import WorkerSettings

    actor = PolicyActor(load_policy(run, batch_size=1, open_loop_horizon=HORIZON))
    protocol = load_protocol("spatial_dev", max_steps=MAX_STEPS, open_loop_horizon=HORIZON)
    warm = [dataclasses.replace(episode, index=episode.index + 10_000) for episode in episodes[: rung.workers]]
    with tempfile.TemporaryDirectory() as folder, Pool(WorkerSettings(rung.spec, 4), rung.workers) as pool:
        for name, chosen in (("warm", warm), ("timed", episodes)):
            results = Results(Path(folder) / name, {})
            runner = Runner(pool, actor, protocol, results, Videos(Path(folder) / name / "videos", 0, 5.0))
            started = time.monotonic()
            runner.run(chosen)
            seconds = time.monotonic() - started
    bits = {record.key: record.success for record in results.records}
    return Result(rung.name, rung.path, runner.control_steps, seconds, [bits[episode.key] for episode in episodes])


def measure(run: Path, task: int, count: int) -> Iterator[Result]:
    """All rungs, each in a fresh process."""
    first = load_protocol("spatial_dev").first_index
    episodes = [EpisodeId("libero_spatial", task, "random", first + i) for i in range(count)]
    context = multiprocessing.get_context("spawn")
    for rung in RUNGS:
        body: Callable[..., Result] = serial if rung.workers == 1 else pooled
        if rung.workers > 1:  # starts processes of its own
            yield body(rung, run, episodes)
            continue
        with context.Pool(1) as pool:
            yield pool.apply(body, (rung, run, episodes))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--task", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table: dict[str, list[dict[str, Any]]] = {}
    for run in options.runs:
        table[run.name] = []
        base, bits = 0.0, {}
        print(f"{run.name}: {options.episodes} episodes of libero_spatial task {options.task}")
        for result in measure(run, options.task, options.episodes):
            base = base or result.rate
            same = bits.setdefault(result.path, result.successes) == result.successes
            print(
                f"  {result.rung:<11} {result.rate:7.1f} steps/s  x{result.rate / base:5.1f}  "
                f"{sum(result.successes)}/{len(result.successes)}  {result.path}, bits {'equal' if same else 'DIFFER'}",
                flush=True,
            )
            ratio = {"rate": result.rate, "ratio": result.rate / base, "bits_equal": same}
            table[run.name].append({**dataclasses.asdict(result), **ratio})
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
