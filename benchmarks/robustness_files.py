"""Small whole inputs of every kind that wmjax reads, and how each is read: what the sweep of damaged files damages."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from tests.data.synthetic import make_latents, make_store
from tests.models.vla_helpers import initialised
from tests.robustness.sources import SIZE, write_hdf5, write_v21, write_v30
from tests.rollout.runs import save_run, tiny_experiment
from tests.rollout.test_report import in_run
from tests.tiny import tiny_config
from wmjax.analysis.comparison import compare
from wmjax.core.paths import resource_folder
from wmjax.core.specs import to_dict as spec_to_dict
from wmjax.data.episode import load_episode, save_episode
from wmjax.data.formats import libero_hdf5
from wmjax.data.formats.lerobot.convert import convert
from wmjax.data.latents import LatentStore, LatentWriter
from wmjax.data.shift import draw_views
from wmjax.data.store import TrainingStore
from wmjax.encoders.vjepa2.files import MINI_FOLDER, encoder_spec
from wmjax.encoders.vjepa2.weights import load_encoder
from wmjax.experiment import config as experiments
from wmjax.experiment.plan import save_settings
from wmjax.models.backbones.qwen2_5_vl import weights
from wmjax.models.backbones.qwen2_5_vl.config import preset
from wmjax.models.backbones.qwen2_5_vl.model import Qwen2_5_VL
from wmjax.models.backbones.qwen2_5_vl.prompt import MINI_TOKENIZER, PromptBuilder
from wmjax.policy.saved import find_policy, save_policy
from wmjax.reporting.evaluation_page import write_report
from wmjax.rollout.benchmark_log import count_records, write_record
from wmjax.rollout.protocol import load_protocol


@dataclasses.dataclass(frozen=True)
class Family:
    """Inputs of one kind.

    Attributes:
        build: writes a whole one into a folder that is not there.
        read: reads one as a command does; ``scratch`` is an empty folder. What it returns is what was understood.
        hashed: whether all that is understood is protected by hashes, so that nothing else may come out of a damaged
            one than out of the whole one.
        weight: how often it is chosen.

    """

    build: Callable[[Path], object]
    read: Callable[[Path, Path, bool], Any]
    hashed: bool = False
    weight: int = 4


def _stored(store: TrainingStore) -> TrainingStore:
    """What an import must never make, whatever it was given."""
    assert np.isfinite(store.action).all() and np.isfinite(store.state).all(), "values that are not finite"
    assert np.abs(store.action).max() <= 1, "actions beyond their bounds"
    assert all(task.instruction.strip() for task in store.tasks), "no instruction"
    store.verify()
    return store


def _lerobot(source: Path, scratch: Path, lenient: bool) -> object:
    return len(_stored(convert(str(source), scratch / "out", image_size=SIZE, skip_bad=lenient)).episodes)


def _hdf5(source: Path, scratch: Path, lenient: bool) -> object:
    found = libero_hdf5.convert(source / "a_demo.hdf5", scratch / "out", image_size=16, skip_bad=lenient)
    return len(_stored(found).episodes)


def _make_hdf5(folder: Path) -> None:
    folder.mkdir()
    write_hdf5(folder / "a_demo.hdf5")


def _store(folder: Path, scratch: Path, lenient: bool) -> object:
    store = TrainingStore(folder)
    store.verify()
    episode = store.episode(1)
    return [np.asarray(x).tolist() for x in (store.action, episode.images, store.settled_state(0), store.frame_step)]


def _make_latents(folder: Path) -> None:
    store = make_store(folder / "store", image_size=28, lengths=(9, 13))
    make_latents(folder / "latents", store, grid=2, dim=6)


def _latents(folder: Path, scratch: Path, lenient: bool) -> object:
    store, latents = TrainingStore(folder / "store"), LatentStore(folder / "latents")
    latents.check(store)
    store.verify()
    latents.verify()
    return [np.asarray(latents.latents).tolist(), latents.views.tolist(), spec_to_dict(latents.spec)]


def _make_parts(folder: Path) -> None:
    """An encoding that was stopped: a plan and one episode of two, beside a recording that was stopped."""
    _make_latents(folder)
    store, spec = TrainingStore(folder / "store"), LatentStore(folder / "latents").spec
    shutil.rmtree(folder / "latents")
    writer = LatentWriter(folder / "latents", spec, store, draw_views(2, 2, 0, 6), "jax")
    writer.write(0, np.zeros((2, store.episodes[0]["num_frames"], 4, 6)))
    for index in range(2):
        save_episode(folder / f"{index}.npz", store.episode(index))


def _parts(folder: Path, scratch: Path, lenient: bool) -> object:
    """Resumes a recording and an encoding."""
    episodes = [load_episode(path) for path in sorted(folder.glob("*.npz"))]
    store = TrainingStore(folder / "store")
    spec = dataclasses.replace(PLANNED, dim=6, tokens_per_frame=4)
    writer = LatentWriter(folder / "latents", spec, store, draw_views(2, 2, 0, 6), "jax")
    for index in writer.pending():
        writer.write(index, np.zeros((2, store.episodes[index]["num_frames"], 4, 6)))
    writer.finish().verify()
    return len(episodes)


PLANNED = dataclasses.replace(
    encoder_spec("mini", ("agentview",)), kind="vjepa2", name="synthetic", weights_hash="", parameters={}
)


def _evaluation(folder: Path, scratch: Path, lenient: bool) -> object:
    write_report(folder / "run/evaluations/00000020/dev", scratch / "report.html")
    return str(compare(folder / "run/evaluations/00000020/dev", folder / "other/run/evaluations/00000020/dev").rows)


def _make_evaluation(folder: Path) -> None:
    lines = [json.dumps({"step": step, "split": "train", "loss": 1.0 / (1 + step)}) for step in range(4)]
    for place in (folder, folder / "other"):
        place.mkdir()
        in_run(place, lines)


def _records(folder: Path, scratch: Path, lenient: bool) -> object:
    write_record(folder, "libero_spatial", RECORD)
    return count_records(folder, {"protocol": {"name": "libero_spatial"}, "recipe_hash": "a"})


RECORD: dict[str, Any] = {"header": {"recipe_hash": "a"}, "finished_at": "2026", "command": "python", "tasks": {}}


def _make_records(folder: Path) -> None:
    for number in range(3):
        write_record(folder, "libero_spatial", {**RECORD, "finished_at": str(number)})


def _make_backbone(folder: Path) -> None:
    weights.save(initialised(lambda rngs: Qwen2_5_VL(tiny_config().backbone, rngs=rngs)), folder)


def _backbone(folder: Path, scratch: Path, lenient: bool) -> object:
    return len(nnx.to_flat_state(nnx.state(weights.load_model(folder))))


def _tokenizer(folder: Path, scratch: Path, lenient: bool) -> object:
    builder = PromptBuilder(folder, [(56, 56)], 8, 80, preset("mini"))
    return builder("pick up the bowl").tokens.tolist()


def _encoder(folder: Path, scratch: Path, lenient: bool) -> object:
    load_encoder(folder)
    return encoder_spec(str(folder), ("agentview",)).dim


def _make_policy(folder: Path) -> None:
    run = save_run(folder.parent / f"{folder.name}-run", "e0", "regression")
    save_policy(run, folder)
    shutil.rmtree(run)


def _policy(folder: Path, scratch: Path, lenient: bool) -> object:
    found = find_policy(folder)
    return found.meta, {name: np.asarray(value).tolist() for name, value in found.parameters().items()}


def _make_run(folder: Path) -> None:
    folder.mkdir()
    save_settings(folder, experiments.to_dict(tiny_experiment("e2", "flow")))
    (folder / "metrics.jsonl").touch()


def _run(folder: Path, scratch: Path, lenient: bool) -> object:
    save_settings(folder, experiments.to_dict(tiny_experiment("e2", "flow")))
    return experiments.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8"))).name


def _make_settings(folder: Path) -> None:
    shutil.copytree(resource_folder("train"), folder)
    shutil.copyfile(resource_folder("eval") / "protocols" / "spatial_dev.toml", folder / "mine.toml")


def _settings(folder: Path, scratch: Path, lenient: bool) -> object:
    """All files of one experiment, its protocol among them."""
    load_protocol(str(folder / "mine.toml"))
    before, experiments.resource_folder = experiments.resource_folder, lambda name: folder  # type: ignore[assignment]
    try:
        for name in ("e2_flow", "prior_e2_mse", "e2aux_l1"):
            experiments.load(name, "smoke" if lenient else "mini")
    finally:
        experiments.resource_folder = before
    return ""


def _layout(folder: Path, scratch: Path, lenient: bool) -> object:
    return convert(str(folder / "data"), scratch / "out", image_size=SIZE, layout=str(folder / "mine.toml")).hash


def _make_layout(folder: Path) -> None:
    write_v21(folder / "data", (9, 7))
    (folder / "mine.toml").write_text(
        'state = "observation.state"\naction = "action"\ncontrol_hz = 20\nfps_label = 10\nrotation = 0\n'
        "grippers = [6]\ngripper_open = [-1]\ngripper_closed = [1]\nposition = [0, 1, 2]\n"
        '[cameras]\nfront = "observation.images.image"\n',
        encoding="utf-8",
    )


FAMILIES: dict[str, Family] = {
    "LeRobot v2.1": Family(lambda folder: write_v21(folder, (9, 7)), _lerobot, weight=6),
    "LeRobot v3.0": Family(lambda folder: write_v30(folder, (9, 7)), _lerobot, weight=6),
    "LeRobot v2.1, MP4": Family(lambda folder: write_v21(folder, (9, 7), video=True), _lerobot),
    "LeRobot v3.0, MP4": Family(lambda folder: write_v30(folder, (9, 7), video=True), _lerobot),
    "LIBERO HDF5": Family(_make_hdf5, _hdf5, weight=6),
    "layout": Family(_make_layout, _layout, weight=2),
    "training store": Family(lambda folder: make_store(folder, image_size=28, lengths=(9, 13)), _store, hashed=True),
    "latent store": Family(_make_latents, _latents, hashed=True),
    "unfinished stores": Family(_make_parts, _parts),
    "evaluation": Family(_make_evaluation, _evaluation, weight=6),
    "benchmark records": Family(_make_records, _records, weight=2),
    "backbone": Family(_make_backbone, _backbone),
    "tokenizer": Family(lambda folder: shutil.copytree(MINI_TOKENIZER, folder), _tokenizer),
    "encoder": Family(lambda folder: shutil.copytree(MINI_FOLDER, folder), _encoder, weight=2),
    "policy": Family(_make_policy, _policy, hashed=True, weight=2),
    "run": Family(_make_run, _run),
    "settings and protocols": Family(_make_settings, _settings),
}
"""By the name in the table."""
