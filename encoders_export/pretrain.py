"""Pre-trains the mini V-JEPA 2 on the frames of training stores: masked latent prediction, EMA target.

    python -m encoders_export.pretrain --out FOLDER [--minutes 38] [--seed 0] [--suites libero_object ...]
    python -m encoders_export.pretrain --data STORE [STORE ...] --out FOLDER

Without ``--data`` it records its own frames first, random motion in the scenes of :data:`SUITES`
or of other suites, into the cache, where they are found again.
Killed and rerun, it continues from its last checkpoint (``FOLDER/checkpoint``). What comes out is an encoder
folder (float16 ``model.safetensors``, ``config.json``) for ``--model FOLDER`` of either export command.
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from encoders_export.jepa import Jepa, PredictorConfig
from encoders_export.masks import LONG, SHORT, draw_masks
from encoders_export.vjepa import pool_last_tubelet, preprocess
from wmjax.analysis.ridge import token_rank
from wmjax.core import logs, signals
from wmjax.core.command import number, run_command, whole_number
from wmjax.core.errors import UserError
from wmjax.core.files import atomic_path, write_json
from wmjax.core.location import local, location
from wmjax.data.shift import shift_images
from wmjax.data.store import TrainingStore
from wmjax.data.windows import clip_indices
from wmjax.encoders.vjepa2.config import VJEPA2Config, preset, to_hf_config
from wmjax.recording.random_motion import SUITES, cached_scenes

CLIP_SHIFT = 6
"""Largest shift of a pre-training clip, pixels; wider than a policy's views, because nothing here must be placed."""


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the outcome besides the frames and the time."""

    seed: int = 0
    minutes: float = 38.0
    steps: int = 0
    """Stop after this many steps instead of after ``minutes`` (0: by time)."""
    batch: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.04
    momentum: tuple[float, float] = (0.98, 0.999)
    target_layers: int = 6
    spread: float = 0.5
    camera: str = "agentview"
    predictor: PredictorConfig = dataclasses.field(default_factory=PredictorConfig)


class Clips:
    """Random clips of the frames of several stores, each shifted as a whole.

    Attributes:
        stores: the hash of every store, which identifies the frames.
        scenes: where they are from: the tasks of every suite.

    """

    def __init__(self, stores: Sequence[TrainingStore], camera: str, config: VJEPA2Config) -> None:
        self.length, frames, starts, offset = config.frames_per_clip, [], [], 0
        for store in stores:
            if store.spec.image_size != config.image_size or camera not in store.spec.cameras:
                raise UserError(
                    f"{store.folder}: pre-training needs camera {camera!r} at {config.image_size} px, the store has "
                    f"{', '.join(store.spec.cameras)} at {store.spec.image_size}; record scenes at that size"
                )
            frames.append(np.asarray(store.frames[:, store.spec.cameras.index(camera)]))
            first = np.array([episode["frame_start"] for episode in store.episodes])
            starts.append(first[store.frame_episode] + offset)
            offset += len(store.frame_step)
        self.frames, self.starts = np.concatenate(frames), np.concatenate(starts)
        self.stores = [store.hash for store in stores]
        tasks = sorted({(task.suite, task.task_id) for store in stores for task in store.tasks})
        self.scenes = {suite: [number for other, number in tasks if other == suite] for suite, _ in tasks}

    def draw(self, rng: np.random.Generator, count: int, max_shift: int = CLIP_SHIFT) -> torch.Tensor:
        """uint8 ``[count, time, height, width, 3]``."""
        ends = rng.integers(0, len(self.frames), count)
        clips = self.frames[clip_indices(ends, self.starts[ends], self.length)]
        dy, dx = rng.integers(-max_shift, max_shift + 1, (2, count))
        return torch.from_numpy(shift_images(clips, dy, dx))


class Pretrainer:
    """The state of a run: models, optimizer, step and time used, saved as safetensors."""

    def __init__(self, clips: Clips, out: Path, settings: PretrainConfig, config: VJEPA2Config) -> None:
        self.clips, self.out, self.settings, self.config = clips, out, settings, config
        self.jepa = Jepa(config, settings.predictor, settings.seed, settings.target_layers, settings.spread)
        named = dict(self.jepa.model.named_parameters())
        decayed = [p for p in named.values() if p.ndim > 1]
        plain = [p for p in named.values() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))
        self.names = {p: name for name, p in named.items()}
        self.step, self.seconds = 0, 0.0
        self.probe = clips.draw(np.random.default_rng([settings.seed, 0]), 256)
        self.bfloat16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        if self.settings.steps:
            return min(1.0, self.step / self.settings.steps)
        return min(1.0, self.seconds / (60 * self.settings.minutes))

    def train_step(self) -> float:
        """One update; its randomness depends on seed and step only. Returns the loss."""
        settings = self.settings
        rng = np.random.default_rng([settings.seed, 1, self.step])
        frames = self.clips.draw(rng, settings.batch)
        grid = (self.config.frames_per_clip // self.config.tubelet_size, self.config.grid_size, self.config.grid_size)
        masks = [draw_masks(spec, rng, settings.batch, grid) for spec in (SHORT, LONG)]
        tensors = [tuple(torch.from_numpy(np.ascontiguousarray(ids)) for ids in pair) for pair in masks]
        rate = settings.learning_rate * min(1.0, (self.step + 1) / settings.warmup_steps)
        rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.progress))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            loss = self.jepa.loss(frames, [(visible, hidden) for visible, hidden in tensors])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.jepa.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        low, high = settings.momentum
        self.jepa.update_target(high - (high - low) * 0.5 * (1 + math.cos(math.pi * self.progress)))
        self.step += 1
        return float(loss.detach())

    @torch.inference_mode()
    def health(self) -> dict[str, float]:
        """Spread and effective rank of the target encoder's pooled latents on fixed clips: collapse shows here."""
        pixels = preprocess(self.probe, self.config)
        tokens = self.jepa.target(pixels).last_hidden_state
        pooled = pool_last_tubelet(tokens, self.config.grid_size**2, 4)
        return {"std_over_clips": float(pooled.std(0).mean()), "effective_rank": token_rank(pooled.numpy())}

    def save(self) -> None:
        """Writes the checkpoint atomically."""
        tensors = {f"model.{k}": v for k, v in self.jepa.model.state_dict().items()}
        tensors |= {f"target.{k}": v for k, v in self.jepa.target.state_dict().items()}
        for parameter, state in self.optimizer.state.items():
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"{key}.{self.names[parameter]}"] = state[key]
        meta = {"step": str(self.step), "seconds": str(self.seconds), "settings": self._identity()}
        with atomic_path(self.out / "checkpoint" / "state.safetensors") as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata=meta)

    def _identity(self) -> str:
        """What must be the same to continue a run (the time budget may change)."""
        values = dataclasses.asdict(self.settings) | {"stores": self.clips.stores}
        return json.dumps({k: v for k, v in values.items() if k not in ("minutes", "steps")}, sort_keys=True)

    def resume(self) -> bool:
        """Continues from the checkpoint, if there is one.

        Raises:
            UserError: it was made with other settings or from other frames.

        """
        path = self.out / "checkpoint" / "state.safetensors"
        if not path.exists():
            return False
        meta = read_metadata(path)
        if meta["settings"] != self._identity():
            raise UserError(
                f"{path}: made with other settings or frames ({meta['settings']}); choose a new folder or delete it"
            )
        tensors = load_file(path)
        self.jepa.model.load_state_dict(_prefixed(tensors, "model."))
        self.jepa.target.load_state_dict(_prefixed(tensors, "target."))
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        for parameter, name in self.names.items():
            state = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors}
            if state:
                self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step)), **state}
        return True

    def export(self) -> None:
        """Writes the target encoder as an encoder folder: float16, which both backends read as float32."""
        tensors = {f"encoder.{k}": v.half().contiguous() for k, v in self.jepa.target.state_dict().items()}
        with atomic_path(self.out / "model.safetensors") as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        revision = f"pretrained-seed{self.settings.seed}-step{self.step}"
        extra = {"wmjax_revision": revision, "wmjax_scenes": self.clips.scenes, "wmjax_stores": self.clips.stores}
        write_json(self.out / "config.json", {**to_hf_config(self.config), **extra})

    def run(self, log_every: int = 25, save_every: int = 50) -> None:
        """Trains to the end of the budget, logging to ``metrics.jsonl``, and exports."""
        started = time.monotonic() - self.seconds
        losses: list[float] = []
        with signals.postponed():
            while self.progress < 1.0:
                losses.append(self.train_step())
                self.seconds = time.monotonic() - started
                if not math.isfinite(losses[-1]):
                    raise UserError(
                        f"{self.out}: the loss is {losses[-1]} at step {self.step}; lower the learning rate"
                    )
                if self.step % log_every == 0:
                    row: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds, 1)}
                    row |= {"loss": float(np.mean(losses)), **self.health()}
                    losses = []
                    with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)
                if self.step % save_every == 0 or signals.requested():
                    self.save()
                    signals.stop_if_requested(f"step {self.step} is saved")
            self.save()
        self.export()


def _prefixed(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as handle:
        return dict(handle.metadata())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m encoders_export.pretrain", description="Pre-train the mini V-JEPA 2."
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--data", type=location, nargs="+", help="training stores, e.g. of wmjax.record --random-motion"
    )
    source.add_argument(
        "--suites", nargs="+", default=list(SUITES), help="without --data, record scenes of these suites"
    )
    parser.add_argument("--out", type=local, required=True, help="encoder folder to write")
    parser.add_argument("--minutes", type=number("minutes", 0.01), default=PretrainConfig.minutes)
    parser.add_argument("--steps", type=whole_number("steps", 0), default=0, help="stop after this many steps instead")
    parser.add_argument("--seed", type=whole_number("seed", 0), default=0)
    parser.add_argument("--batch", type=whole_number("batch", 1), default=PretrainConfig.batch)
    layers, spread = whole_number("target-layers", 1), number("spread", 0)
    parser.add_argument("--target-layers", type=layers, default=PretrainConfig.target_layers)
    parser.add_argument(
        "--spread", type=spread, default=PretrainConfig.spread, help="weight of the loss against collapse"
    )
    parser.add_argument(
        "--threads", type=whole_number("threads", 0), default=0, help="CPU threads (0: PyTorch decides)"
    )
    return run_command(lambda: _run(parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    logs.set_up()
    settings = PretrainConfig(
        seed=options.seed,
        minutes=options.minutes,
        steps=options.steps,
        batch=options.batch,
        target_layers=options.target_layers,
        spread=options.spread,
    )
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    stores = [TrainingStore(folder) for folder in options.data] if options.data else cached_scenes(options.suites)
    trainer = Pretrainer(Clips(stores, settings.camera, preset("mini")), options.out, settings, preset("mini"))
    resumed = trainer.resume()
    print(f"{len(trainer.clips.frames)} frames of {', '.join(trainer.clips.scenes)}, bfloat16 {trainer.bfloat16}, "
          f"{'resumed at' if resumed else 'from'} step {trainer.step}", flush=True)  # fmt: skip
    trainer.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
