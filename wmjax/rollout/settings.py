"""The settings of an evaluation's simulator processes and of the policy's batches, passed whole from command to runner.

All but ``batch`` may differ between two runs of one evaluation. A new one is a field here and, if it deserves a short
option, an entry of :data:`SHORTS`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from wmjax.core.errors import UserError
from wmjax.core.options import Short, number_list
from wmjax.core.settings import Depth, Range, Settings, build
from wmjax.core.shards import UNSHARDED, Shard, check_shard, own_shard, parse_shard
from wmjax.rollout.metrics import METRICS


@dataclasses.dataclass(frozen=True)
class EvaluateSettings(Settings, section="evaluation"):
    """How the episodes of an evaluation are run.

    Attributes:
        workers: simulator processes.
        videos: successes and failures per task to keep as videos.
        batch: rows per call of the policy.
        max_wait: seconds that the policy waits for more observations while a batch is not full; results do not depend
            on it.
        render_devices: numbers of the GPUs, as EGL counts them, on which the workers draw in turn; empty for all that
            the process sees (``CUDA_VISIBLE_DEVICES``).
        timeout: seconds after which a worker's command counts as hung (a new worker's first has longer).
        shard: index and count: which part of how many is run here, see :mod:`wmjax.rollout.evaluation_shards`.
        metrics: what else is measured of each episode: names of :data:`wmjax.rollout.metrics.METRICS`, or
            ``package.module:Class``.

    """

    workers: Depth = 2
    videos: Annotated[int, Range(0, 1_000_000)] = 2
    batch: Annotated[int, Range(1, 10_000)] = 1
    max_wait: Annotated[float, Range(0, 60)] = 0.02
    render_devices: tuple[Annotated[int, Range(0, 1_000)], ...] = ()
    timeout: Annotated[float, Range(0, 1_000_000, above=True)] = 120.0
    shard: Shard = UNSHARDED
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses a part that is not there, and metrics that are not there, or twice, before anything runs."""
        super().__post_init__()
        check_shard(self.shard)
        kinds = [METRICS.resolve(name) for name in self.metrics]
        for name, kind in zip(self.metrics, kinds, strict=True):
            if kinds.count(kind) > 1:
                raise UserError(f"evaluation.metrics is {', '.join(self.metrics)}: {name} occurs twice; name it once")


def from_command_line(values: Mapping[str, Any]) -> EvaluateSettings:
    """The settings given on a command line; without a part, this process runs the one that its launcher gave it.

    Raises:
        UserError: settings that are not there or cannot be used, or no launcher's variable tells the part.

    """
    own = {} if "shard" in values else {"shard": own_shard()}
    return build(EvaluateSettings, {**values, **own}, "evaluation.")


SHORTS = {
    "workers": Short("workers", "simulator processes"),
    "batch": Short("batch", "rows per policy call; 1 is fastest on a CPU"),
    "max-wait": Short("max_wait", "seconds that the policy waits for a batch to be full"),
    "render-devices": Short(
        "render_devices",
        "GPUs, such as 0,1, that draw for the workers in turn; all visible ones if not given",
        number_list,
    ),
    "videos": Short("videos", "successes and failures per task to keep as videos"),
    "shard": Short("shard", "i/n: run the i-th of n parts of the episodes, into one --out that all n see", parse_shard),
    "metrics": Short(
        "metrics",
        f"numbers to measure of each episode: {', '.join(METRICS.known)}, or package.module:Class",
        str,
        words=True,
    ),
}
"""The settings that have a short option, by option."""
