"""How well a state that is rolled forward predicts the recorded one, beside the state as it is.

python -m benchmarks.roll_state STORE [--delay 8] [--episodes 150]

For each frame of the episodes, the state is rolled forward by the executed actions of the next ``--delay`` control
steps and compared with the state that was recorded then. The rows are the state as it is, the state rolled by the
controller's full deltas (0.05 m, 0.5 rad), and the state as a policy with ``model.roll_state`` gets it; the last lines
have the least squares for each axis that ``wmjax.data.motion.METRES`` and ``RADIANS`` are from.
"""

import argparse
import dataclasses

import numpy as np
from jaxtyping import Float32
from scipy.spatial.transform import Rotation

from wmjax.data.labels import pending_actions
from wmjax.data.motion import Motion, find_motion, roll_state
from wmjax.data.store import TrainingStore

FULL = {"metres": (0.05,) * 3, "radians": (0.5,) * 3}
State = Float32[np.ndarray, "n state"]


def main(arguments: list[str] | None = None) -> None:
    """Prints the table of one store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="a training store of LIBERO")
    parser.add_argument("--delay", type=int, default=8, help="control steps (default: 8)")
    parser.add_argument("--episodes", type=int, default=150, help="how many, from the first (default: 150)")
    options = parser.parse_args(arguments)
    store = TrainingStore(options.store)
    entries = store.episodes[: options.episodes]
    ends = np.array([entry["step_start"] + entry["length"] for entry in entries])
    frames = np.flatnonzero(store.frame_episode < len(entries))
    rows = store.frame_row[frames]
    frames = frames[rows + options.delay < ends[store.frame_episode[frames]]]
    rows = store.frame_row[frames]
    before, after = store.state[rows], store.state[rows + options.delay]
    actions, motion = pending_actions(store, frames, options.delay), find_motion(store.spec, store.action_spec)
    print(f"{len(frames)} frames, {options.delay} control steps; root mean square errors")
    ways = {"as it is": before, "full deltas": roll_state(before, actions, dataclasses.replace(motion, **FULL))}
    for name, found in (ways | {"model.roll_state": roll_state(before, actions, motion)}).items():
        position, rotation = errors(found, after, motion)
        print(f"{name:<18}{100 * position:8.2f} cm{rotation:8.3f} rad")
    moved, turned = (after - before)[:, motion.position], turn(before, after, motion)
    for unit, did, asked in (("m", moved, motion.translation), ("rad", turned, motion.rotation)):
        total = actions[..., asked].sum(1)
        print(f"{unit} per control step and delta of 1: {np.round((did * total).sum(0) / (total**2).sum(0), 4)}")


def errors(found: State, wanted: State, motion: Motion) -> tuple[float, float]:
    """Root mean squares of the distance (m) and of the angle (rad) between two poses."""
    both = (found - wanted)[:, motion.position], turn(found, wanted, motion)
    position, rotation = (np.sqrt(np.square(each).sum(1).mean()) for each in both)
    return float(position), float(rotation)


def turn(before: State, after: State, motion: Motion) -> Float32[np.ndarray, "n 3"]:
    """The rotation vector, about the axes of the world, from one orientation to another."""
    one, other = (Rotation.from_rotvec(state[:, motion.orientation]) for state in (before, after))
    return np.asarray((other * one.inv()).as_rotvec(), np.float32)


if __name__ == "__main__":
    main()
