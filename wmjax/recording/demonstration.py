"""One demonstration: the expert's clean chunks are the labels, and the executed actions may differ from them."""

import dataclasses
from dataclasses import field
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32, Float64

from wmjax.core.errors import UserError
from wmjax.core.settings import Fraction, Range, Settings
from wmjax.data.episode import EpisodeData
from wmjax.recording.expert import Expert
from wmjax.recording.failures import FailureConfig, Failures, disturbance
from wmjax.recording.primitives.grasp import HOPELESS
from wmjax.sim.disturbance import MAX_VELOCITY, Disturbance
from wmjax.sim.env import LiberoEnv
from wmjax.sim.episode import DEMONSTRATION_INDEX, EpisodeId
from wmjax.sim.libero import ACTION_SPEC

SLOTS_PER_ATTEMPT = 100_000
HOLD = np.array(ACTION_SPEC.hold)
ADDED_LATER = ("branch_frames", "target_velocity", "hold_steps")
NOISE_MEMORY = 0.7
NOISE_GAIN = np.array([2, 2, 2, 0.3, 0.3, 0.3, 0]) * (1 - NOISE_MEMORY)


@dataclasses.dataclass(frozen=True)
class DemonstrationConfig(Settings, section="demonstrations"):
    """The settings of demonstrations.

    Attributes:
        seed: chooses another set of random placements; sets of different seeds share none.
        perturbed_fraction: share of episodes whose executed actions are perturbed by smoothed noise. One draw decides
            on noise and failures, so that the other episodes have neither if the shares are equal. The label remains
            the expert's action in the state that the noise led to, so that the data contain recoveries.
        noise_low, noise_high: range of the noise's amplitude, as a fraction of the largest action.
        max_steps: an episode that has not succeeded by then is a failure.
        steps_after_success: control steps recorded beyond the first success, in which the expert lets go.
        label_steps: control steps of the chunk that the expert, undisturbed, would execute from every frame on. The
            store keeps these chunks and training learns them; 0 keeps none, and training learns the labels of the
            steps that were executed.
        branch_frames: frames of every frame's branch, the future in which the expert acts undisturbed from there on,
            which ``model.memory.target`` ``branch`` uses. They take ``branch_frames`` times the space of the frames.
            0 records as many as that target needs, and none for another target.
        failures: which failures are provoked for the expert to correct.
        target_velocity: speed (m/s) at which the goal's target drifts over the table, as in the protocol
            ``spatial_moving``; 0 is off.
        hold_steps: control steps at the start in which the robot holds still. Under an execution delay every episode
            begins so, because nothing has been decided yet.

    """

    seed: Annotated[int, Range(0, 1_000_000)] = 0
    perturbed_fraction: Fraction = 0.8
    noise_low: Fraction = 0.1
    noise_high: Fraction = 0.3
    max_steps: Annotated[int, Range(1, 1_000_000)] = 360
    steps_after_success: Annotated[int, Range(0, 10_000)] = 8
    label_steps: Annotated[int, Range(0, 10_000)] = 8
    branch_frames: Annotated[int, Range(0, 100)] = 0
    failures: FailureConfig = field(default_factory=FailureConfig)
    target_velocity: Annotated[float, Range(0, MAX_VELOCITY)] = 0.0
    hold_steps: Annotated[int, Range(0, 10_000)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_low > self.noise_high:
            raise UserError(
                f"demonstrations.noise_low is {self.noise_low:g}, above noise_high {self.noise_high:g}; lower it"
            )
        if self.hold_steps >= self.max_steps:
            raise UserError(
                f"demonstrations.hold_steps is {self.hold_steps}, and an episode ends after max_steps "
                f"{self.max_steps}; lower it"
            )

    def identity(self) -> dict[str, Any]:
        """The settings that change what is recorded, as plain values.

        The settings of ``ADDED_LATER`` are left out when they are off, so that earlier recordings keep their names.
        """
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value or name not in ADDED_LATER}


def demonstration_id(suite: str, task_id: int, slot: int, attempt: int, seed: int) -> EpisodeId:
    """The random placement of the ``attempt``-th try at a slot. No evaluation, random or benchmark, starts from it."""
    index = DEMONSTRATION_INDEX * (1 + seed) + SLOTS_PER_ATTEMPT * attempt + slot
    return EpisodeId(suite, task_id, "random", index)


class ActionNoise:
    """Exponentially smoothed Gaussian noise on the six arm values, reproducible from the episode's seed."""

    def __init__(self, episode: EpisodeId, config: DemonstrationConfig) -> None:
        self._random = np.random.default_rng(episode.seed)
        perturbed = disturbance(episode) < config.perturbed_fraction
        amplitude = self._random.uniform(config.noise_low, config.noise_high)
        self.amplitude = float(amplitude) if perturbed else 0.0
        self._value = np.zeros(7)

    def apply(self, action: Float64[np.ndarray, "7"]) -> Float64[np.ndarray, "7"]:
        """The action to execute instead of ``action``; the gripper is never perturbed."""
        if self.amplitude == 0.0:
            return action
        self._value = NOISE_MEMORY * self._value + NOISE_GAIN * self.amplitude * self._random.normal(size=7)
        return np.clip(action + self._value, -1.0, 1.0)


@dataclasses.dataclass
class _Track:
    """The record of an episode: one entry per control step, and the simulator's state at every frame."""

    images: list[np.ndarray] = field(default_factory=list)
    frame_step: list[int] = field(default_factory=list)
    frame_state: list[np.ndarray] = field(default_factory=list)
    state: list[np.ndarray] = field(default_factory=list)
    label: list[np.ndarray] = field(default_factory=list)
    executed: list[np.ndarray] = field(default_factory=list)
    injected: list[bool] = field(default_factory=list)


def record_demonstration(env: LiberoEnv, episode: EpisodeId, config: DemonstrationConfig) -> EpisodeData | None:
    """Records one episode.

    Args:
        env: of the episode's task.
        episode: where to start.
        config: how to act.

    Returns:
        The episode with frames at control steps 0, ``frame_stride``, ..., or None if the expert did not succeed
        or the success did not last.

    """
    env.reset(episode)
    if config.target_velocity:
        env.disturb(Disturbance(config.target_velocity), episode)
    expert, noise, failures = Expert(env), ActionNoise(episode, config), Failures(episode, config.failures)
    grasp = expert.plan()
    if grasp is None or grasp.cost >= HOPELESS:
        return None
    track = _Track()
    success_step = _act(env, expert, noise, failures, config, track)
    if success_step is None:
        return None
    usual = dataclasses.asdict(grasp.style)
    meta = _meta(env, episode, noise.amplitude, success_step)
    moving = {"target_velocity": config.target_velocity} if config.target_velocity else {}
    return EpisodeData(
        images=np.stack(track.images),
        frame_step=np.array(track.frame_step, np.int32),
        state=np.stack(track.state),
        action=np.stack(track.label),
        executed=np.stack(track.executed),
        settled_state=env.settled_state,
        meta={**meta, "grasp": usual, "failures": failures.done} | moving,
        **_label_frames(env, expert, track, config),
        injected=np.array(track.injected),
    )


def _act(
    env: LiberoEnv, expert: Expert, noise: ActionNoise, failures: Failures, config: DemonstrationConfig, track: _Track
) -> int | None:
    """Runs the episode to its end.

    Returns:
        The number of control steps until the first success; None if there was none or it did not last.

    """
    success_step, success, step = None, False, 0
    while step < config.max_steps if success_step is None else step < success_step + config.steps_after_success:
        if step % env.spec.frame_stride == 0:
            track.images.append(env.render())
            track.frame_step.append(step)
            track.frame_state.append(env.sim_state())
        track.state.append(env.state())
        # Rounded before it is executed, so that replaying the stored float32 is exact.
        label = expert.act().astype(np.float32)
        failing = None
        if step < config.hold_steps:
            action = HOLD
        else:
            if success_step is None:
                failing = failures.action(step, expert, label.astype(np.float64))
            action = noise.apply(label.astype(np.float64)) if failing is None else failing
        track.label.append(label)
        track.executed.append(action.astype(np.float32))
        track.injected.append(failing is not None)
        success = env.step(track.executed[-1])
        step += 1
        if success and success_step is None:
            success_step = step
    return success_step if success else None


def _label_frames(env: LiberoEnv, expert: Expert, track: _Track, config: DemonstrationConfig) -> dict[str, np.ndarray]:
    """The branch of every frame: what the undisturbed expert would do from there on, and what would be seen.

    The expert's action is a function of the state. Where its own actions were executed, what was recorded is the
    branch. Elsewhere the frame's state is restored and the expert acts from there. The simulation is left in the state
    in which this ends.

    Returns:
        The arrays ``action_chunk`` and ``branch_images`` of an episode, as far as the settings ask for them.

    """
    labels, frames = config.label_steps, config.branch_frames
    stride = env.spec.frame_stride
    steps = max(labels, frames * stride)
    if not steps:
        return {}
    # The label of a chunk's last step does not depend on what was executed in that step; the frame after it does.
    decisive = max(labels - 1, frames * stride)
    chunks, branches = [], []
    for index, (step, state) in enumerate(zip(track.frame_step, track.frame_state, strict=True)):
        chunk = np.stack(track.label[step : step + steps])
        images = track.images[index + 1 : index + 1 + frames]
        executed = np.stack(track.executed[step : step + steps])
        if len(chunk) < steps or len(images) < frames or not np.array_equal(chunk[:decisive], executed[:decisive]):
            env.restore(state)
            chunk, images = undisturbed(env, expert, steps, frames)
        chunks.append(chunk[:labels])
        branches.append(images)
    arrays = {"action_chunk": np.stack(chunks)} if labels else {}
    return arrays | ({"branch_images": np.stack([np.stack(images) for images in branches])} if frames else {})


def undisturbed(
    env: LiberoEnv, expert: Expert, steps: int, frames: int = 0
) -> tuple[Float32[np.ndarray, "steps 7"], list[np.ndarray]]:
    """Executes the expert's next actions and returns them, with the first ``frames`` frames that fall due."""
    actions: list[np.ndarray] = []
    images: list[np.ndarray] = []
    for step in range(1, steps + 1):
        actions.append(expert.act().astype(np.float32))
        env.step(actions[-1])
        if step % env.spec.frame_stride == 0 and len(images) < frames:
            images.append(env.render())
    return np.stack(actions), images


def _meta(env: LiberoEnv, episode: EpisodeId, perturbation: float, success_step: int) -> dict[str, object]:
    return {
        "suite": env.suite,
        "task_id": env.task_id,
        "instruction": env.instruction,
        "seed": episode.seed,
        "init": episode.init,
        "init_index": episode.index,
        "episode": episode.key,
        "settled_hash": env.settled_hash,
        "perturbation": perturbation,
        "success_step": success_step,
        "fixture_poses": env.fixture_poses(),
    }
