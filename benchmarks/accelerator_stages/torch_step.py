"""The VLM's LoRA step by Hugging Face + PEFT: bfloat16 base, float32 adapters, autocast, fused AdamW.

The loss is the mean of hidden states times a random probe, as in ``vlm_step``, which times the same in wmjax. Before
that, the hidden states of two prompts are kept for the comparison there. The reference gets patches and positions
ready made. Nothing is compiled (``torch.compile``).
"""

import functools
from typing import Any

import numpy as np
import peft
import torch
import transformers

from benchmarks import qwen_3b
from benchmarks.accelerator_stages.arrays import qwen_config
from benchmarks.accelerator_stages.checkpoints import qwen_folder, reference_file
from benchmarks.accelerator_stages.session import Session
from encoders_export.qwen import DEVICE, hidden_states, load
from wmjax.models.backbones.qwen2_5_vl.config import Qwen2_5_VLConfig
from wmjax.models.backbones.qwen2_5_vl.reference import reference_arrays
from wmjax.scaling.clock import clocked, timed

ADAPTED = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def run(session: Session) -> None:
    """The stage."""
    config = qwen_config(session.sizes)
    model, seconds = clocked(lambda: load(qwen_folder(session)))
    session.record(what="load", seconds=seconds, torch=torch.__version__, transformers=transformers.__version__)
    session.attempt(functools.partial(save_hidden_states, session, config, model), needs=20, what="hidden states")
    step = TorchStep(session, config, model)
    for mode in ("checkpointing", "eager"):
        if session.attempt(functools.partial(step.switch, mode), needs=15, what="switch", mode=mode) is None:
            continue
        for batch in session.sizes.vlm_batches:
            session.attempt(functools.partial(step.measure, batch), needs=12, mode=mode, batch=batch)


def reference_inputs(session: Session, config: Qwen2_5_VLConfig, batch: int) -> dict[str, torch.Tensor]:
    """The prompts of ``qwen_3b.make_inputs`` as the reference takes them, on the device."""
    given = qwen_3b.make_inputs(config, batch, session.sizes.side, session.sizes.tokens)
    arrays = reference_arrays(config, given["tokens"], given["mask"], given["positions"], given["images"])
    return {name: torch.from_numpy(array).to(DEVICE) for name, array in arrays.items()}


def save_hidden_states(session: Session, config: Qwen2_5_VLConfig, model: Any) -> dict[str, Any]:
    """Saves the hidden states of two prompts in float32 (no TF32) and in bfloat16, of the same weights."""
    full, half = hidden_states(model, reference_inputs(session, config, 2))
    np.savez(reference_file(session), full=full, half=half)
    return {"bfloat16_error": float(np.linalg.norm(half - full) / np.linalg.norm(full))}


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
