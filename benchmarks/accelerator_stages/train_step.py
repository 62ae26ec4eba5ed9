"""wmjax's own training step of ``e2_flow`` at 3b: its settings first, then prototypes of faster ones.

Samples per second are of a batch that is on the device, and for the first variant also of one that comes from the
host with every step. Model FLOPs are counted from the step without recomputation (``wmjax/scaling/flops.py``). What a
variant's patches change is in ``variants.py``.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import qwen_3b, recipes
from benchmarks.accelerator_stages.arrays import heaviest
from benchmarks.accelerator_stages.session import Session
from benchmarks.accelerator_stages.variants import patched
from wmjax.experiment.config import Experiment, load
from wmjax.models.backbones.qwen2_5_vl.prompt import Prompt
from wmjax.models.parameters import count
from wmjax.scaling.arrays import compiled, filled, peak_gb, random_batch, throughput
from wmjax.scaling.clock import clocked, timed
from wmjax.scaling.flops import flops
from wmjax.scaling.shapes import batch_shapes, image_size
from wmjax.trainer.step import TrainState

RECIPE = "e2_flow"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One program; ``patches`` are names of ``variants.VARIANTS``, ``tight`` the prompt length that the data need."""

    batch: int
    remat: str = "full"
    attention: str = "xla"
    tight: bool = False
    patches: tuple[str, ...] = ()


def variants(session: Session) -> list[Variant]:
    """In order of value; cuDNN's attention on a GPU only. A rehearsal takes the plainest and the most patched."""
    small, base, large, largest = session.sizes.step_batches
    gpu = jax.default_backend() == "gpu"
    fused = [Variant(base, "dots_no_batch", "cudnn")] if gpu else []
    every = ("one_product", "cached_vision")
    if session.results.tiny:
        return [Variant(base), Variant(base, "names", tight=True, patches=every)]
    return [
        Variant(base),
        Variant(base, "dots_no_batch"),
        *fused,
        Variant(base, "names"),
        Variant(base, "names", patches=("one_product",)),
        Variant(base, "names", attention="cudnn" if gpu else "xla", tight=True, patches=every),
        Variant(large, "names"),
        Variant(small),
        Variant(base, patches=("cached_vision",)),
        Variant(base, tight=True),
        Variant(largest),
    ]


def run(session: Session) -> None:
    """The stage."""
    stage = TrainStep(session)
    for index, variant in enumerate(variants(session)):
        labels = {k: v for k, v in dataclasses.asdict(variant).items() if v}
        session.attempt(functools.partial(stage.measure, variant), needs=25, **labels)
        if index == 0:
            session.attempt(stage.kernels, needs=20, what="kernels", **labels)
            session.attempt(stage.from_host, needs=20, what="batch from the host", **labels)
    stage.release()
    session.attempt(stage.initialise, needs=60, what="the model's own initialisation")


class TrainStep:
    """Parameters on the device, which all variants share: they differ only in the program."""

    def __init__(self, session: Session) -> None:
        self.session = session
        system = recipes.build(self.experiment(Variant(session.sizes.step_batches[1])))
        self.shapes, frozen = jax.eval_shape(system.initialise)
        (self.state, self.frozen), seconds = clocked(lambda: jax.block_until_ready((self.fresh(), filled(frozen))))
        sizes = {"trained": count(self.state.params), "frozen": count(self.frozen)}
        session.record(what="parameters", **sizes, seconds=seconds, peak_gb=peak_gb())
        self.counted: dict[tuple[bool, bool], float] = {}
        self.last: tuple[Any, dict[str, np.ndarray], Prompt] | None = None

    def experiment(self, variant: Variant, remat: str | None = None) -> Experiment:
        """The recipe with the variant's settings and random weights."""
        backbone = {"remat": remat or variant.remat, "attention": variant.attention}
        train = {"batch_size": variant.batch, "backbone_weights": "random"}
        return load(RECIPE, self.session.sizes.scale, None, {"model": {"backbone": backbone}, "train": train})

    def fresh(self) -> TrainState:
        """Random parameters, the average equal to them, and empty moments."""
        params = filled(self.shapes.params)
        rest = (self.shapes.step, self.shapes.opt)
        step, opt = jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), rest))()
        return TrainState(step, params, jax.tree.map(jnp.copy, params), opt)

    def prompt(self, experiment: Experiment, variant: Variant) -> Prompt:
        """One random prompt; the last tokens' embeddings are those of state and action queries anyway."""
        length = self.session.sizes.tight_tokens if variant.tight else experiment.prompt.length
        given = qwen_3b.make_inputs(experiment.model.backbone, 1, image_size(experiment), length)
        return Prompt(given["tokens"], given["mask"], given["positions"])

    def flops(self, variant: Variant, prompt: Prompt) -> float:
        """Of one sample, forward and backward, without recomputation."""
        cached = "cached_vision" in variant.patches
        if (variant.tight, cached) not in self.counted:
            plain = dataclasses.replace(variant, batch=min(self.session.sizes.step_batches), attention="xla")
            experiment = self.experiment(plain, remat="none")
            with patched(("cached_vision",) if cached else ()):
                step = recipes.build(experiment).step
                batch = batch_shapes(experiment, plain.batch)
                total = flops(step, *_shapes((self.state, self.frozen)), batch, _shapes(prompt))
            self.counted[variant.tight, cached] = total / plain.batch
        return self.counted[variant.tight, cached]

    def measure(self, variant: Variant) -> dict[str, Any]:
        """Compiles and times the step."""
        self._recover()
        experiment = self.experiment(variant)
        prompt = jax.device_put(self.prompt(experiment, variant))
        batch = random_batch(experiment, variant.batch)
        placed, copying = clocked(lambda: jax.block_until_ready(jax.device_put(batch)))
        with patched(variant.patches):
            step = jax.jit(recipes.build(experiment).step, donate_argnums=0)
            program, needs = compiled(step, self.state, self.frozen, placed, prompt)
        self.last = (program, batch, prompt)
        seconds, dispatch = timed(lambda: self._step(placed), jax.block_until_ready, self.session.sizes.rounds)
        found = throughput(variant.batch, seconds, self.flops(variant, prompt))
        megabytes = sum(column.nbytes for column in batch.values()) / 1e6
        copies = {"batch_mb": megabytes, "host_to_device_ms": 1e3 * copying}
        return found | {"dispatch_ms": 1e3 * dispatch} | copies | needs | {"peak_gb": peak_gb()}

    def kernels(self) -> dict[str, Any]:
        """What the last program spends its time on: one step under the profiler."""
        assert self.last is not None
        folder, placed = self.session.scratch / "trace", jax.device_put(self.last[1])
        with jax.profiler.trace(str(folder)):
            jax.block_until_ready(self._step(placed))
        return {"name_ms_share": heaviest(folder)}

    def from_host(self) -> dict[str, Any]:
        """Seconds per step of the last program if every step gets its batch from host memory."""
        assert self.last is not None
        batch = self.last[1]
        seconds, _ = timed(lambda: self._step(jax.device_put(batch)), jax.block_until_ready, rounds=4, warm_up=1)
        return {"s_per_step": seconds}

    def _step(self, batch: Any) -> Any:
        assert self.last is not None
        program, _, prompt = self.last
        self.state, metrics = program(self.state, self.frozen, batch, prompt)
        return metrics

    def _recover(self) -> None:
        """A step that failed may have taken the state with it."""
        self.last = None
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state)):
            self.state = self.fresh()

    def release(self) -> None:
        """Frees the device."""
        self.last = None
        for leaf in jax.tree.leaves((self.state, self.frozen)):
            leaf.delete()

    def initialise(self) -> dict[str, Any]:
        """Initial values as training draws them: seconds to compile and to run."""
        system = recipes.build(self.experiment(Variant(self.session.sizes.step_batches[1])))
        program, needs = compiled(jax.jit(system.initialise))
        _, seconds = clocked(lambda: jax.block_until_ready(program()))
        return needs | {"run_s": seconds, "peak_gb": peak_gb()}


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
