"""The settings of the training data: what is recorded or which stores are used, and how samples are drawn."""

import dataclasses
import json
from dataclasses import field
from typing import Annotated

from wmjax.core.errors import UserError
from wmjax.core.files import hash_bytes
from wmjax.core.settings import Count, Depth, Range, Settings
from wmjax.core.specs import ObservationSpec
from wmjax.core.specs import to_dict as spec_to_dict
from wmjax.data.weights import Balance, Mixture
from wmjax.recording.demonstration import DemonstrationConfig
from wmjax.sim.episode import RECORDING_VERSION, START_NOISE
from wmjax.sim.libero import OBSERVATION_SPEC


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings, section="data"):
    """The training data: demonstrations recorded here, the training store at ``path``, or those at ``paths`` together.

    ``weights`` is the share of each store in the samples that are drawn, up to a common factor; without, the shares
    follow the stores' sizes. With ``balance`` ``task`` every task is drawn equally often. With ``labelled_per_task``
    that many training episodes of each task, the first ones, have actions; of the others only the video is used, which
    trains the world model. ``labelled_share`` is the share of the drawn samples that have actions (1: no video).
    """

    path: str = ""
    paths: tuple[str, ...] = ()
    weights: tuple[Annotated[float, Range(0, 1_000_000, above=True)], ...] = ()
    balance: Balance = "none"
    labelled_per_task: Count | None = None
    labelled_share: Annotated[float, Range(0, 1, above=True)] | None = None
    suite: str = "libero_spatial"
    tasks: tuple[Annotated[int, Range(0, 1_000_000)], ...] = (0,)
    episodes_per_task: Annotated[int, Range(1, 100_000)] = 24
    workers: Depth = 2
    demonstrations: DemonstrationConfig = field(default_factory=DemonstrationConfig)
    observation: ObservationSpec = OBSERVATION_SPEC

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path and self.paths:
            raise UserError(
                f"data.path is {self.path!r} and data.paths has {len(self.paths)} more; name all in data.paths"
            )
        if len(set(self.paths)) != len(self.paths):
            raise UserError(f"data.paths is {list(self.paths)}; name each store once, and give it a weight")
        if self.weights and len(self.weights) != len(self.places):
            raise UserError(
                f"data.weights has {len(self.weights)} numbers for {len(self.places)} stores; give one for each"
            )
        _ = self.mixture

    @property
    def mixture(self) -> Mixture:
        """How often which samples are drawn, and which have actions.

        Raises:
            UserError: a share of the labelled ones, but all are.

        """
        return Mixture(self.weights, self.balance, self.labelled_per_task, self.labelled_share)

    @property
    def places(self) -> tuple[str, ...]:
        """The given training stores; empty if demonstrations are recorded here."""
        return self.paths or ((self.path,) if self.path else ())

    def identity(self) -> str:
        """A hash of everything that changes the recorded data; names the folder it is cached in."""
        made_by = {"start_noise": START_NOISE, "version": RECORDING_VERSION}
        values = dataclasses.asdict(self) | {"path": "", "workers": 0} | made_by
        done_with_it = (each.name for each in dataclasses.fields(Mixture))  # with what is recorded
        for name in ("paths", *done_with_it):
            del values[name]
        values["demonstrations"] = self.demonstrations.identity()
        values["observation"] = spec_to_dict(self.observation)
        return hash_bytes(json.dumps(values, sort_keys=True).encode())[:10]
