"""A rollout's worker: it hosts one environment, executes commands, and renders only the frames that are due.

The parent's side is :mod:`wmjax.sim.rollout_pool`. This module imports neither jax nor the simulator.
"""

import dataclasses
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from wmjax.core.errors import UserError
from wmjax.core.registry import Registry
from wmjax.core.specs import ObservationSpec
from wmjax.sim.disturbance import Disturbance
from wmjax.sim.environment import CurrentTask
from wmjax.sim.episode import EpisodeId
from wmjax.sim.sentence import Instruction, Sentence, choose_instruction


@dataclasses.dataclass(frozen=True)
class WorkerSettings:
    """The settings of a worker: the observation's spec, the environment and the room for frames.

    ``env`` is a name of :data:`wmjax.sim.environment.ENVIRONMENTS` or ``"package.module:Class"``. ``watcher`` makes a
    :class:`Watcher` of an environment in which an episode has settled; None for none. ``render_devices`` are the GPUs
    on which the workers draw in turn (:func:`wmjax.sim.preparation.render_variables`).
    """

    spec: ObservationSpec
    frames: int = 2
    env: str = "libero"
    watcher: "Callable[[Any], Watcher] | None" = None
    render_devices: tuple[int, ...] = ()

    @property
    def frames_shape(self) -> tuple[int, ...]:
        """Shape of the shared frame buffer: frames, cameras, height, width, 3."""
        size = self.spec.image_size
        return (self.frames, len(self.spec.cameras), size, size, 3)


@dataclasses.dataclass(frozen=True)
class Reset:
    """Starts an episode and settles it.

    ``settled`` (f64, full simulator state) then replaces the settled state, and ``disturbance`` acts from there on.
    ``sentence`` chooses the policy's instruction.
    """

    episode: EpisodeId
    render: bool = True
    settled: Float64[np.ndarray, " sim"] | None = None
    disturbance: Disturbance | None = None
    sentence: Sentence = "own"


@dataclasses.dataclass(frozen=True)
class Execute:
    """Executes ``actions`` one control step each, until one succeeds.

    ``render`` renders the frames that fall due; ``final`` also the frame of the step that ends the episode.
    """

    actions: Float32[np.ndarray, "steps action"]
    render: bool = True
    final: bool = False


@dataclasses.dataclass(frozen=True)
class RunExpert:
    """As :class:`Execute`, with the scripted expert acting inside the worker."""

    steps: int
    render: bool = True
    final: bool = False


@dataclasses.dataclass(frozen=True)
class Foresee:
    """Shows the future in which ``first`` is executed and then the scripted expert acts, and undoes it.

    Renders the next ``frames`` frames that would fall due. The episode goes on afterwards as if nothing had happened.
    """

    frames: int
    first: Float32[np.ndarray, "steps action"]


Command = Reset | Execute | RunExpert | Foresee


@dataclasses.dataclass(frozen=True)
class Reply:
    """The result of a command.

    Attributes:
        frame_steps: control step (from the settled state) of each frame now in shared memory, oldest first.
        state: proprioception after the last step.
        success: whether the task's goal held after the last step.
        steps: control steps executed.
        seconds: wall time.
        instruction: the task's own sentence.
        settled_hash: identity of the episode's start.
        settled_state: the full simulator state there.
        given: the sentence that the policy gets, and its task.
        watched: what the watcher saw, if there is one: once after a reset, else after each control step.
        goals: the tasks of the suite whose goals hold now; None if the environment does not tell.

    """

    frame_steps: tuple[int, ...]
    state: Float32[np.ndarray, " state"]
    success: bool
    steps: int
    seconds: float
    instruction: str
    settled_hash: str
    settled_state: Float64[np.ndarray, " sim"]
    given: Instruction
    watched: tuple[Any, ...] = ()
    goals: tuple[int, ...] | None = None


class Watcher(Protocol):
    """Reads the simulator's state beside the policy, which never receives it."""

    def observe(
        self, action: Float[np.ndarray, " action"] | None, image: UInt8[np.ndarray, "cameras height width 3"] | None
    ) -> Any:
        """Describes the current state.

        Args:
            action: what was executed last; None at the start of an episode.
            image: the state as it was rendered for the policy, if it was.

        Returns:
            Anything that a pipe takes: the parent gets it.

        """


class Host:
    """Runs commands on one environment, which is rebuilt only when the task changes.

    Args:
        settings: what it hosts.
        buffer: where it renders to.
        memory: what the buffer lies in, kept open.

    """

    def __init__(
        self,
        settings: WorkerSettings,
        buffer: UInt8[np.ndarray, "frames cameras height width 3"],
        memory: SharedMemory | None = None,
    ) -> None:
        self._settings = settings
        self._buffer, self._memory = buffer, memory
        self._task = CurrentTask(settings.spec, settings.env)
        self._env: Any = None
        self._found_expert: Any = None
        self._step = 0
        self._frame_steps: list[int] = []
        self._watcher: Watcher | None = None
        self._watched: list[Any] = []
        self._given = Instruction()

    def run(self, command: Command) -> Reply:
        """Runs one command.

        Raises:
            Exception: whatever the environment raises; the parent then replaces this process.

        """
        started = time.monotonic()
        self._frame_steps, self._watched = [], []
        match command:
            case Reset():
                self._reset(command)
                steps, success = 0, False
            case Execute():
                actions = iter(command.actions)
                steps, success = self._advance(lambda: next(actions), len(command.actions), command)
            case RunExpert():
                steps, success = self._advance(self._expert.act, command.steps, command)
            case Foresee():
                self._foresee(command)
                steps, success = 0, False
        seconds = time.monotonic() - started
        env, frames = self._env, tuple(self._frame_steps)
        start = env.instruction, env.settled_hash, env.settled_state
        goals = env.goals_held() if hasattr(env, "goals_held") and not isinstance(command, Foresee) else None
        watched = tuple(self._watched)
        return Reply(frames, self._state(), success, steps, seconds, *start, self._given, watched, goals)

    def close(self) -> None:
        """Closes the environment, if there is one."""
        self._task.close()

    def _reset(self, command: Reset) -> None:
        episode = command.episode
        self._env = self._task.enter(episode.suite, episode.task_id)
        self._env.reset(episode)
        if command.settled is not None:
            self._env.restore(command.settled)
        if command.disturbance is not None:
            self._env.disturb(command.disturbance, episode)
        self._given = choose_instruction(self._env, episode, command.sentence)
        self._found_expert = None
        self._step = 0
        make = self._settings.watcher
        self._watcher = None if make is None else make(self._env)
        if command.render:
            self._render()
        self._watch(None)

    def _watch(self, action: np.ndarray | None) -> None:
        """Shows the watcher, if there is one, the current state."""
        if self._watcher is not None:
            rendered = self._frame_steps[-1:] == [self._step]
            image = self._buffer[len(self._frame_steps) - 1] if rendered else None
            self._watched.append(self._watcher.observe(action, image))

    def _expert_class(self) -> Any:
        place = self._env.expert
        if not place:
            raise UserError(f"env {self._settings.env} has no scripted expert; choose another --policy, or no oracle")
        return Registry("expert", {}).resolve(place)

    def _advance(self, act: Callable[[], np.ndarray], limit: int, command: Execute | RunExpert) -> tuple[int, bool]:
        """Steps until success or ``limit``; returns the steps taken and the success."""
        for taken in range(1, limit + 1):
            action = act()
            success = bool(self._env.step(action))
            self._step += 1
            if command.final if success else self._due(command.render) or (command.final and taken == limit):
                self._render()
            self._watch(action)
            if success:
                return taken, True
        return limit, False

    @property
    def _expert(self) -> Any:
        """The scripted expert of the episode; it answers any state, so futures and real steps share it."""
        if self._found_expert is None:
            self._found_expert = self._expert_class()(self._env)
        return self._found_expert

    def _foresee(self, command: Foresee) -> None:
        """Steps into the future, renders it, and returns."""
        now, step = self._env.sim_state(), self._step
        pending = iter(command.first)
        while len(self._frame_steps) < command.frames and (action := next(pending, None)) is not None:
            self._imagine(action)
        while len(self._frame_steps) < command.frames:
            self._imagine(self._expert.act())
        self._env.restore(now)
        self._step = step

    def _imagine(self, action: np.ndarray) -> None:
        """One control step of a future that is going to be undone; success does not end it."""
        self._env.step(action)
        self._step += 1
        if self._due(True):
            self._render()

    def _due(self, render: bool) -> bool:
        return render and self._step % self._settings.spec.frame_stride == 0

    def _render(self) -> None:
        image = np.asarray(self._env.render())
        expected = self._settings.frames_shape[1:]
        if image.dtype != np.uint8 or image.shape != expected:
            raise ValueError(f"rendered {image.dtype}{list(image.shape)}, expected uint8{list(expected)}")
        self._buffer[len(self._frame_steps)] = image
        self._frame_steps.append(self._step)

    def _state(self) -> Float32[np.ndarray, " state"]:
        state = np.asarray(self._env.state(), np.float32)
        if state.shape != (self._settings.spec.state_dim,) or not np.isfinite(state).all():
            raise ValueError(f"the state is {state}, expected {self._settings.spec.state_dim} finite values")
        return state


def attached_host(settings: WorkerSettings, memory_name: str) -> Host:
    """The worker of :class:`wmjax.sim.rollout_pool.RolloutPool`: it renders into the parent's shared memory."""
    memory = SharedMemory(memory_name)
    return Host(settings, np.ndarray(settings.frames_shape, np.uint8, buffer=memory.buf), memory)
