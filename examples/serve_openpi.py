"""Drives a served policy in LIBERO with openpi's own client: ``python examples/serve_openpi.py --port 8000``.

First, in another terminal: ``python -m wmjax.serve --run RUN --listen openpi:8000``. The client is PyPI's
``openpi-client`` (``pip install --no-deps openpi-client==0.1.2``). ``--plain`` sends what a client sends that knows
nothing of wmjax: the newest frame alone, and no episode.
"""

import argparse
from typing import Any

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from wmjax.core.specs import ObservationSpec, from_dict
from wmjax.sim.episode import EpisodeId


def observe(env: Any, frames: list[np.ndarray], episode: EpisodeId, step: int, plain: bool) -> dict[str, Any]:
    """What is sent at a decision; ``frames`` fell due since the last one, each [cameras, side, side, 3]."""
    views = np.stack(frames, axis=1)  # cameras first
    sent = {"observation/state": env.state(), "prompt": env.instruction}
    if plain:
        return {**sent, "observation/image": views[0, -1], "observation/wrist_image": views[1, -1]}
    own = {"wmjax/episode": episode.key, "wmjax/step": step}
    return {**sent, **own, "observation/image": views[0], "observation/wrist_image": views[1]}


def run_episode(client: Any, env: Any, episode: EpisodeId, limit: int, plain: bool = False) -> tuple[bool, int]:
    """One episode; returns whether it succeeded, and its control steps."""
    card = client.get_server_metadata()
    stride, horizon = card["observation"]["frame_stride"], card["open_loop_horizon"]
    env.reset(episode)
    step, frames = 0, [env.render()]
    while step < limit:
        actions = client.infer(observe(env, frames, episode, step, plain))["actions"]
        frames = []
        for action in actions[: min(horizon, limit - step)]:
            success = env.step(action)
            step += 1
            if success:
                return True, step
            if step % stride == 0:
                frames.append(env.render())
    return False, step


def main(arguments: list[str] | None = None) -> None:
    """Prints what became of each episode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--suite", default="libero_spatial")
    parser.add_argument("--task", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=2)
    parser.add_argument("--max-steps", type=int, default=220, help="control steps")
    parser.add_argument("--plain", action="store_true", help="send the newest frame alone, and no episode")
    options = parser.parse_args(arguments)
    from wmjax.sim.env import LiberoEnv

    client = WebsocketClientPolicy(options.host, options.port)
    spec = from_dict(ObservationSpec, client.get_server_metadata()["observation"], "the server's metadata")
    env = LiberoEnv(options.suite, options.task, spec)
    for index in range(options.episodes):
        episode = EpisodeId(options.suite, options.task, "random", index)
        success, steps = run_episode(client, env, episode, options.max_steps, options.plain)
        print(f"{episode.key}: {'success' if success else 'failure'} after {steps} steps")
    env.close()


if __name__ == "__main__":
    main()
