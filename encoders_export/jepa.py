"""Masked latent prediction with Hugging Face's ``VJEPA2Model``: what one training step computes.

The modules and parameters are the reference's; the forward pass here skips hidden tokens in the encoder and
computes rotary tables once in float32, which is exact (a test compares) and several times faster on a CPU.
"""

import copy
import dataclasses
from typing import Any

import torch
import transformers
from torch.nn import functional

from encoders_export.blocks import Rotary, embed, gather, patchify, run_block
from encoders_export.vjepa import preprocess
from wmjax.encoders.vjepa2.config import VJEPA2Config, to_hf_config


@dataclasses.dataclass(frozen=True)
class PredictorConfig:
    """Size of the predictor, which is discarded after pre-training."""

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_mask_tokens: int = 2


def build_model(config: VJEPA2Config, predictor: PredictorConfig, seed: int) -> Any:
    """A freshly initialised ``VJEPA2Model``."""
    torch.manual_seed(seed)
    values = {k: v for k, v in to_hf_config(config).items() if k not in ("architectures", "model_type", "resize")}
    return transformers.VJEPA2Model(
        transformers.VJEPA2Config(
            **values,
            pred_hidden_size=predictor.hidden_size,
            pred_num_attention_heads=predictor.num_heads,
            pred_num_hidden_layers=predictor.num_layers,
            pred_num_mask_tokens=predictor.num_mask_tokens,
            pred_zero_init_mask_tokens=False,
        )
    )


def spread_loss(tokens: torch.Tensor) -> torch.Tensor:
    """Keeps tokens ``[n, dim]`` from collapsing: the variance and covariance terms of VICReg, 25 to 1.

    A feature whose standard deviation over the tokens is below 1 is pushed apart, and features are decorrelated
    (Bardes et al. 2021, arXiv:2105.04906, equations 1 and 3).
    """
    centred = tokens - tokens.mean(0)
    covariance = centred.T @ centred / (len(tokens) - 1)
    variance = functional.relu(1.0 - (covariance.diagonal() + 1e-4).sqrt()).mean()
    apart = covariance - torch.diag(covariance.diagonal())
    return variance + apart.square().sum() / (25 * tokens.shape[1])


class Jepa:
    """Online encoder and predictor, EMA target encoder, and the loss that connects them."""

    def __init__(
        self, config: VJEPA2Config, predictor: PredictorConfig, seed: int, target_layers: int, spread: float = 0.0
    ) -> None:
        """Builds online and target encoder.

        Args:
            config: the encoder.
            predictor: the predictor.
            seed: of all initial weights.
            target_layers: how many of the last blocks the targets average (1: the published V-JEPA). Averaging
                normalised blocks is data2vec's target (Baevski et al. 2022, arXiv:2202.03555): it carries
                information from the first step on, which matters when pre-training lasts minutes.
            spread: weight of :func:`spread_loss` on the context tokens (0: the published V-JEPA). The two together
                are C-JEPA (Mo and Tong 2024, arXiv:2410.19560).

        """
        self.config, self.target_layers, self.spread = config, target_layers, spread
        self.model = build_model(config, predictor, seed)
        self.target = copy.deepcopy(self.model.encoder).requires_grad_(False).eval()
        self.rotary = Rotary(config.head_dim, config)
        self.predictor_rotary = Rotary(predictor.hidden_size // predictor.num_heads, config)

    def encode(self, encoder: Any, patches: torch.Tensor, ids: torch.Tensor | None) -> list[torch.Tensor]:
        """Outputs of all blocks, and last the normalised output, for the tokens ``ids`` (None: all)."""
        x = embed(encoder, patches if ids is None else gather(patches, ids))
        table, outputs = self.rotary(ids), []
        for layer in encoder.layer:
            x = run_block(layer, x, table)
            outputs.append(x)
        return [*outputs, encoder.layernorm(x)]

    @torch.no_grad()
    def targets(self, patches: torch.Tensor) -> torch.Tensor:
        """The targets: the EMA encoder's features of all tokens, layer-normalised, ``[batch, tokens, dim]``."""
        outputs = self.encode(self.target, patches, None)
        size = (self.config.hidden_size,)
        if self.target_layers == 1:
            return functional.layer_norm(outputs[-1].float(), size)
        normed = [functional.layer_norm(x.float(), size) for x in outputs[-1 - self.target_layers : -1]]
        return functional.layer_norm(torch.stack(normed).mean(0), size)

    def predict(self, context: torch.Tensor, visible: torch.Tensor, hidden: torch.Tensor, kind: int) -> torch.Tensor:
        """The predictor's guess ``[batch, hidden, dim]`` from the encoded visible tokens."""
        predictor = self.model.predictor
        embedded = predictor.embeddings.predictor_embeddings(context)
        asked = predictor.embeddings.mask_tokens[kind].expand(len(context), hidden.shape[1], -1)
        x = torch.cat([embedded, asked.to(embedded.dtype)], dim=1).float()
        table = self.predictor_rotary(torch.cat([visible, hidden], dim=1))
        for layer in predictor.layer:
            x = run_block(layer, x, table)
        return predictor.proj(predictor.layernorm(x[:, visible.shape[1] :]))

    def loss(self, frames: torch.Tensor, masks: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """Smooth L1 between predictions and targets at hidden tokens, averaged over the kinds of mask.

        Args:
            frames: uint8 ``[batch, time, height, width, 3]``.
            masks: (visible ids, hidden ids) per kind.

        """
        patches = patchify(preprocess(frames, self.config), self.config)
        targets = self.targets(patches)
        losses = []
        for kind, (visible, hidden) in enumerate(masks):
            context = self.encode(self.model.encoder, patches, visible)[-1]
            guess = self.predict(context, visible, hidden, kind)
            losses.append(functional.smooth_l1_loss(guess.float(), gather(targets, hidden)))
            if self.spread:
                losses[-1] = losses[-1] + self.spread * spread_loss(context.float().flatten(0, 1))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Moves the target encoder towards the online one."""
        mine, theirs = list(self.target.parameters()), list(self.model.encoder.parameters())
        torch._foreach_lerp_(mine, theirs, 1.0 - momentum)
