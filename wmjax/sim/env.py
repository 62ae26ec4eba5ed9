"""The LIBERO environment: episodes with an identity, observations with a spec, rendering on demand."""

import contextlib
import dataclasses
import io
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from wmjax.core.errors import UserError
from wmjax.core.files import hash_bytes
from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.data.observation import build_state
from wmjax.sim.disturbance import Disturbance, Drift, start_drift
from wmjax.sim.episode import START_NOISE, EpisodeId
from wmjax.sim.goals import SharedGoals
from wmjax.sim.libero import (
    ACTION_SPEC,
    INITIAL_STATES,
    OBSERVATION_SPEC,
    SUITES,
    import_libero,
    load_task,
    require_simulator,
    simulator_version,
    suite_tasks,
)
from wmjax.sim.placement import Motion, Poses, motion_since, object_poses
from wmjax.sim.render import Renderer
from wmjax.sim.stepping import control_step

SETTLE_STEPS = 10
PLACEMENTS = 100
"""Random placements that are tried for an episode."""
SETTLE_ACTION = np.array(ACTION_SPEC.hold)


class LiberoEnv:
    """One task of LIBERO in this process: an :class:`wmjax.sim.environment.Environment`.

    The observation is a function of the physical state: :meth:`state` and :meth:`render` read the simulation at the
    end of the control step, so restoring a state restores the observation.

    Attributes:
        suite: the suite's name.
        task_id: the task's index.
        spec: the observation spec, with ``simulator`` filled in.
        instruction: the task in words.
        predicates: LIBERO's goal, predicates that must all hold, such as ``("on", "akita_black_bowl_1", "plate_1")``.
        goal: the first of them.
        settled_state: the full simulator state in which the current episode started, see :meth:`sim_state`.
        settled_hash: the identity of that state, 16 hex digits.

    """

    observation_spec: ClassVar[ObservationSpec] = OBSERVATION_SPEC
    action_spec: ClassVar[ActionSpec] = ACTION_SPEC
    suites: ClassVar[Mapping[str, int]] = SUITES
    initial_states: ClassVar[int] = INITIAL_STATES
    expert: ClassVar[str] = "wmjax.recording.expert:Expert"

    def __init__(self, suite: str, task_id: int, spec: ObservationSpec) -> None:
        """Builds the simulation (seconds). OpenGL starts with the first :meth:`render`.

        Raises:
            UserError: missing packages, unsupported MuJoCo, unknown suite or task, or a spec of another simulator.

        """
        simulator = require_simulator(spec)
        task = load_task(suite, task_id)
        self.suite, self.task_id = suite, task_id
        self.spec = dataclasses.replace(spec, simulator=simulator)
        self.instruction = task.instruction
        self._initial_states = task.initial_states
        self._env = _build(task.bddl_file, spec.control_hz)
        self.predicates = tuple(map(tuple, self._env.parsed_problem["goal_state"]))
        self.goal: tuple[str, ...] = self.predicates[0]
        self._pristine = _pristine_model(self._env)
        self._renderer: Renderer | None = None
        self._drift: Drift | None = None
        self._shared_goals: SharedGoals | None = None
        self.settled_state = np.zeros(0)
        self.settled_hash = ""

    @classmethod
    def simulator(cls, spec: ObservationSpec | None = None) -> str:
        """The installed simulator's packages and versions.

        Raises:
            UserError: see :func:`wmjax.sim.libero.require_simulator`.

        """
        return simulator_version() if spec is None else require_simulator(spec)

    @property
    def num_initial_states(self) -> int:
        """The number of fixed initial states that the benchmark has for this task."""
        return len(self._initial_states)

    @property
    def sim(self) -> Any:
        """Robosuite's ``MjSim``, for privileged readers such as the scripted expert."""
        return self._env.sim

    @property
    def movable(self) -> tuple[str, ...]:
        """Names of the objects that are not fixed to the scene."""
        return tuple(self._env.objects_dict)

    def sentences(self) -> list[str]:
        """The sentences of all tasks of the suite, in order."""
        return [task.instruction for task in suite_tasks(self.suite)]

    def goals_held(self) -> tuple[int, ...] | None:
        """The tasks of the suite whose goals hold now, see :class:`wmjax.sim.goals.SharedGoals`."""
        if self._shared_goals is None:
            self._shared_goals = SharedGoals(self._env, self.suite, self.task_id)
        return self._shared_goals.held()

    def holds(self, predicate: tuple[str, ...]) -> bool:
        """Whether a predicate of the goal holds now, as LIBERO judges it."""
        return bool(self._env._eval_predicate(predicate))

    def joint(self, region: str) -> str | None:
        """Name of the joint that moves a region; None if nothing moves it, or if it is a fixture."""
        joints = getattr(self._env.object_sites_dict.get(region), "joints", None)
        return joints[0] if joints else None

    def fixture(self, region: str) -> str:
        """The fixture that a region belongs to; the name itself if it is none of a region."""
        return str(getattr(self._env.object_sites_dict.get(region), "parent_name", region))

    def is_articulated(self, name: str, state: str) -> bool:
        """Whether a fixture or region has a joint that makes a predicate such as ``turnon`` true."""
        properties = self._env.get_object(self.fixture(name)).object_properties
        return bool(properties.get("articulation", {}).get(f"default_{state}_ranges"))

    def articulation(self, name: str, state: str) -> tuple[float, float]:
        """The values (m or rad) of the joint of a fixture or region for which a predicate such as ``turnon`` holds."""
        articulation = self._env.get_object(self.fixture(name)).object_properties["articulation"]
        low, high = articulation[f"default_{state}_ranges"]
        return float(low), float(high)

    def reset(self, episode: EpisodeId) -> None:
        """Starts an episode: seed, reset, initial state or random placement, settling steps.

        A random placement in which objects do not stand is drawn again, see :mod:`wmjax.sim.placement`. The settled
        state depends on the episode's identity only, never on what this environment did before.

        Raises:
            UserError: the episode is of another task, an initial state that does not exist, or no placement of
                ``PLACEMENTS`` lets the objects stand.

        """
        self._check(episode)
        self._end_drift()
        for placement in range(PLACEMENTS):
            disturbed = self.settle(episode, placement).disturbed
            if episode.init == "benchmark" or not disturbed:
                break
        else:
            names = ", ".join(disturbed)
            raise UserError(f"episode {episode.key}: {names} were not at rest in any of {PLACEMENTS} placements")
        self.settled_state = self.sim_state()
        self.settled_hash = hash_bytes(self.settled_state.tobytes())[:16]

    def settle(self, episode: EpisodeId, placement: int) -> Motion:
        """Sets the ``placement``-th random placement of an episode and steps until it should have settled.

        Returns:
            How the objects have moved since; the caller refuses a placement that did not settle.

        """
        placed = self._place(episode, placement)
        for _ in range(SETTLE_STEPS):
            self.step(SETTLE_ACTION)
        return motion_since(self._env, placed)

    def _place(self, episode: EpisodeId, placement: int) -> Poses:
        """Puts everything where the episode begins, and returns the objects' poses there."""
        np.random.seed(episode.seed if placement == 0 else episode.stream(f"placement {placement}") % 2**32)
        _soft_reset(self._env, self._pristine)
        if episode.init == "benchmark":
            self._env.sim.set_state_from_flattened(self._initial_states[episode.index])
        else:
            self._vary_start(episode)
        self._env.sim.forward()
        return object_poses(self._env)

    def _vary_start(self, episode: EpisodeId) -> None:
        """Perturbs the arm's joints, with a separate random stream: placements stay LIBERO's for the same seed."""
        joints = self._env.robots[0]._ref_joint_pos_indexes
        noise = np.random.default_rng(episode.stream("start")).normal(size=len(joints))
        self._env.sim.data.qpos[joints] += START_NOISE * noise

    def disturb(self, disturbance: Disturbance, episode: EpisodeId) -> None:
        """Applies a disturbance to the episode that has just been reset, until the next reset.

        Raises:
            UserError: the disturbance does not fit the task.

        """
        self._end_drift()
        self._drift = start_drift(self._env, self.goal, disturbance, episode)

    def _end_drift(self) -> None:
        if self._drift is not None:
            self._drift.stop()
            self._drift = None

    def _check(self, episode: EpisodeId) -> None:
        if (episode.suite, episode.task_id) != (self.suite, self.task_id):
            raise UserError(f"episode {episode.key} is not of {self.suite} task {self.task_id}")
        if episode.init == "benchmark" and episode.index >= self.num_initial_states:
            raise UserError(f"episode {episode.key}: the task has {self.num_initial_states} initial states")

    def step(self, action: Float[np.ndarray, " action"]) -> bool:
        """One control step. Returns whether the task's goal holds afterwards, as LIBERO judges it."""
        if self._drift is not None:
            self._drift.push()
        success = control_step(self._env, np.asarray(action, np.float64))
        self._synchronise()
        return success

    def _synchronise(self) -> None:
        """Updates derived positions to the state in which integration ended; the physics does not depend on them."""
        import mujoco

        model, data = self._env.sim.model._model, self._env.sim.data._data
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)

    def render(self) -> UInt8[np.ndarray, "cameras size size 3"]:
        """Images of the spec's cameras in the current state.

        Raises:
            UserError: OpenGL does not start, or the spec names an unknown camera.

        """
        if self._renderer is None:
            warmstart = self._env.sim.data.qacc_warmstart.copy()
            self._renderer = Renderer(self._env.sim, self.spec)
            self._env.sim.data.qacc_warmstart[:] = warmstart  # opening a context solves the contacts once more
            self._synchronise()
        return self._renderer.render()

    def state(self) -> Float32[np.ndarray, "state"]:
        """Proprioception, see :func:`wmjax.data.observation.build_state`."""
        robot, data = self._env.robots[0], self._env.sim.data
        quaternion = data.get_body_xquat(robot.robot_model.eef_name)[[1, 2, 3, 0]]
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes]
        return build_state(data.site_xpos[robot.eef_site_id], quaternion, fingers)

    def sim_state(self) -> Float64[np.ndarray, " values"]:
        """The full state on which the future depends: physics, fixture poses, gripper command, controller goal."""
        return read_state(self._env)

    def restore(self, state: Float64[np.ndarray, " values"]) -> None:
        """Goes back to a state from :meth:`sim_state` of the same task; the future repeats bit for bit.

        Raises:
            UserError: the state is of another task or simulator.

        """
        write_state(self._env, state)

    def fixture_poses(self) -> dict[str, list[float]]:
        """Position (m) and wxyz quaternion of the fixtures, which the benchmark's initial states do not contain."""
        model = self._env.sim.model
        bodies = {name: model.body_name2id(f.root_body) for name, f in self._env.fixtures_dict.items()}
        return {name: [*map(float, model.body_pos[b]), *map(float, model.body_quat[b])] for name, b in bodies.items()}

    def close(self) -> None:
        """Frees the simulation and its OpenGL context."""
        if self._renderer is not None:
            self._renderer.make_current()
        self._renderer = None
        self._env.close()


def _build(bddl_file: str, control_hz: float) -> Any:
    """LIBERO's environment without cameras, observables or an automatic end."""
    with contextlib.redirect_stdout(io.StringIO()):
        wrapper = import_libero().wrapper.ControlEnv(
            bddl_file_name=bddl_file,
            use_camera_obs=False,
            has_offscreen_renderer=False,
            control_freq=control_hz,
            hard_reset=False,
            ignore_done=True,
        )
    env = wrapper.env
    for name in list(env._observables):  # observations are read from the simulation, see LiberoEnv.state
        env.modify_observable(observable_name=name, attribute="enabled", modifier=False)
    # A fresh environment's first hard reset loads the model a second time, and LIBERO then samples each drawer and
    # knob twice. Doing the same keeps our random placements those of the published protocol for the same seed.
    env.object_property_initializers *= 2
    return env


def read_state(env: Any) -> Float64[np.ndarray, " values"]:
    """The full state of a LIBERO environment (robosuite's, not the wrapper's), see :meth:`LiberoEnv.sim_state`."""
    import mujoco

    model, data = env.sim.model._model, env.sim.data._data
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    physics = np.zeros(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, physics, kind)
    gripper, controller = env.robots[0].gripper, env.robots[0].controller
    hidden = (gripper.current_action, controller.goal_pos, controller.goal_ori)
    return np.concatenate([physics, *(np.ravel(part) for part in (model.body_pos, model.body_quat, *hidden))])


def write_state(env: Any, state: Float64[np.ndarray, " values"]) -> None:
    """Puts a LIBERO environment (robosuite's) into a state of :func:`read_state`.

    Raises:
        UserError: the state is of another task or simulator.

    """
    import mujoco

    model, data = env.sim.model._model, env.sim.data._data
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    sizes = [mujoco.mj_stateSize(model, kind), model.body_pos.size, model.body_quat.size, 2, 3, 9]
    if state.shape != (sum(sizes),):
        raise UserError(f"simulator state has {state.size} values, this task {sum(sizes)}; use a state of this task")
    physics, position, quaternion, gripper, goal, goal_matrix = np.split(state, np.cumsum(sizes)[:-1])
    mujoco.mj_setState(model, data, physics, kind)
    model.body_pos[:], model.body_quat[:] = position.reshape(-1, 3), quaternion.reshape(-1, 4)
    robot = env.robots[0]
    robot.gripper.current_action = gripper.copy()
    robot.controller.goal_pos, robot.controller.goal_ori = goal.copy(), goal_matrix.reshape(3, 3).copy()
    robot.controller.new_update = True
    env.done = False
    env.sim.forward()
    mujoco.mj_setState(model, data, physics, kind)  # forward() replaced what the contact solver starts from
    env._post_process()  # for example the glow of a stove that is on


MOVED = ("body_pos", "body_quat", "site_rgba")
"""Arrays of the model that LIBERO changes: the poses of fixtures, and the glow of devices that are switched on."""


def _pristine_model(env: Any) -> dict[str, np.ndarray]:
    """:data:`MOVED` of the model as compiled, before any reset."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(env.model.get_xml())
    return {name: getattr(model, name).copy() for name in MOVED}


def _soft_reset(env: Any, pristine: Mapping[str, np.ndarray]) -> None:
    """Robosuite's reset without recompiling the model; it also undoes the changes that robosuite's reset leaves."""
    from robosuite.utils.errors import RandomizationError

    while True:  # a failed placement is drawn again, as LIBERO does
        for name, values in pristine.items():
            getattr(env.sim.model, name)[:] = values
        gripper = env.robots[0].gripper
        gripper.current_action = np.zeros_like(gripper.current_action)
        try:
            env.reset()
            return
        except RandomizationError:
            continue
