"""robosuite's control step without its repeated work, with the same result bit for bit.

robosuite evaluates the whole dynamics three times per physics step: before the controller, inside it, and in
``mj_step``. Positions, velocities and contacts are the same all three times. Only the contact solver must run three
times, because each run starts from the result of the previous one. ``tests/sim/test_stepping.py`` compares this with
robosuite's own ``step``.
"""

from typing import Any

import numpy as np
from jaxtyping import Float64


def control_step(env: Any, action: Float64[np.ndarray, " action"]) -> bool:
    """One control step of a LIBERO environment (robosuite's, not the wrapper's).

    Returns:
        Whether the goal holds, as LIBERO's ``step`` reports it.

    """
    import mujoco

    model, data, robot = env.sim.model._model, env.sim.data._data, env.robots[0]
    velocity = mujoco.mjtStage.mjSTAGE_VEL
    for substep in range(int(env.control_timestep / env.model_timestep)):
        mujoco.mj_step1(model, data)
        mujoco.mj_forwardSkip(model, data, velocity, 1)
        if robot.controller.new_update:  # False only right after a reset: the controller then keeps that pose
            mujoco.mj_forwardSkip(model, data, velocity, 1)
            _read_arm(robot, model, data)
        robot.control(action, policy_step=substep == 0)
        mujoco.mj_step2(model, data)
    env.timestep += 1
    env.cur_time += env.control_timestep
    env._post_process()
    return bool(env._check_success())


def _read_arm(robot: Any, model: Any, data: Any) -> None:
    """The values that ``Controller.update`` reads from the simulation, with each Jacobian computed once."""
    import mujoco

    controller, site = robot.controller, robot.eef_site_id
    linear, angular = np.zeros((3, model.nv)), np.zeros((3, model.nv))
    mujoco.mj_jacSite(model, data, linear, angular, site)
    controller.ee_pos = data.site_xpos[site].copy()
    controller.ee_ori_mat = data.site_xmat[site].reshape(3, 3).copy()
    controller.ee_pos_vel, controller.ee_ori_vel = np.dot(linear, data.qvel), np.dot(angular, data.qvel)
    controller.joint_pos = data.qpos[controller.qpos_index]
    controller.joint_vel = data.qvel[controller.qvel_index]
    controller.J_pos, controller.J_ori = linear[:, controller.qvel_index], angular[:, controller.qvel_index]
    controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
    mass = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, mass, data.qM)
    controller.mass_matrix = mass[controller.qvel_index, :][:, controller.qvel_index]
    controller.new_update = False
