"""The fastest of a few sensible meshes, remats and batches on a topology, or how far all are from fitting.

At 3B a program takes minutes to compile, so what cannot be the fastest is not tried: parameters that are split where
whole ones fit, more recomputation where less fits, and less recomputation that would save next to no FLOPs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from wmjax.core.errors import UserError
from wmjax.core.settings import merge
from wmjax.experiment.config import load
from wmjax.scaling.chips import Topology, parse_topology
from wmjax.scaling.request import Request

GAIN = 1.03
"""A larger batch is taken if its samples/s are at least so many times those of the smaller one; activations are kept if
that saves at least such a share of the FLOPs."""
DOUBLINGS = 3

Measure = Callable[[Request], dict[str, Any]]


class Candidate(NamedTuple):
    """Settings to try: devices of the axis ``fsdp`` (the base is then split over it too), remat (None if the backbone
    has no such setting) and samples per step over all devices.
    """

    fsdp: int
    remat: str | None
    batch: int

    def settings(self) -> dict[str, Any]:
        """The candidate as nested settings."""
        mesh = {"data": -1, "fsdp": self.fsdp, "tensor": 1, "shard_frozen": self.fsdp > 1}
        model = {} if self.remat is None else {"model": {"backbone": {"remat": self.remat}}}
        return {"mesh": mesh, "train": {"batch_size": self.batch}} | model

    def options(self) -> str:
        """The candidate as options of the train command."""
        mesh = f"--mesh.fsdp {self.fsdp}" + (" --mesh.shard_frozen true" if self.fsdp > 1 else "")
        remat = "" if self.remat is None else f" --model.backbone.remat {self.remat}"
        return f"{mesh}{remat} --train.batch_size {self.batch}"


def recommend(request: Request, measure: Measure, report: Callable[[str], None]) -> dict[str, Any]:
    """The fastest candidate that fits, and all that were tried.

    At the given batch the first mesh is sought that can keep the outputs of linear layers (remat ``names``). Meshes
    before it, which exchange less, are tried with full recomputation; if ``names`` recomputes a lot, ``none`` is tried.
    The fastest of all then gets larger batches while that pays. If none fits, batches are halved for the candidate that
    misses least.

    Args:
        request: the training and the topology. Its mesh and remat are replaced; its batch is where the search begins.
        measure: estimates a request, as :func:`wmjax.scaling.compilers.run` does.
        report: called with a line for each candidate that was tried.

    Raises:
        UserError: bad settings, or simulated devices, whose memory says nothing.

    """
    topology = parse_topology(request.topology)
    if topology.chip is None:
        raise UserError(
            f"--topology is {request.topology!r} with --recommend; the memory of simulated CPU devices predicts "
            "nothing, name an accelerator"
        )
    search = _Search(request, measure, report)
    experiment = load(request.recipe, request.scale, request.dataset, request.settings)
    search.at_batch(meshes(topology), experiment.train.batch_size, hasattr(experiment.model.backbone, "remat"))
    if (best := search.best()) is not None:
        search.grow(best)
    else:
        search.shrink(topology.devices)
    best = search.best()
    found = {"topology": request.topology, "fits": best is not None, "tried": search.tried}
    return found | {"recommended": best and {**best._asdict(), "options": best.options(), **search.row(best)}}


def meshes(topology: Topology) -> list[int]:
    """Sizes of the axis ``fsdp``: whole copies on every device, and the parameters split over a slice or a host."""
    within = topology.shape[-1] if topology.platform == "gpu" else topology.devices
    return list(dict.fromkeys((1, within)))


@dataclasses.dataclass
class _Search:
    request: Request
    measure: Measure
    report: Callable[[str], None]
    tried: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    known: dict[Candidate, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def try_one(self, candidate: Candidate) -> bool:
        """Estimates a candidate; whether it fits."""
        settings = merge(self.request.settings, candidate.settings())
        found = self.measure(dataclasses.replace(self.request, settings=settings, initialises=False))
        memory, time, work = found["memory"] or {}, found["time"] or {}, found["flops"]
        row = {
            "fits": found["fits"],
            "needed_gb": memory.get("needed_gb"),
            "available_gb": memory.get("available_gb"),
            "samples_per_s": time.get("samples_per_s"),
            "mfu": time.get("mfu"),
            "recomputed": work["executed_tflop_per_sample"] / work["model_tflop_per_sample"],
            "refused": found.get("refused"),
        }
        self.known[candidate] = row
        self.tried.append({**candidate._asdict(), **row})
        self.report(line(candidate, row))
        return bool(found["fits"])

    def at_batch(self, meshes: list[int], batch: int, has_remat: bool) -> None:
        """Tries meshes, of which later ones exchange more and need less memory, and remats."""
        start = Candidate(0, "names" if has_remat else None, batch)
        kept = self.first_that_fits([start._replace(fsdp=fsdp) for fsdp in meshes])
        if not has_remat:
            return
        before = meshes if kept is None else meshes[: meshes.index(kept.fsdp)]
        self.first_that_fits([Candidate(fsdp, "full", batch) for fsdp in before])
        if kept is not None and self.known[kept]["recomputed"] >= GAIN:
            self.try_one(kept._replace(remat="none"))

    def first_that_fits(self, candidates: list[Candidate]) -> Candidate | None:
        """Tries candidates until one fits."""
        return next((candidate for candidate in candidates if self.try_one(candidate)), None)

    def grow(self, best: Candidate) -> None:
        """Doubles the batch while it fits and pays."""
        for _ in range(DOUBLINGS):
            larger = best._replace(batch=2 * best.batch)
            if not self.try_one(larger) or self._speed(larger) < GAIN * self._speed(best):
                return
            best = larger

    def shrink(self, devices: int) -> None:
        """Halves the batch of the candidate that misses least until it fits, or every device has one sample."""
        least = min(self.known, key=lambda candidate: self._missing(candidate))
        while least.batch // 2 >= devices and least.batch // 2 % devices == 0:
            least = least._replace(batch=least.batch // 2)
            if self.try_one(least):
                return

    def best(self) -> Candidate | None:
        """The fastest that fits; of those that are as fast, the one with the smallest batch."""
        fitting = [candidate for candidate, row in self.known.items() if row["fits"]]
        if not fitting:
            return None
        fastest = max(map(self._speed, fitting))
        return min((c for c in fitting if GAIN * self._speed(c) > fastest), key=lambda c: (c.batch, -self._speed(c)))

    def row(self, candidate: Candidate) -> dict[str, Any]:
        """The results of a candidate."""
        return self.known[candidate]

    def _speed(self, candidate: Candidate) -> float:
        return float(self.known[candidate]["samples_per_s"])

    def _missing(self, candidate: Candidate) -> tuple[float, int]:
        """GB that it lacks; infinite, and less with more devices to split over, where the compiler gave up."""
        row = self.known[candidate]
        needed = row["needed_gb"]
        return (float("inf") if needed is None else needed - row["available_gb"], -candidate.fsdp)


def line(candidate: Candidate, row: dict[str, Any]) -> str:
    """One line with a candidate and its results."""
    if row["needed_gb"] is None:
        return f"{candidate.options()}: does not fit, {row['refused']}"
    memory = f"{row['needed_gb']:.2f} of {row['available_gb']:.2f} GB"
    if not row["fits"]:
        return f"{candidate.options()}: does not fit, {memory}, {row['needed_gb'] - row['available_gb']:.2f} GB missing"
    mfu = "" if row["mfu"] is None else f", MFU {100 * row['mfu']:.0f} %"
    return f"{candidate.options()}: {row['samples_per_s']:.1f} samples/s, {memory}{mfu}"
