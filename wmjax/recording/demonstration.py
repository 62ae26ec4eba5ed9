"""One demonstration: the expert's actions are the labels, the executed actions may be perturbed, both are kept."""

import dataclasses

import numpy as np
from jaxtyping import Float64

from wmjax.data.episode import EpisodeData
from wmjax.recording.expert import Expert
from wmjax.recording.grasp import HOPELESS
from wmjax.sim.env import LiberoEnv
from wmjax.sim.episode import DEMONSTRATION_INDEX, EpisodeId

SLOTS_PER_ATTEMPT = 100_000
NOISE_MEMORY = 0.7
NOISE_GAIN = np.array([2, 2, 2, 0.3, 0.3, 0.3, 0]) * (1 - NOISE_MEMORY)


@dataclasses.dataclass(frozen=True)
class DemonstrationConfig:
    """The settings of demonstrations.

    Attributes:
        seed: chooses another set of random placements; sets of different seeds share none.
        perturbed_fraction: share of episodes whose executed actions are perturbed by smoothed noise. The label remains
            the expert's action in the state that the noise led to, so that the data contain recoveries.
        noise_low, noise_high: range of the noise's amplitude, as a fraction of the largest action.
        max_steps: an episode that has not succeeded by then is a failure.
        steps_after_success: control steps recorded beyond the first success, in which the expert lets go.

    """

    seed: int = 0
    perturbed_fraction: float = 0.6
    noise_low: float = 0.1
    noise_high: float = 0.3
    max_steps: int = 220
    steps_after_success: int = 8


def demonstration_id(suite: str, task_id: int, slot: int, attempt: int, seed: int) -> EpisodeId:
    """The random placement for the ``attempt``-th try at a slot; never a benchmark state, never an evaluation's."""
    index = DEMONSTRATION_INDEX * (1 + seed) + SLOTS_PER_ATTEMPT * attempt + slot
    return EpisodeId(suite, task_id, "random", index)


class _Noise:
    """Exponentially smoothed Gaussian noise on the six arm values, reproducible from the episode's seed."""

    def __init__(self, episode: EpisodeId, config: DemonstrationConfig) -> None:
        self._random = np.random.default_rng(episode.seed)
        perturbed = self._random.random() < config.perturbed_fraction
        amplitude = self._random.uniform(config.noise_low, config.noise_high)
        self.amplitude = float(amplitude) if perturbed else 0.0
        self._value = np.zeros(7)

    def apply(self, action: Float64[np.ndarray, "7"]) -> Float64[np.ndarray, "7"]:
        """The action to execute instead of ``action``; the gripper is never perturbed."""
        if self.amplitude == 0.0:
            return action
        self._value = NOISE_MEMORY * self._value + NOISE_GAIN * self.amplitude * self._random.normal(size=7)
        return np.clip(action + self._value, -1.0, 1.0)


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
    expert, noise = Expert(env), _Noise(episode, config)
    if expert.grasp.cost >= HOPELESS:
        return None
    images, frame_step, states, labels, executed = [], [], [], [], []
    success_step, success, step = None, False, 0
    while step < config.max_steps if success_step is None else step < success_step + config.steps_after_success:
        if step % env.spec.frame_stride == 0:
            images.append(env.render())
            frame_step.append(step)
        states.append(env.state())
        # Rounded before it is executed, so that replaying the stored float32 is exact.
        label = expert.act().astype(np.float32)
        action = noise.apply(label.astype(np.float64)).astype(np.float32)
        labels.append(label)
        executed.append(action)
        success = env.step(action)
        step += 1
        if success and success_step is None:
            success_step = step
    if success_step is None or not success:
        return None
    return EpisodeData(
        images=np.stack(images),
        frame_step=np.array(frame_step, np.int32),
        state=np.stack(states),
        action=np.stack(labels),
        executed=np.stack(executed),
        settled_state=env.settled_state,
        meta=_meta(env, episode, noise.amplitude, success_step),
    )


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
