"""Acts with a run's policy on the frames of a recorded episode: ``python examples/act.py RUN``.

Prints, for each decision, the policy's first action beside the expert's. A policy keeps a carry: the newest frames and
latents of every row of its batch. It is passed from call to call, and an observation that is an episode's ``first``
resets its row.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

import wmjax

STORE = Path(__file__).parents[1] / "tests" / "fixtures" / "two_episodes"
"""Two demonstrations of one task of libero_spatial."""


def observe(policy: wmjax.Policy, store: wmjax.TrainingStore, entry: dict, frame: int) -> wmjax.Observation:
    """What the policy would observe at a frame of a recorded episode, as a batch of one."""
    due = np.arange(frame - policy.frames_per_decision + 1, frame + 1).clip(0)
    step = frame * store.spec.frame_stride
    return wmjax.Observation(
        images=store.frames[entry["frame_start"] + due][None],
        state=store.state[entry["step_start"] + step][None],
        prompt=policy.prompt(entry["instruction"]),
        first=np.array([frame == 0]),
    )


def main(arguments: list[str] | None = None) -> None:
    """Prints the policy's and the expert's action of some decisions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run, or one of its checkpoints")
    parser.add_argument("--data", default=STORE, help="a training store (default: %(default)s)")
    parser.add_argument("--decisions", type=int, default=5, help="how many decisions (default: 5)")
    options = parser.parse_args(arguments)
    store = wmjax.TrainingStore(options.data)
    policy = wmjax.load_policy(options.run, batch_size=1, open_loop_horizon=store.spec.frame_stride)
    entry, carry = store.episodes[0], policy.initial_carry()
    for frame in range(min(options.decisions, entry["num_frames"])):
        key = jax.random.fold_in(jax.random.key(0), frame)
        carry, chunk, info = policy(carry, observe(policy, store, entry, frame), key[None])
        expert = store.action[entry["step_start"] + frame * store.spec.frame_stride]
        gate = f"  gate {float(info['memory/gate'][0]):.3f}" if "memory/gate" in info else ""
        print(f"frame {frame}: policy {np.round(np.asarray(chunk[0, 0]), 2)}  expert {np.round(expert, 2)}{gate}")


if __name__ == "__main__":
    main()
