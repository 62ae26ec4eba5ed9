"""The VLM's LoRA step by Hugging Face + PEFT: bfloat16 base, float32 adapters, autocast, fused AdamW.

The loss is the mean of hidden states times a random probe, as in ``vlm_step``, which times the same in wmjax. Before
that, the hidden states of two prompts are kept for the comparison there. The reference gets patches and positions
ready made. Nothing is compiled (``torch.compile``).
"""

import functools
from typing import Any

import jax
import numpy as np
import peft
import torch
import transformers

from benchmarks import qwen_3b
from benchmarks.accelerator_stages.arrays import qwen_config
from benchmarks.accelerator_stages.checkpoints import qwen_folder, reference_file
from benchmarks.accelerator_stages.session import Session, clocked, timed
from wmjax.models.backbones.qwen2_5_vl import weights
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig
from wmjax.models.backbones.qwen2_5_vl.image import patchify

ADAPTED = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run(session: Session) -> None:
    """The stage."""
    config = qwen_config(session.sizes)
    model, seconds = clocked(lambda: load(session, config))
    session.record(what="load", seconds=seconds, torch=torch.__version__, transformers=transformers.__version__)
    session.attempt(functools.partial(keep_hidden_states, session, config, model), needs=20, what="hidden states")
    step = TorchStep(session, config, model)
    for mode in ("checkpointing", "eager"):
        if session.attempt(functools.partial(step.switch, mode), needs=15, what="switch", mode=mode) is None:
            continue
        for batch in session.sizes.vlm_batches:
            session.attempt(functools.partial(step.measure, batch), needs=12, mode=mode, batch=batch)


def load(session: Session, config: Qwen2_5_VLConfig) -> Any:
    """The checkpoint's model; a small vocabulary needs other special ids than the published ones."""
    values = weights.to_hf_config(config) | {"video_token_id": config.image_token - 1, "bos_token_id": 0}
    hf_config = transformers.Qwen2_5_VLConfig(**values, eos_token_id=0)
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        qwen_folder(session), config=hf_config, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    return model.to(DEVICE).eval()


def reference_inputs(session: Session, config: Qwen2_5_VLConfig, batch: int) -> dict[str, torch.Tensor]:
    """The prompts of ``qwen_3b.make_inputs`` as the reference takes them, on the device."""
    given = qwen_3b.make_inputs(config, batch, session.sizes.side, session.sizes.tokens)
    images = given["images"].reshape(-1, *given["images"].shape[2:])
    side = images.shape[1] // config.vision.patch
    arrays = {
        "input_ids": given["tokens"].astype(np.int64),
        "attention_mask": given["mask"].astype(np.int64),
        "position_ids": np.ascontiguousarray(given["positions"].transpose(1, 0, 2)),
        "pixel_values": patches(images, config),
        "image_grid_thw": np.array([[1, side, side]] * len(images)),
    }
    return {name: torch.from_numpy(array).to(DEVICE) for name, array in arrays.items()}


def patches(images: np.ndarray, config: Qwen2_5_VLConfig) -> np.ndarray:
    """Pixels in the order of the reference's processor, a still image repeated in time."""
    vision = config.vision
    cut = np.asarray(jax.jit(functools.partial(patchify, patch=vision.patch, merge=vision.merge))(images))
    cut = cut.reshape(-1, vision.channels, 1, vision.patch**2).repeat(vision.temporal_patch, 2)
    return np.ascontiguousarray(cut.reshape(-1, vision.patch_inputs))


def keep_hidden_states(session: Session, config: Qwen2_5_VLConfig, model: Any) -> dict[str, Any]:
    """Saves the hidden states of two prompts in float32 (no TF32) and in bfloat16, of the same weights."""
    given = reference_inputs(session, config, 2)
    found = {}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name, dtype in (("full", torch.float32), ("half", torch.bfloat16)):
        for parameter in model.parameters():  # not the buffers: those of the positions are float32 in both
            parameter.data = parameter.data.to(dtype)
        cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
        with torch.no_grad():
            found[name] = model.model(**cast, use_cache=False).last_hidden_state.float().cpu().numpy()
    np.savez(reference_file(session), **found)
    error = np.linalg.norm(found["half"] - found["full"]) / np.linalg.norm(found["full"])
    return {"bfloat16_error": float(error)}


class TorchStep:
    """A PEFT model and its optimizer."""

    def __init__(self, session: Session, config: Qwen2_5_VLConfig, model: Any) -> None:
        self.session, self.config = session, config
        lora = peft.LoraConfig(r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=ADAPTED)
        self.model = peft.get_peft_model(model, lora)
        self.inner = self.model.base_model.model.model
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=DEVICE == "cuda")
        kinds = sorted({str(p.dtype) for p in trained})
        session.record(what="adapters", trained=sum(p.numel() for p in trained), dtypes=kinds)

    def switch(self, mode: str) -> dict[str, Any]:
        """To ``checkpointing`` (activations of a layer are recomputed) or plain ``eager``."""
        self.model.train()
        if mode == "checkpointing":
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.enable_input_require_grads()
        else:
            self.model.gradient_checkpointing_disable()
        return {}

    def measure(self, batch: int) -> dict[str, Any]:
        """Times the step; memory is freed after one that failed."""
        given = reference_inputs(self.session, self.config, batch)
        given["pixel_values"] = given["pixel_values"].bfloat16()
        shape = (*given["input_ids"].shape, self.config.text.hidden)
        probe = torch.randn(*shape, device=DEVICE)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        call = functools.partial(self._step, given, probe)
        _, first = clocked(lambda: call().item())
        seconds, dispatch = timed(call, lambda loss: loss.item(), self.session.sizes.rounds)
        peak = torch.cuda.max_memory_allocated() / 1e9 if DEVICE == "cuda" else None
        times = {"s_per_step": seconds, "samples_per_s": batch / seconds, "first_s": first}
        return times | {"python_ms": 1e3 * dispatch, "peak_gb": peak}

    def _step(self, given: dict[str, torch.Tensor], probe: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, torch.bfloat16):
            hidden = self.inner(**given, use_cache=False).last_hidden_state
        loss = (hidden.float() * probe).mean()
        loss.backward()
        self.optimizer.step()
        return loss
