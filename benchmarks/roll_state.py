"""How well a state that is rolled forward predicts the recorded one, beside the state as it is.

python -m benchmarks.roll_state STORE [--delay 8] [--episodes 150]

For each frame of the episodes, the state is rolled forward by the executed actions of the next ``--delay`` control
steps and compared with the state that was recorded then. The rows are the state as it is, the state rolled by the
controller's full deltas (0.05 m, 0.5 rad), and the state as a policy with ``model.roll_state`` gets it; the last line
has the least squares that ``wmjax.data.motion.METRES`` and ``RADIANS`` are from.
"""

import argparse
import dataclasses

import numpy as np
from jaxtyping import Float32

from wmjax.data.labels import pending_actions
from wmjax.data.motion import Motion, find_motion, roll_state
from wmjax.data.store import TrainingStore
from wmjax.diagnostics.samples import rotation_columns

FULL = {"metres": 0.05, "radians": 0.5}


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
    metres, radians = fit(before, after, actions, motion)
    print(f"least squares: {metres:.4f} m, {radians:.4f} rad per control step and delta of 1")


def errors(
    found: Float32[np.ndarray, "n s"], wanted: Float32[np.ndarray, "n s"], motion: Motion
) -> tuple[float, float]:
    """Root mean squares of the distance (m) and of the angle (rad) between two poses."""
    distance = np.linalg.norm((found - wanted)[:, motion.position], axis=-1)
    a, b = (matrix(x[:, motion.orientation]) for x in (found, wanted))
    cosine = (np.einsum("nij,nij->n", a, b) - 1) / 2
    angle = np.arccos(np.clip(cosine, -1, 1))
    return float(np.sqrt(np.mean(distance**2))), float(np.sqrt(np.mean(angle**2)))


def matrix(vector: Float32[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 3 3"]:
    """Rotation matrices of rotation vectors."""
    columns = rotation_columns(vector).reshape(-1, 2, 3)
    return np.stack([columns[:, 0], columns[:, 1], np.cross(columns[:, 0], columns[:, 1])], axis=-1)


def fit(
    before: Float32[np.ndarray, "n s"],
    after: Float32[np.ndarray, "n s"],
    actions: Float32[np.ndarray, "n steps a"],
    motion: Motion,
) -> tuple[float, float]:
    """The metres and the radians of a delta of 1 that give the smallest errors; the radians on a grid."""
    moved = (after - before)[:, motion.position]
    asked = actions[..., motion.translation].sum(1)
    grid = np.linspace(0.0, 0.25, 51)
    turned = [
        errors(roll_state(before, actions, dataclasses.replace(motion, radians=x)), after, motion)[1] for x in grid
    ]
    return float((moved * asked).sum() / (asked**2).sum()), float(grid[int(np.argmin(turned))])


if __name__ == "__main__":
    main()
