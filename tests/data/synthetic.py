"""Small valid stores made of noise, for every test that needs data but no simulator."""

import dataclasses
from pathlib import Path

import numpy as np

from wmjax.core.specs import EncoderSpec
from wmjax.data.latents import LatentStore, LatentWriter
from wmjax.data.shift import draw_views
from wmjax.data.store import EpisodeData, TrainingStore, finalize, write_part
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

LENGTHS = (29, 41, 18, 50, 33, 24)
INSTRUCTIONS = ("pick up the black bowl and place it on the plate", "pick up the cream cheese", "open the drawer")


def make_episode(
    index: int, length: int, image_size: int = 56, tasks: int = 2, stride: int = 4, cameras: int = 2, branch: int = 0
) -> EpisodeData:
    """An episode whose state[0] is its index and state[1] the control step, so that leaks are visible."""
    rng = np.random.default_rng(1000 + index)
    steps = np.arange(0, length, stride, dtype=np.int32)
    state = rng.normal(size=(length, 8)).astype(np.float32)
    state[:, 0], state[:, 1] = index, np.arange(length)
    action = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
    action[:, 6] = np.sign(action[:, 6])
    image = (cameras, image_size, image_size, 3)
    return EpisodeData(
        images=rng.integers(0, 256, (len(steps), *image), dtype=np.uint8),
        frame_step=steps,
        state=state,
        action=action,
        executed=np.clip(action + 0.01, -1, 1).astype(np.float32),
        settled_state=rng.normal(size=12),
        meta={
            "suite": "libero_spatial",
            "task_id": index % tasks,
            "instruction": INSTRUCTIONS[index % tasks],
            "seed": index,
            "init": "random",
            "settled_hash": f"{index:016x}",
            "success_step": length - 8,
        },
        branch_images=rng.integers(0, 256, (len(steps), branch, *image), dtype=np.uint8) if branch else None,
    )


def make_store(
    folder: Path,
    *,
    image_size: int = 56,
    lengths: tuple[int, ...] = LENGTHS,
    tasks: int = 2,
    cameras: int = 2,
    branch: int = 0,
) -> TrainingStore:
    """Writes and opens a training store of noise, with branches of ``branch`` frames."""
    names = ("agentview", "robot0_eye_in_hand")[:cameras]
    spec = dataclasses.replace(OBSERVATION_SPEC, cameras=names, image_size=image_size, simulator="synthetic")
    for index, length in enumerate(lengths):
        episode = make_episode(index, length, image_size, tasks, spec.frame_stride, cameras, branch)
        write_part(folder, f"episode-{index:03d}", episode, spec)
    return finalize(folder, spec, ACTION_SPEC)


def make_latents(
    folder: Path, store: TrainingStore, *, views: int = 3, grid: int = 4, dim: int = 24, max_shift: int = 6
) -> LatentStore:
    """Writes and opens a latent store of noise, except channel 0 = frame index / 128 and channel 1 = view.

    Channel 0 of a branch's frame j is (frame index + j + 1) / 128, and channel 1 is -1.
    """
    spec = EncoderSpec(cameras=("agentview",), name="synthetic", tokens_per_frame=grid * grid, dim=dim)
    writer = LatentWriter(folder, spec, store, draw_views(len(store.episodes), views, 0, max_shift), "jax")
    for index in writer.pending():
        writer.write(index, episode_latents(store, index, views, grid, dim))
    return writer.finish()


def episode_latents(store: TrainingStore, index: int, views: int, grid: int, dim: int) -> np.ndarray:
    """The noise of one episode, ``[views, frames, grid * grid, dim]``."""
    entry = store.episodes[index]
    latents = np.random.default_rng(index).normal(size=(views, entry["num_frames"], grid * grid, dim))
    latents[..., 0] = (entry["frame_start"] + np.arange(entry["num_frames"]))[None, :, None] / 128
    latents[..., 1] = np.arange(views)[:, None, None]
    if store.branch_images is None:
        return latents
    ahead = np.repeat(latents, store.branch_images.shape[1], axis=1)
    ahead[..., 0] += np.tile(1 + np.arange(store.branch_images.shape[1]), entry["num_frames"])[None, :, None] / 128
    ahead[..., 1] = -1
    return np.concatenate([latents, ahead], axis=1)
