"""The table of what the true future says: latents that contain the coming chunk explain it, noise does not."""

import dataclasses

import numpy as np
import pytest

from benchmarks.future_information import main, measure
from tests.data.synthetic import make_episode
from wmjax.core.specs import EncoderSpec
from wmjax.data.latents import LatentStore, LatentWriter
from wmjax.data.loader import LoaderConfig
from wmjax.data.shift import draw_views
from wmjax.data.store import TrainingStore, finalize, write_part
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

SPEC = dataclasses.replace(OBSERVATION_SPEC, image_size=56, simulator="synthetic")


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[TrainingStore, LatentStore]:
    """Sixteen undisturbed episodes of noise whose latents hold the actions of the next four control steps."""
    folder = tmp_path_factory.mktemp("store")
    for index in range(16):
        episode = make_episode(index, 120)
        episode.meta["perturbation"] = 0.0 if index < 15 else 0.2
        write_part(folder, f"episode-{index:03d}", episode, SPEC, ACTION_SPEC)
    store = finalize(folder, SPEC, ACTION_SPEC)
    spec = EncoderSpec(cameras=("agentview",), name="synthetic", tokens_per_frame=4, dim=7)
    writer = LatentWriter(folder / "z", spec, store, draw_views(16, 1, 0, 0), "jax")
    for entry in store.episodes:
        rows = slice(entry["step_start"], entry["step_start"] + entry["length"])
        writer.write(entry["index"], store.action[rows].reshape(1, -1, 4, 7))
    return store, writer.finish()


def test_latents_that_hold_the_chunk_explain_it(stores: tuple[TrainingStore, LatentStore]) -> None:
    scores = measure(*stores, LoaderConfig(delay=8, chunk=4, history=1, future=2))
    assert list(scores) == [
        "task, state, pending actions", "and present latents", "and future latents", "and both",
        "and the hand's future pose",
    ]  # fmt: skip
    for name, row in scores.items():
        told = name in ("and future latents", "and both")
        assert all(value > 0.9 if told else value < 0.3 for value in row.values()), (name, row)


def test_the_command_prints_the_table(stores, capsys) -> None:
    store, latents = stores
    main([str(store.folder), str(latents.folder), "--chunk", "4", "--history", "1", "--future", "2"])
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["features", "translation", "rotation", "gripper"]
    assert np.isfinite([float(value) for value in printed.splitlines()[2].split()[-3:]]).all()
