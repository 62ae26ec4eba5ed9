"""From action chunks to the action of each control step: execution delay, open-loop horizon, temporal ensembling."""

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, UInt8

from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec
from wmjax.rollout.actors import Chunk
from wmjax.sim.episode import EpisodeId

Action = Float32[np.ndarray, "action"]


class Execution:
    """The actions that one episode executes. Row j of a chunk decided at control step t is for step t + delay + j.

    Each step takes its action from the newest chunk that is meant for it, or, with ensembling, from all of them:
    see :func:`ensemble_actions`. The robot holds still until the first action of the first chunk is due.

    Args:
        horizon: control steps between two decisions; without ensembling this many actions of a chunk are executed.
        delay: control steps between an observation and the execution of the actions chosen on it.
        ensemble: the weights' decay per control step of age; 0 is off.
        spec: the environment's actions.

    """

    def __init__(self, horizon: int, delay: int = 0, ensemble: float = 0.0, *, spec: ActionSpec) -> None:
        self._horizon, self._delay, self._ensemble, self._spec = horizon, delay, ensemble, spec
        self._hold: Action = np.array(spec.hold, np.float32)
        self._step = 0
        self._chunks: list[tuple[int, Chunk]] = []  # with the step that row 0 is meant for, oldest first

    def add(self, chunk: Chunk) -> None:
        """Adds the chunk that was decided now.

        Raises:
            UserError: the chunk is shorter than the horizon, or leaves nothing to ensemble.

        """
        if len(chunk) < self._horizon:
            raise UserError(f"open_loop_horizon is {self._horizon}, the policy predicts {len(chunk)} actions; lower it")
        if self._ensemble and len(chunk) == self._horizon:
            raise UserError(
                f"ensemble is {self._ensemble}, but chunks of {len(chunk)} actions do not overlap at open_loop_horizon "
                f"{self._horizon}; lower open_loop_horizon, or set ensemble to 0"
            )
        self._chunks.append((self._step + self._delay, chunk))

    def take(self, steps: int) -> Chunk:
        """The actions of the next ``steps`` control steps."""
        actions = [self._action(step) for step in range(self._step, self._step + steps)]
        self._step += steps
        self._chunks = [(start, chunk) for start, chunk in self._chunks if start + len(chunk) > self._step]
        return np.stack(actions).astype(np.float32)

    def planned(self, steps: int | None = None) -> Chunk:
        """The next actions as far as they are decided: ``steps`` of them, or those of the delay.

        Those of the delay are executed whatever is decided now.
        """
        steps = self._delay if steps is None else steps
        actions = [self._action(step) for step in range(self._step, self._step + steps)]
        return np.stack(actions).astype(np.float32) if actions else np.zeros((0, self._spec.dim), np.float32)

    def jump(self) -> float:
        """How far the first action of the chunk just added is from the one executed before it (Euclidean, raw).

        Grippers are left out: they jump by what they are.
        """
        before, first = self.planned(self._delay + 1)[-2:, list(self._spec.arm)]
        return float(np.linalg.norm(first - before))

    def _action(self, step: int) -> Action:
        ages = [(step - start, chunk) for start, chunk in self._chunks if 0 <= step - start < len(chunk)]
        if not ages:
            return self._hold
        if not self._ensemble:
            age, newest = ages[-1]
            return newest[age]
        actions = np.stack([chunk[age] for age, chunk in ages])
        return ensemble_actions(actions, np.array([age for age, _ in ages]), self._ensemble, self._spec)


def ensemble_actions(
    actions: Float32[np.ndarray, "predictions action"],
    ages: Int[np.ndarray, " predictions"],
    decay: float,
    spec: ActionSpec,
) -> Action:
    """Temporal ensembling: predictions of one control step's action, averaged with weights ``exp(-decay * age)``.

    ACT (Zhao et al. 2023, section IV-B) has weights ``exp(-m * i)`` with i = 0 for the *oldest* prediction, which is
    ``decay = -m`` here up to normalisation; a positive decay trusts new observations more. A gripper can only open or
    close: it takes the command that the average is nearer to, or, if the average lies in the middle, the command that
    the newest prediction is nearer to.

    Args:
        actions: raw actions, oldest prediction first.
        ages: control steps since each prediction's first action was due.
        decay: per control step of age.
        spec: of the actions.

    """
    exponents: Float64[np.ndarray, " predictions"] = -decay * ages.astype(np.float64)
    weights = np.exp(exponents - exponents.max())
    average = weights @ actions.astype(np.float64) / weights.sum()
    for index, opened, closed in zip(spec.grippers, spec.gripper_open, spec.gripper_closed, strict=True):
        half = (opened + closed) / 2
        side = (average[index] - half or actions[-1, index] - half) * (closed - opened)
        average[index] = closed if side > 0 else opened
    return average.astype(np.float32)


def dropped_cameras(
    episode: EpisodeId, decision: int, cameras: int, probability: float
) -> Bool[np.ndarray, " cameras"]:
    """The cameras that are black at a decision: a function of (episode, decision, camera) only.

    Each camera is drawn independently, except that the camera with the largest draw is never black, because a policy
    without any image could succeed by luck only. With two cameras, each is black at a share p - p²/2 of the decisions.

    Args:
        episode: its identity.
        decision: number of the decision.
        cameras: how many there are.
        probability: of each draw, in [0, 1].

    """
    draws = np.random.default_rng([episode.stream("camera_dropout"), decision]).random(cameras)
    dropped = draws < probability
    dropped[draws.argmax()] = False
    return dropped


def blank(
    frames: UInt8[np.ndarray, "frames cameras height width 3"], dropped: Bool[np.ndarray, " cameras"]
) -> UInt8[np.ndarray, "frames cameras height width 3"]:
    """Returns a copy of the frames in which the dropped cameras are black."""
    return np.where(dropped[:, None, None, None], np.uint8(0), frames)
