"""A policy of wmjax in vla-eval's own LIBERO benchmark: its observations there, and the outcomes of the episodes.

    python benchmarks/vla_eval_libero.py observations [--task 0] [--episodes 3] [--out FILE]
    python benchmarks/vla_eval_libero.py outcomes RUN [--task 0] [--episodes 5] [--out FILE]

``observations`` puts vla-eval's environment and ours where the same episode begins, executes the same actions in both,
and compares physics, images and state; the observation has gone through vla-eval's encoding and our decoding.

``outcomes`` plays the benchmark's initial states in three ways: ``ours`` is our environment with the policy in process,
``theirs, in process`` vla-eval's class and runner with the policy in process, ``theirs, served`` the same through
``python -m wmjax.serve``. The last two must have the same actions, bit for bit. Needs PyPI's ``vla-eval``, without its
dependencies: its class, runner and client import none that wmjax does not have.
"""

import argparse
import asyncio
import dataclasses
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wmjax.core.errors import UserError
from wmjax.rollout.actors import Chunk, Decision
from wmjax.rollout.protocol import load_protocol
from wmjax.sim.env import SETTLE_ACTION, LiberoEnv, read_state
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import OBSERVATION_SPEC, import_libero

PROTOCOL = load_protocol("libero_spatial")
MAX_STEPS, HORIZON = PROTOCOL.max_steps, PROTOCOL.open_loop_horizon
PARAMETERS = {"send_wrist_image": True, "send_state": True, "quat_no_antipodal": True}
"""What our server asks of the benchmark (``observation_params`` of its greeting)."""
SEED = 7
"""vla-eval's own default."""
FULL = dataclasses.replace(OBSERVATION_SPEC, image_size=256, reflection=True, mesh_detail_mm=0.0)
"""What vla-eval draws."""
FREE_STEPS = 16
"""Control steps of random actions after the settling, whose ends are compared as well."""
POSES_AT = 23
"""Physics steps of a control step's 25 whose result vla-eval's images and hand show; the fingers are one later."""


@dataclasses.dataclass
class Played:
    """Episodes that were played in one way.

    Attributes:
        seconds: wall time of the episodes, resets included.
        successes: of each episode.
        actions: of each episode, [steps, action].

    """

    seconds: float
    successes: list[bool]
    actions: list[np.ndarray]

    @property
    def steps(self) -> list[int]:
        """Control steps of each episode."""
        return [len(chunk) for chunk in self.actions]


def require_vla_eval() -> None:
    """Checks that the package is installed.

    Raises:
        UserError: it is not.

    """
    if importlib.util.find_spec("vla_eval") is None:
        raise UserError("package vla_eval is not installed; run pip install --no-deps vla-eval==0.8.0")


def their_benchmark(suite: str, wait: int = 10) -> Any:
    """vla-eval's LIBERO benchmark as its orchestrator makes it for our server; ``wait`` are its settling steps."""
    import_libero()  # checked, and without its messages
    from vla_eval.benchmarks.libero.benchmark import LIBEROBenchmark

    return LIBEROBenchmark(suite=suite, seed=SEED, num_steps_wait=wait, **PARAMETERS)


class InProcess:
    """The part of vla-eval's ``Connection`` that its runner needs, with the policy in this process."""

    def __init__(self, run: Path) -> None:
        from wmjax.policy.policy import load_policy
        from wmjax.policy.policy_actor import PolicyActor

        policy = load_policy(run, batch_size=1, open_loop_horizon=HORIZON)
        self.actor, self._spec, self._frames = PolicyActor(policy), policy.observation_spec, policy.frames_per_decision
        self.actor.prepare(1, HORIZON, policy.action_spec)

    async def start_episode(self, config: dict[str, Any]) -> None:
        """A new episode of the benchmark."""
        task = config["task"]
        self._episode = EpisodeId(task["suite"], task["task_id"], "benchmark", task["episode_idx"])
        self._step, self._due, self._chunk = 0, [], np.zeros((0, 7), np.float32)

    async def act(self, observation: dict[str, Any]) -> dict[str, Chunk]:
        """The action of one control step."""
        from wmjax.data.observation import resize_image

        if self._step % self._spec.frame_stride == 0:
            views = [observation["images"][name] for name in ("agentview", "wrist")]
            self._due.append(np.stack([resize_image(view, self._spec.image_size) for view in views]))
        number, row = divmod(self._step, HORIZON)
        if row == 0:
            frames = self._due if number else self._due * self._frames
            state = observation["states"].astype(np.float32)
            decision = Decision(
                0, self._episode, number, self._step, np.stack(frames), state, observation["task_description"]
            )
            self._chunk, self._due = self.actor.act([decision])[0].actions, []
        self._step += 1
        return {"actions": self._chunk[row]}

    async def end_episode(self, result: dict[str, Any]) -> None:
        """Nothing is to be done."""


class Noted:
    """A connection whose actions are kept."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.actions: list[np.ndarray] = []
        self.start_episode, self.end_episode = connection.start_episode, connection.end_episode

    async def act(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The action, which is noted."""
        answer: dict[str, Any] = await self._connection.act(observation)
        self.actions.append(np.array(answer["actions"]))
        return answer


async def play_theirs(connection: Any, episodes: Sequence[EpisodeId], limit: int, warm: int = 0) -> Played:
    """Episodes of one task by vla-eval's benchmark class and runner, after a shorter one of ``warm`` steps."""
    from vla_eval.runners.sync_runner import SyncEpisodeRunner

    benchmark, runner = their_benchmark(episodes[0].suite), SyncEpisodeRunner()
    task = benchmark.get_tasks()[episodes[0].task_id]
    try:
        if warm:
            await runner.run_episode(benchmark, {**task, "episode_idx": 0}, connection, max_steps=warm)
        played = Played(0.0, [], [])
        for episode in episodes:
            noted, began = Noted(connection), time.monotonic()
            result = await runner.run_episode(benchmark, {**task, "episode_idx": episode.index}, noted, max_steps=limit)
            played.seconds += time.monotonic() - began
            played.successes.append(bool(result["metrics"]["success"]))
            played.actions.append(np.stack(noted.actions))
    finally:
        benchmark.cleanup()
    return played


def play_served(run: Path, episodes: Sequence[EpisodeId], limit: int, warm: int = 0) -> Played:
    """As :func:`play_theirs`, through a server in a separate process and vla-eval's client.

    Raises:
        UserError: the server requests other observations than :data:`PARAMETERS`.

    """
    from vla_eval.connection import Connection

    from benchmarks.serving import served

    async def drive(url: str) -> Played:
        async with Connection(url) as connection:
            if connection.server_info["observation_params"] != PARAMETERS:
                raise UserError(f"the server requests {connection.server_info['observation_params']}, not {PARAMETERS}")
            return await play_theirs(connection, episodes, limit, warm)

    with served(run, 1, ["vla-eval"], "--horizon", str(HORIZON)) as urls:
        return asyncio.run(drive(urls["vla-eval"]))


def play_ours(run: Path, episodes: Sequence[EpisodeId], limit: int) -> Played:
    """The same initial states in our environment, drawn as the policy's spec says, with the policy in process."""
    actor = InProcess(run).actor
    spec, played = actor.observation_spec, Played(0.0, [], [])
    env = LiberoEnv(episodes[0].suite, episodes[0].task_id, spec)
    env.render()
    for episode in episodes:
        began, done, actions = time.monotonic(), False, []
        env.reset(episode)
        frames = [env.render()] * (HORIZON // spec.frame_stride)
        while not done and len(actions) < limit:
            number, step = len(actions) // HORIZON, len(actions)
            decision = Decision(0, episode, number, step, np.stack(frames), env.state(), env.instruction)
            frames = []
            for action in actor.act([decision])[0].actions[: min(HORIZON, limit - step)]:
                done = env.step(action)
                actions.append(action)
                if done:
                    break
                if len(actions) % spec.frame_stride == 0:
                    frames.append(env.render())
        played.seconds += time.monotonic() - began
        played.successes.append(done)
        played.actions.append(np.stack(actions))
    env.close()
    return played


def outcomes(run: Path, episodes: Sequence[EpisodeId], limit: int) -> dict[str, Any]:
    """The three ways, and in how many episodes those of vla-eval have the same actions."""
    ways = {
        "ours": play_ours(run, episodes, limit),
        "theirs, in process": asyncio.run(play_theirs(InProcess(run), episodes, limit)),
        "theirs, served": play_served(run, episodes, limit),
    }
    here, there = ways["theirs, in process"].actions, ways["theirs, served"].actions
    same = sum(np.array_equal(a, b) for a, b in zip(here, there, strict=True))
    rows: dict[str, Any] = {}
    for name, played in ways.items():
        rate = sum(played.steps) / played.seconds
        rows[name] = {"successes": played.successes, "steps": played.steps, "steps per second": rate}
        print(
            f"  {name:<19} {sum(played.successes)}/{len(episodes)} successes after {played.steps}, {rate:.1f} steps/s"
        )
    print(f"  served and in process: the same actions in {same} of {len(episodes)} episodes")
    return {**rows, "same actions": same, "episodes": [episode.key for episode in episodes]}


def received(observation: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Images [cameras, side, side, 3] and state of an observation, packed by vla-eval and unpacked by our server."""
    from vla_eval.protocol.messages import Message, MessageType, pack_message

    from wmjax.serving.packed import Limits, unpack
    from wmjax.serving.packed_text import arrays

    payload = unpack(pack_message(Message(MessageType.OBSERVATION, observation)), Limits(), arrays)["payload"]
    images = [payload["images"][name].decode(name, 1024) for name in ("agentview", "wrist")]
    return np.stack(images), payload["states"].astype(np.float32)


def far(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference."""
    return float(np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).max(initial=0.0))


def draw_in(theirs: Any) -> None:
    """Makes the OpenGL context of vla-eval's environment the current one; ours does so by itself."""
    if theirs._env is not None:
        theirs._env.env.sim._render_context_offscreen.gl_ctx.make_current()


def newest(theirs: Any) -> tuple[np.ndarray, np.ndarray]:
    """What our server receives of vla-eval's newest observation."""
    return received(asyncio.run(theirs.get_observation()))


def begin(episode: EpisodeId, theirs: Any, ours: Any) -> dict[str, float]:
    """Starts an episode in both environments, without settling; the fixtures are those of vla-eval afterwards."""
    draw_in(theirs)
    task = theirs.get_tasks()[episode.task_id]
    asyncio.run(theirs.start_episode({**task, "episode_idx": episode.index}))
    env, (images, state) = theirs._env.env, newest(theirs)
    ours._place(episode, 0)
    found = {
        "start: objects and arm": far(env.sim.get_state().flatten(), ours.sim.get_state().flatten()),
        "start: fixtures (m)": far(env.sim.model.body_pos, ours.sim.model.body_pos),
    }
    ours.sim.model.body_pos[:], ours.sim.model.body_quat[:] = env.sim.model.body_pos, env.sim.model.body_quat
    ours.sim.forward()
    ours.sim.data.qacc_warmstart[:] = env.sim.data.qacc_warmstart  # where the contact solver starts, as resets left it
    found["start with vla-eval's fixtures: images"] = far(images, ours.render())
    found["start with vla-eval's fixtures: state"] = far(state, ours.state())
    return found


def early(ours: Any, action: np.ndarray, substeps: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and state some physics steps into a control step, which is undone again."""
    env, state = ours._env, ours.sim_state()
    whole, env.control_timestep = env.control_timestep, (substeps + 0.5) * env.model_timestep
    ours.step(action)
    env.control_timestep = whole
    found = ours.render(), ours.state()
    ours.restore(state)
    return found


def end(name: str, action: np.ndarray, theirs: Any, ours: Any) -> dict[str, float]:
    """Differences after a last control step, which is executed here."""
    images, hand = early(ours, action, POSES_AT)
    fingers = early(ours, action, POSES_AT + 1)[1]
    both(action, theirs, ours)
    images_now, state = newest(theirs)
    return {
        f"{name}: physics": far(read_state(theirs._env.env), ours.sim_state()),
        f"{name}: images, ours 4 ms earlier": far(images_now, images),
        f"{name}: hand, ours 4 ms earlier": far(state[:6], hand[:6]),
        f"{name}: fingers, ours 2 ms earlier": far(state[6:], fingers[6:]),
        f"{name}: images, ours now, mean": float(np.abs(images_now - ours.render().astype(float)).mean()),
        f"{name}: hand, ours now (m)": far(state[:3], ours.state()[:3]),
    }


def both(action: np.ndarray, theirs: Any, ours: Any) -> None:
    """Executes an action in both environments."""
    ours.step(action)
    draw_in(theirs)
    asyncio.run(theirs.apply_action({"actions": action}))


def compare(episode: EpisodeId, theirs: Any, ours: Any, quick: Any) -> dict[str, float]:
    """Differences between vla-eval's environment and ours at an episode's start, after settling and later.

    Args:
        episode: one of the benchmark's.
        theirs: vla-eval's benchmark, without its settling steps.
        ours: our environment, drawn as vla-eval draws it.
        quick: our environment, drawn as our policies are trained.

    Returns:
        The largest difference of each kind, or the mean one where the name says so; 0 is equality.

    """
    from wmjax.data.observation import resize_image

    found, random = begin(episode, theirs, ours), np.random.default_rng(episode.stream("comparison"))
    free = [random.uniform(-1, 1, 7) for _ in range(FREE_STEPS)]
    for name, actions in (("settled", [SETTLE_ACTION] * 10), (f"{FREE_STEPS} steps later", free)):
        for action in actions[:-1]:
            both(action, theirs, ours)
        found |= end(name, actions[-1], theirs, ours)
    quick.restore(ours.sim_state())
    size = OBSERVATION_SPEC.image_size
    resized = np.stack([resize_image(image, size) for image in ours.render()])
    drawn = quick.render()
    found[f"{size} px, resized or drawn: images, mean"] = float(np.abs(resized - drawn.astype(float)).mean())
    return found


def observations(episodes: Iterable[EpisodeId]) -> dict[str, dict[str, float]]:
    """:func:`compare` for each episode of one task."""
    table: dict[str, dict[str, float]] = {}
    theirs = ours = quick = None
    for episode in episodes:
        if theirs is None:
            theirs = their_benchmark(episode.suite, wait=0)
            ours, quick = (LiberoEnv(episode.suite, episode.task_id, spec) for spec in (FULL, OBSERVATION_SPEC))
        table[episode.key] = compare(episode, theirs, ours, quick)
        print(episode.key)
        for name, value in table[episode.key].items():
            print(f"  {name:<52} {value:.3g}", flush=True)
    return table


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("observations", "outcomes"))
    parser.add_argument("run", type=Path, nargs="?", default=Path("mini"))
    parser.add_argument("--task", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    try:
        require_vla_eval()
    except UserError as error:
        parser.error(str(error))
    episodes = [EpisodeId(PROTOCOL.suite, options.task, "benchmark", index) for index in range(options.episodes)]
    if options.what == "observations":
        found: dict[str, Any] = observations(episodes)
    else:
        found = outcomes(options.run, episodes, options.max_steps)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # robosuite's destructors print ignored exceptions after EGL is gone
