"""Hidden states of Qwen2.5-VL by PyTorch and ``transformers``, for comparisons with wmjax's.

python -m encoders_export.qwen WEIGHTS INPUTS.npz OUT.npz

INPUTS holds the arguments of the model by name (:mod:`wmjax.models.backbones.qwen2_5_vl.reference`). OUT gets ``full``,
computed in float32, and ``half``, in bfloat16 from the same weights.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float32

from wmjax.core.files import read_npz, write_npz
from wmjax.models.backbones.qwen2_5_vl import weights
from wmjax.models.backbones.qwen2_5_vl.config import load_hf_config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load(folder: Path) -> Any:
    """A checkpoint's model in bfloat16, on the device; a small vocabulary needs other special ids than the published.

    Raises:
        UserError: no checkpoint there.

    """
    config = load_hf_config(folder)
    others: dict[str, Any] = {"video_token_id": config.image_token - 1, "bos_token_id": 0, "eos_token_id": 0}
    hf_config = transformers.Qwen2_5_VLConfig(**weights.to_hf_config(config), **others)
    model: Any = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, config=hf_config, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    return model.to(DEVICE).eval()


def hidden_states(
    model: Any, inputs: dict[str, torch.Tensor]
) -> tuple[Float32[np.ndarray, "batch length hidden"], Float32[np.ndarray, "batch length hidden"]]:
    """Hidden states in float32 (no TF32) and in bfloat16, of the same weights."""
    found = []
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for dtype in (torch.float32, torch.bfloat16):
        for parameter in model.parameters():  # not the buffers: those of the positions are float32 in both
            parameter.data = parameter.data.to(dtype)
        cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        with torch.no_grad():
            found.append(model.model(**cast, use_cache=False).last_hidden_state.float().cpu().numpy())
    return found[0], found[1]


def main() -> None:
    """The command."""
    folder, given, out = (Path(word) for word in sys.argv[1:])
    inputs = {name: torch.from_numpy(array).to(DEVICE) for name, array in read_npz(given).items()}
    full, half = hidden_states(load(folder), inputs)
    write_npz(out, {"full": full, "half": half})


if __name__ == "__main__":
    main()
