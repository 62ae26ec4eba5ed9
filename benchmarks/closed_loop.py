"""Closed-loop control steps per second, from the loop that peers use to ours, one rung after the other.

    python benchmarks/closed_loop.py RUN [RUN ...] [--task 2] [--episodes 4] [--out results.json]
    python benchmarks/closed_loop.py [RUN ...] --replay STORE [--task 2] [--episodes 4]

RUN is a run's folder (such as a `mini` e0 and an e2). Every rung runs the same episodes (random resets of
``spatial_dev``) to success or the step limit, with the same jitted policy, batch 1; time includes resets and policy
calls, not compilation or building the simulation. Rungs of one render path must have equal success bits.

A policy that always fails makes those bits mean nothing. With ``--replay`` the episodes are demonstrations that were
recorded on this machine, from their recorded start: the policy is called as often as usual, but what is executed is the
recording. Then no bit depends on a pixel, and all rungs must succeed at the same control steps.

  plain       LIBERO's OffScreenRenderEnv: both 256 px cameras at every step, hard reset, one process
  ours 256    our observation (rendered at the end of the step) at every step, 256 px, hard reset
  due frames  + only the frames that a decision reads
  reset       + soft reset, proven to be the same start (equal settled hashes)
  controller  + one evaluation of the dynamics per substep instead of three, bit-identical
  render      + 112 px, no reflection, 3 mm mesh detail (part of ObservationSpec, what the policy was trained on)
  pool        + two simulator processes beside the policy
  vla-eval    beside the ladder: vla-eval's own LIBERO benchmark, runner and client, the policy served to them by
              ``python -m wmjax.serve`` (a process of its own), at the first initial states of the same task; left out
              without the package, and with ``--replay``, because it starts nowhere else
"""

import argparse
import dataclasses
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.data.store import TrainingStore
from wmjax.rollout.actors import Actor, Decision, Plan, Replay
from wmjax.rollout.protocol import load_protocol
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

PROTOCOL = load_protocol("spatial_dev")
MAX_STEPS, HORIZON, STRIDE = PROTOCOL.max_steps, PROTOCOL.open_loop_horizon, OBSERVATION_SPEC.frame_stride
WARM_UP = 2 * HORIZON
"""Control steps before the clock starts: numba, caches, OpenGL."""
FULL = dataclasses.replace(OBSERVATION_SPEC, image_size=256, reflection=True, mesh_detail_mm=0.0)


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
    served: bool = False


RUNGS = (
    Rung("plain", "observation 256", plain=True),
    Rung("ours 256", "step end 256", due_only=False, soft_reset=False, quick_controller=False),
    Rung("due frames", "step end 256", soft_reset=False, quick_controller=False),
    Rung("reset", "step end 256", quick_controller=False),
    Rung("controller", "step end 256"),
    Rung("render", "step end 112", spec=OBSERVATION_SPEC),
    Rung("pool", "step end 112", spec=OBSERVATION_SPEC, workers=2),
    Rung("vla-eval", "vla-eval 256", served=True),
)


@dataclasses.dataclass
class Result:
    """What a rung did."""

    rung: str
    path: str
    seconds: float
    steps: list[int]
    successes: list[bool]

    @property
    def rate(self) -> float:
        """Control steps per second of wall time."""
        return sum(self.steps) / self.seconds


@dataclasses.dataclass(frozen=True)
class Work:
    """What every rung does: who acts (a run's policy, a store's recordings, or both) in which episodes."""

    run: Path | None
    store: Path | None
    episodes: tuple[EpisodeId, ...]
    max_steps: int = MAX_STEPS

    def actor(self) -> Actor:
        """A new actor; jax is imported here."""
        policy = None if self.run is None else _policy_actor(self.run)
        if self.store is None:
            assert policy is not None
            return policy
        return Guided(Replay(TrainingStore(self.store), ACTION_SPEC), policy)


def _policy_actor(run: Path) -> Actor:
    from wmjax.policy.policy import load_policy
    from wmjax.policy.policy_actor import PolicyActor

    return PolicyActor(load_policy(run, batch_size=1, open_loop_horizon=HORIZON))


class Guided:
    """Asks a policy for what that costs, and acts as recorded."""

    name, needs_frames, inside, future_frames, corruption = "guided", True, False, 0, "none"
    realtime, pending_steps = "none", 0

    def __init__(self, replay: Replay, policy: Actor | None) -> None:
        self._replay, self._policy = replay, policy
        self.observation_spec = replay.observation_spec
        self.settled_state = replay.settled_state

    def prepare(self, slots: int, horizon: int, action_spec: ActionSpec) -> None:
        """Compiles the policy."""
        for actor in filter(None, (self._replay, self._policy)):
            actor.prepare(slots, horizon, action_spec)

    def act(self, decisions: Sequence[Decision]) -> list[Plan]:
        """The recorded actions."""
        if self._policy is not None:
            self._policy.act(decisions)
        return self._replay.act(decisions)


class PlainLoop:
    """LIBERO's OffScreenRenderEnv as the published evaluation scripts use it, in this process."""

    def __init__(self, suite: str, task: int) -> None:
        from wmjax.sim.libero import import_libero, load_task

        loaded = load_task(suite, task)
        self.instruction = loaded.instruction
        sizes = {"camera_heights": 256, "camera_widths": 256}
        self._env = import_libero().wrapper.OffScreenRenderEnv(bddl_file_name=loaded.bddl_file, **sizes)

    def reset(self, episode: EpisodeId, settled: np.ndarray | None) -> None:
        """Seeds, resets hard, settles, and goes to a recorded start if there is one."""
        from wmjax.sim.env import write_state

        self._env.seed(episode.seed)
        np.random.seed(episode.seed)
        self._env.reset()
        for _ in range(10):
            self.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
        if settled is not None:
            write_state(self._env.env, settled)

    def step(self, action: np.ndarray) -> bool:
        """One step with its observation; both cameras are rendered in it."""
        self.observation, _, done, _ = self._env.step(np.asarray(action, np.float64))
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

    def reset(self, episode: EpisodeId, settled: np.ndarray | None) -> None:
        """As LiberoEnv; a hard reset compiles the model again, and recreates the renderer."""
        if not self._rung.soft_reset:
            self._env._renderer = None
        self._env.reset(episode)
        if settled is not None:
            self._env.restore(settled)

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


def play(loop: Any, actor: Actor, episode: EpisodeId, max_steps: int) -> tuple[int, bool]:
    """One episode, open loop between decisions; returns control steps and success."""
    loop.reset(episode, actor.settled_state(episode))
    frames = [loop.render()] * (HORIZON // STRIDE)
    step = number = 0
    while step < max_steps:
        decision = Decision(0, episode, number, step, np.stack(frames), loop.state(), loop.instruction)
        frames, number = [], number + 1
        for action in actor.act([decision])[0].actions[:HORIZON]:
            step += 1
            if loop.step(action):
                return step, True
            if step % STRIDE == 0:
                frames.append(loop.render())
            if step == max_steps:
                break
    return step, False


def serial(rung: Rung, work: Work) -> Result:
    """A rung in one process: simulator and policy take turns."""
    actor, first = work.actor(), work.episodes[0]
    loop = (PlainLoop if rung.plain else partial(OurLoop, rung=rung))(first.suite, first.task_id)
    actor.prepare(1, HORIZON, ACTION_SPEC)
    play(loop, actor, first, WARM_UP)
    started = time.monotonic()
    played = [play(loop, actor, episode, work.max_steps) for episode in work.episodes]
    seconds = time.monotonic() - started
    loop.close()
    return Result(rung.name, rung.path, seconds, [steps for steps, _ in played], [bit for _, bit in played])


def pooled(rung: Rung, work: Work) -> Result:
    """The real evaluation path: processes, one queue. A first evaluation warms the workers up."""
    import tempfile

    from wmjax.reporting.video.clips import Videos
    from wmjax.rollout.results import Results
    from wmjax.rollout.runner import Runner
    from wmjax.rollout.settings import EvaluateSettings
    from wmjax.sim.rollout_pool import RolloutPool
    from wmjax.sim.worker import WorkerSettings

    actor = work.actor()
    rounds = (("warm", work.episodes[: rung.workers], WARM_UP), ("timed", work.episodes, work.max_steps))
    with tempfile.TemporaryDirectory() as folder, RolloutPool(WorkerSettings(rung.spec, 4), rung.workers) as pool:
        for name, chosen, limit in rounds:
            protocol = load_protocol("spatial_dev", max_steps=limit, open_loop_horizon=HORIZON)
            results = Results(Path(folder) / name, {})
            videos = Videos(Path(folder) / name / "videos", 0, 5.0, ACTION_SPEC)
            runner = Runner(pool, actor, protocol, results, videos, EvaluateSettings())
            started = time.monotonic()
            runner.run(chosen)
            seconds = time.monotonic() - started
    records = {record.key: record for record in results.records}
    ended = [records[episode.key] for episode in work.episodes]
    return Result(rung.name, rung.path, seconds, [r.steps for r in ended], [r.success for r in ended])


def served_to_vla_eval(rung: Rung, work: Work) -> Result:
    """The policy in another process, asked by vla-eval's own benchmark; as many episodes as the others."""
    from benchmarks.vla_eval_libero import play_served

    assert work.run is not None
    first = work.episodes[0]
    episodes = [EpisodeId(first.suite, first.task_id, "benchmark", index) for index in range(len(work.episodes))]
    played = play_served(work.run, episodes, work.max_steps, WARM_UP)
    return Result(rung.name, rung.path, played.seconds, played.steps, played.successes)


def left_out(rung: Rung, work: Work) -> str:
    """Why a rung cannot run; empty if it can."""
    if not rung.served:
        return ""
    if work.store is not None or work.run is None:
        return "vla-eval starts at the benchmark's initial states, not at recorded ones"
    from benchmarks.vla_eval_libero import require_vla_eval

    try:
        require_vla_eval()
    except UserError as error:
        return str(error)
    return ""


def measure(work: Work, fresh: bool = True, names: Sequence[str] = ()) -> Iterator[Result]:
    """The rungs of these names, or all, each in a fresh process by default."""
    context = multiprocessing.get_context("spawn")
    for rung in (rung for rung in RUNGS if not names or rung.name in names):
        if reason := left_out(rung, work):
            print(f"  {rung.name:<11} left out: {reason}")
            continue
        body: Callable[..., Result] = served_to_vla_eval if rung.served else serial if rung.workers == 1 else pooled
        if rung.workers > 1 or not fresh:  # the pool starts its own processes
            yield body(rung, work)
            continue
        with context.Pool(1) as pool:
            yield pool.apply(body, (rung, work))


def choose(task: int, count: int, store: Path | None) -> tuple[EpisodeId, ...]:
    """The episodes: random resets of ``spatial_dev``, or the first recorded ones."""
    if store is not None:
        return tuple(Replay(TrainingStore(store), ACTION_SPEC).choose("libero_spatial", (task,), count))
    first = load_protocol("spatial_dev").first_index
    return tuple(EpisodeId("libero_spatial", task, "random", first + i) for i in range(count))


def run_ladder(work: Work, fresh: bool, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Runs the ladder, prints a line per rung and returns its rows."""
    rows: list[dict[str, Any]] = []
    ends: dict[str, tuple[list[int], list[bool]]] = {}
    for result in measure(work, fresh, names):
        end = (result.steps, result.successes)
        same = ends.setdefault("recorded" if work.store else result.path, end) == end
        ratio = result.rate / rows[0]["rate"] if rows else 1.0
        rows.append({**dataclasses.asdict(result), "rate": result.rate, "ratio": ratio, "ends_equal": same})
        print(
            f"  {result.rung:<11} {result.rate:7.1f} steps/s  x{ratio:5.1f}  {sum(result.successes)}/{len(end[1])}  "
            f"{result.path}, bits and lengths {'equal' if same else 'DIFFER'}",
            flush=True,
        )
    return rows


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--replay", type=Path, help="training store whose recordings are executed")
    parser.add_argument("--task", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS)
    parser.add_argument(
        "--rungs", type=lambda text: text.split(","), default=[], help="these alone, such as plain,pool"
    )
    parser.add_argument("--here", action="store_true", help="no process for each rung: quick, its numbers mean little")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if not options.runs and options.replay is None:
        parser.error("give a RUN, or --replay STORE")
    if unknown := set(options.rungs) - {rung.name for rung in RUNGS}:
        parser.error(f"--rungs names {', '.join(sorted(unknown))}; there are {', '.join(rung.name for rung in RUNGS)}")
    episodes = choose(options.task, options.episodes, options.replay)
    table: dict[str, list[dict[str, Any]]] = {}
    for run in options.runs or [None]:
        name = "recordings alone" if run is None else run.name
        print(f"{name}: {len(episodes)} episodes of libero_spatial task {options.task}")
        table[name] = run_ladder(
            Work(run, options.replay, episodes, options.max_steps), not options.here, options.rungs
        )
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
