"""Failures that are provoked while demonstrations are recorded, so that the data show how to recover from them.

The actions that are executed during a failure are not labels; the store marks these control steps as injected.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import numpy as np
from jaxtyping import Float64

from wmjax.core.errors import UserError
from wmjax.core.settings import Fraction, Range, Settings, Weight
from wmjax.recording.expert import Expert
from wmjax.recording.primitives.motion import CLOSE, OPEN, Action, Phase
from wmjax.sim.episode import EpisodeId

START = "start"
KINDS = ("push", "miss", "drop", "beside")
QUIET = 12
"""Smallest number of control steps between two failures."""
LATEST_PUSH = 100
"""Pushes are planned for control steps before this one."""


@dataclasses.dataclass(frozen=True)
class FailureConfig(Settings, section="failures"):
    """Which failures are provoked while demonstrations are recorded.

    Attributes:
        fraction: share of the demonstrations in which failures are provoked.
        most: their largest number in one demonstration; the number is drawn from 1 to ``most``.
        push: relative frequency of the hand being moved and turned away, at any time.
        miss: relative frequency of the fingers closing on nothing beside the object.
        drop: relative frequency of the object being dropped while it is carried.
        beside: relative frequency of the object being put down beside its place.
        start: share of the demonstrations that begin with 10 to 25 control steps in a random direction.

    """

    fraction: Fraction = 0.8
    most: Annotated[int, Range(1, 100)] = 3
    push: Weight = 0.5
    miss: Weight = 0.2
    drop: Weight = 0.15
    beside: Weight = 0.15
    start: Fraction = 0.0

    def __post_init__(self) -> None:
        """Checks that a failure can be drawn.

        Raises:
            UserError: names the setting, its value and what it may be.

        """
        super().__post_init__()
        if self.fraction > 0 and not sum(self.weights):
            raise UserError(
                f"data.demonstrations.failures: {', '.join(KINDS)} are all 0; raise one, or set fraction to 0"
            )

    @property
    def weights(self) -> tuple[float, ...]:
        """Relative frequencies, in the order of :data:`KINDS`."""
        return tuple(getattr(self, name) for name in KINDS)


def disturbance(episode: EpisodeId) -> float:
    """The episode's random number in [0, 1). A disturbance happens in the episodes whose number is below its share."""
    return float(np.random.default_rng(episode.stream("disturbance")).random())


@dataclasses.dataclass
class _Running:
    """A failure under way: ``script`` gives the action to execute at each of its ``length`` control steps."""

    script: Callable[[int], Action]
    length: int
    step: int = 0


class Failures:
    """The failures of one demonstration, reproducible from the episode's identity.

    Attributes:
        done: the kinds that have happened, in order.

    """

    def __init__(self, episode: EpisodeId, config: FailureConfig) -> None:
        self._random = np.random.default_rng(episode.stream("failures"))
        self._plan: list[tuple[str, int]] = []
        self._running: _Running | None = None
        self._quiet = 0
        self.done: list[str] = []
        begins = self._random.random() < config.start
        if disturbance(episode) < config.fraction:
            weights = np.array(config.weights) / sum(config.weights)
            kinds = self._random.choice(KINDS, self._random.integers(1, config.most + 1), p=weights)
            self._plan = [(str(kind), int(self._random.integers(0, LATEST_PUSH))) for kind in kinds]
        if begins:
            self._begin(START, OPEN)

    def action(self, step: int, expert: Expert, label: Action) -> Action | None:
        """The action to execute instead of ``label`` at a control step; None while no failure is under way.

        Args:
            step: the control step.
            expert: has just given ``label``.
            label: the expert's action.

        """
        if self._running is None:
            self._quiet += 1
            kind = self._due(step, expert)
            if kind is None:
                return None
            self._begin(kind, float(label[6]))
        assert self._running is not None
        action = self._running.script(self._running.step)
        self._running.step += 1
        if self._running.step == self._running.length:
            self._running, self._quiet = None, 0
        return np.clip(action, -1.0, 1.0)

    def _due(self, step: int, expert: Expert) -> str | None:
        """The first planned failure that the state allows; it is taken off the plan."""
        if self._quiet <= QUIET:
            return None
        for item in self._plan:
            if self._allowed(item, step, expert):
                self._plan.remove(item)
                return item[0]
        return None

    def _allowed(self, item: tuple[str, int], step: int, expert: Expert) -> bool:
        kind, when = item
        phase, state = expert.phase, expert.state
        if kind == "push":
            return step >= when and phase not in (Phase.RETREAT, Phase.OPEN)
        if kind == "miss":
            return (
                phase is Phase.DESCEND
                and (grasp := expert.plan()) is not None
                and (state.hand[2] - grasp.position[2] < 0.05)
            )
        if kind == "drop":
            return phase is Phase.CARRY and self._random.random() < 0.12
        return phase in (Phase.CARRY, Phase.LOWER) and state.aside < 0.09

    def _begin(self, kind: str, gripper: float) -> None:
        """Starts a failure of random direction, size and length while the gripper's command is ``gripper``."""
        random = self._random
        direction = random.normal(size=3)
        direction /= np.linalg.norm(direction)
        turn, size = random.uniform(-0.25, 0.25, 3), random.uniform(0.3, 1.0)
        pushed = np.r_[direction * size, turn, gripper]
        flat = direction * [1, 1, 0]
        scripts: dict[str, tuple[Callable[[int], Action], int]] = {
            "push": (lambda step: pushed, int(random.integers(5, 15))),
            START: (lambda step: pushed, int(random.integers(10, 26))),
            "miss": (lambda step: _miss(flat, step), 18),
            "drop": (lambda step: _move(direction * 0.2, OPEN), 8),
            "beside": (lambda step: _beside(flat, step), 22),
        }
        self._running = _Running(*scripts[kind])
        self.done.append(kind)


def _move(translation: Float64[np.ndarray, "3"], gripper: float) -> Action:
    return np.r_[translation, np.zeros(3), gripper]


def _miss(aside: Float64[np.ndarray, "3"], step: int) -> Action:
    """Moves aside, closes the gripper on nothing and moves up."""
    if step < 5:
        return _move(aside * 0.5, CLOSE if step >= 2 else OPEN)
    return _move(np.array([0, 0, 0.0 if step < 10 else 0.8]), CLOSE)


def _beside(aside: Float64[np.ndarray, "3"], step: int) -> Action:
    """Moves aside and down, releases the object and moves up."""
    if step < 5:
        return _move(aside * 0.6 + [0, 0, -0.5], CLOSE)
    height = -0.5 if step < 12 else 0.0 if step < 16 else 0.7
    return _move(np.array([0, 0, height]), CLOSE if step < 12 else OPEN)
