"""The gradients of the action loss and of the weighted world loss, for each part of the network.

Where both reach a part they share its updates. The ratio of their norms is the effect of ``memory.world_loss``, and
their cosine tells whether they point the same way. In ``e2aux`` that part is the VLM, in ``e2`` the Prophet. The
gradients are those of the averaged parameters on images without augmentation; with few samples, noise makes norms
larger and brings cosines to zero.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int32

from wmjax.core.rng import named_key
from wmjax.core.text_table import text_table
from wmjax.data.loader import Batch
from wmjax.data.statistics import normalise_action
from wmjax.models.parameters import split_model, to_named
from wmjax.models.vla import VLA
from wmjax.trainer.config import Inputs
from wmjax.trainer.step import model_input

PARTS = {
    "backbone": "VLM",
    "state_in": "state and action queries",
    "pending_in": "state and action queries",
    "queries": "state and action queries",
    "world/prophet": "Prophet",
    "world/injection": "gated cross-attention",
    "head": "action head",
}
"""Beginnings of parameter names, and what the parts are called."""


@dataclasses.dataclass(frozen=True)
class GradientSection:
    """Gradients of the mean losses over some samples of the training split, without dropout, noise or any clip.

    Attributes:
        norm: of each part that trains: norms of the gradients of the action loss and of the weighted world loss.
        cosine: between the two; NaN where one of them is zero.
        weight: ``memory.world_loss``.
        samples: that the losses are averaged over.

    """

    norm: dict[str, tuple[float, float]]
    cosine: dict[str, float]
    weight: float
    samples: int

    def table(self) -> str:
        """A plain-text report."""
        rows = [
            (part, f"{action:.3g}", f"{world:.3g}", world / action if action else float("nan"), self.cosine[part])
            for part, (action, world) in self.norm.items()
        ]
        head = ("gradient norm", "action loss", f"{self.weight:g} x world loss", "ratio", "cosine")
        return text_table(head, rows) + f"\n{self.samples} samples of the training split"


def gradient_section(model: VLA, inputs: Inputs, stream: Iterable[Batch], trainable: Any, seed: int) -> GradientSection:
    """Differentiates both losses.

    Args:
        model: whose parameters are meant.
        inputs: specs and prompts of the run.
        stream: batches of the training split.
        trainable: NNX filter of what trains.
        seed: of the flow's noise.

    """
    graph, params, frozen = split_model(model, trainable)
    prompts, weight = jax.tree.map(jnp.asarray, inputs.prompts), model.config.memory.world_loss

    @jax.jit
    def gradients(params: nnx.State, frozen: nnx.State, batch: dict[str, Array], index: Int32[Array, ""]) -> nnx.State:
        """Leaves ``[2, ...]``: of the action loss and of the weighted world loss, times the batch's samples."""
        real = batch["sample_mask"][:, None]
        batch = {**batch, **{name: batch[name] & real for name in ("action_mask", "future_mask") if name in batch}}
        network_inputs = model_input(batch, prompts, inputs.action_spec, inputs.encoder_spec)
        action = normalise_action(batch["action"], inputs.action_spec, batch["state"])
        key = named_key(seed, "diagnose gradients", index)

        def losses(params: nnx.State) -> tuple[Array, Array]:
            merged: VLA = nnx.merge(graph, params, frozen)
            _, metrics = merged.loss(network_inputs, action, batch["action_mask"], key, train=False)
            return metrics["action/loss"], weight * metrics.get("world/loss", jnp.zeros(()))

        pull, one, zero = jax.vjp(losses, params)[1], jnp.ones(()), jnp.zeros(())
        return jax.tree.map(lambda *pair: jnp.sum(real) * jnp.stack(pair), *pull((one, zero)), *pull((zero, one)))

    total: Any = None
    samples = 0
    for number, batch in enumerate(stream):
        found = gradients(params, frozen, batch, np.int32(number))
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        samples += int(batch["sample_mask"].sum())
    return summarise({name: np.asarray(leaf) / samples for name, leaf in to_named(total).items()}, weight, samples)


def summarise(gradients: dict[str, np.ndarray], weight: float, samples: int) -> GradientSection:
    """Norms and cosines from named gradients ``[2, ...]``."""
    products: dict[str, np.ndarray] = {}
    for name, leaf in gradients.items():
        part = next(part for start, part in PARTS.items() if name.startswith(start))
        both = leaf.reshape(2, -1).astype(np.float64)
        products[part] = products.get(part, np.zeros((2, 2))) + both @ both.T
    norm = {part: np.sqrt(np.diag(p)) for part, p in products.items()}
    return GradientSection(
        norm={part: (float(a), float(w)) for part, (a, w) in norm.items()},
        cosine={
            part: float(p[0, 1] / norm[part].prod()) if norm[part].all() else np.nan for part, p in products.items()
        },
        weight=weight,
        samples=samples,
    )
