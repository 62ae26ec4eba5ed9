"""What the true future says about the actions beside the present: ridge regressions on held-out episodes.

python -m benchmarks.future_information STORE LATENTS [--delay 8] [--chunk 8] [--history 3] [--future 4]

Only undisturbed episodes are used, in which what was recorded is what the expert would have done; a quarter of them is
held out. Each row of the table adds something to the first, which has the task, the state and the pending actions, and
has R² of the chunk's translation, rotation and gripper command. If the latents of the true future add little where the
hand's own future pose adds much, the latents do not say precisely enough where the hand will be.
"""

import argparse

import numpy as np
from jaxtyping import Float

from wmjax.analysis.ridge import ridge_r2
from wmjax.core.text_table import text_table
from wmjax.data.latents import LatentStore
from wmjax.data.loader import BatchSource, LoaderConfig
from wmjax.data.split import recording_of, split_episodes
from wmjax.data.store import TrainingStore
from wmjax.diagnostics.samples import rotation_columns

HELD_OUT = 0.25
NAMES = ("delay", "chunk", "history", "future")
"""Settings of the loader that are options."""


def main(arguments: list[str] | None = None) -> None:
    """Prints the table of one store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="a training store of LIBERO with undisturbed episodes")
    parser.add_argument("latents", help="its latents")
    parser.add_argument("--delay", type=int, default=8, help="control steps (default: 8)")
    parser.add_argument("--chunk", type=int, default=8, help="control steps (default: 8)")
    parser.add_argument("--history", type=int, default=3, help="frames (default: 3)")
    parser.add_argument("--future", type=int, default=4, help="frames (default: 4)")
    options = parser.parse_args(arguments)
    store, latents = TrainingStore(options.store), LatentStore(options.latents)
    scores = measure(store, latents, LoaderConfig(**{name: getattr(options, name) for name in NAMES}))
    head = ("features", *next(iter(scores.values())))
    print(text_table(head, [(name, *(f"{value:.3f}" for value in row.values())) for name, row in scores.items()]))


def measure(store: TrainingStore, latents: LatentStore, config: LoaderConfig) -> dict[str, dict[str, float]]:
    """R² by features and part of the action, on held-out undisturbed episodes."""
    plain = np.array([e["index"] for e in store.episodes if e["perturbation"] == 0.0 and not e.get("failures")])
    count = int(np.isin(store.frame_episode, plain).sum())
    changes = {"batch_size": count, "num_epochs": 1, "shuffle": False, "views": 1, "images": False, "pending": True}
    batch = BatchSource(store, latents, plain, LoaderConfig(**(vars(config) | changes)))[0]
    keep = batch["future_mask"].all(1) & batch["action_mask"].all(1)
    batch = {name: values[keep] for name, values in batch.items()}
    frames = batch["sample_id"]
    chosen, _ = split_episodes([store.episodes[index] for index in plain], HELD_OUT, 0)
    train = np.isin(store.frame_episode[frames], plain[chosen])
    action = batch["action"]
    targets = {"translation": action[..., :3], "rotation": action[..., 3:6], "gripper": action[..., 6:]}
    flat = {name: values.reshape(len(values), -1).astype(np.float64) for name, values in targets.items()}
    groups = recording_of(store.episodes)[store.frame_episode[frames]]
    return {name: ridge_r2(x, flat, train, groups) for name, x in _features(store, batch, config).items()}


def _features(
    store: TrainingStore, batch: dict[str, np.ndarray], config: LoaderConfig
) -> dict[str, Float[np.ndarray, "n features"]]:
    """The features of each row of the table."""
    rows = store.frame_row[batch["sample_id"]]
    ahead = rows[:, None] + store.spec.frame_stride * np.arange(1, config.future + 1)
    position = store.state[ahead][..., list(store.spec.position)]
    rotation = rotation_columns(store.state[ahead][..., list(store.spec.orientation)])
    parts = {
        "task": np.eye(len(store.tasks))[batch["task"]],
        "state": batch["state"],
        "pending": batch["pending"],
        "present": batch["latents"],
        "future": batch["future"],
        "pose": np.concatenate([position, rotation], axis=-1),
    }
    flat = {name: values.reshape(len(values), -1).astype(np.float32) for name, values in parts.items()}
    first = [flat["task"], flat["state"], flat["pending"]]
    return {
        "task, state, pending actions": np.concatenate(first, axis=1),
        "and present latents": np.concatenate([*first, flat["present"]], axis=1),
        "and future latents": np.concatenate([*first, flat["future"]], axis=1),
        "and both": np.concatenate([*first, flat["present"], flat["future"]], axis=1),
        "and the hand's future pose": np.concatenate([*first, flat["pose"]], axis=1),
    }


if __name__ == "__main__":
    main()
