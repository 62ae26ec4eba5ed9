"""The scripted expert's privileged view of a scene: poses, meshes, inverse kinematics, clearances.

Values that depend only on the compiled model are looked up once; planning then works on arrays.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from wmjax.sim.render import ROBOT_PREFIXES

Vector = Float64[np.ndarray, "3"]
Matrix = Float64[np.ndarray, "3 3"]

GRIP_SITE = "gripper0_grip_site"
ARM_JOINTS = tuple(f"robot0_joint{i}" for i in range(1, 8))
FINGER_JOINTS = ("gripper0_finger_joint1", "gripper0_finger_joint2")
FINGERS = ("gripper0_leftfinger", "gripper0_rightfinger")
OPEN_FINGERS = (0.04, -0.04)
UP: Vector = np.array([0, 0, 1.0])
HOME_JOINTS = (0.0, -1.61037389e-01, 0.0, -2.44459747, 0.0, 2.22675220, np.pi / 4)
"""The arm's joint angles (rad) in which LIBERO starts an episode; planning begins its search there."""
HAND = "gripper0_"
JOINT_MARGIN = 0.02
"""Distance (rad) that inverse kinematics keeps from the joint limits."""


def rotation_z(angle: float) -> Matrix:
    """Rotation by ``angle`` (rad) about the vertical."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def rotation_about(axis: Vector, angle: float) -> Matrix:
    """Rotation by ``angle`` (rad) about a unit axis (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def rotation_vector(rotation: Matrix) -> Vector:
    """The logarithm of a rotation: axis times angle (rad)."""
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
    skew = rotation - rotation.T
    vector = np.array([skew[2, 1], skew[0, 2], skew[1, 0]])
    return vector * 0.5 if angle < 1e-6 else vector * (angle / (2 * np.sin(angle)))


CIRCLE = 16
"""Points on a circle around an object at which to look up."""
AHEAD = tuple(rotation_z(np.deg2rad(angle)) for angle in (-45, 0, 45))
"""Directions, relative to its path, in which a carried object may hit something."""


class Solution(NamedTuple):
    """The result of inverse kinematics: residuals (m, rad) and the arm's seven joint angles."""

    position_error: float
    rotation_error: float
    joints: Float64[np.ndarray, "7"]

    @property
    def reached(self) -> bool:
        """Within 5 mm and 3 degrees."""
        return self.position_error <= 5e-3 and self.rotation_error <= 0.05


class SceneState(NamedTuple):
    """The expert's observation: a function of the simulator's state alone, however that state was reached.

    Attributes:
        hand: position (m) of the point between the fingertips.
        rotation: of the hand.
        speed: of the hand (m/s).
        opening: distance (m) between the fingers.
        closing: how fast (m/s) the fingers approach each other.
        command: the distance (m) between the fingers that the gripper is commanded to reach.
        item, item_rotation: position (m) and rotation of the object to be moved.
        place: where it should end up (m).
        touching: how many fingers touch the object, 0 to 2.
        supported: whether anything other than the robot touches the object.

    """

    hand: Vector
    rotation: Matrix
    speed: float
    opening: float
    closing: float
    command: float
    item: Vector
    item_rotation: Matrix
    place: Vector
    touching: int
    supported: bool

    @property
    def aside(self) -> float:
        """Distance (m, sideways) of the object from its place."""
        return float(np.linalg.norm((self.item - self.place)[:2]))

    @property
    def height(self) -> float:
        """Height (m) of the object above its place."""
        return float(self.item[2] - self.place[2])


class Scene:
    """Reads a LIBERO simulation; tries out arm configurations on a scratch copy of its data."""

    def __init__(self, sim: Any) -> None:
        """Args: ``sim`` is robosuite's ``MjSim``."""
        import mujoco

        self.model, self.data = sim.model._model, sim.data._data
        self._scratch = mujoco.MjData(self.model)
        model = self.model
        self._bodies = {model.body(i).name: i for i in range(model.nbody)}
        self._subtrees: dict[str, np.ndarray] = {}
        self._sites = {model.site(i).name: i for i in range(model.nsite)}
        self._grip = self._sites[GRIP_SITE]
        joints = [model.joint(name) for name in ARM_JOINTS]
        self._arm_qpos = np.array([j.qposadr[0] for j in joints])
        self._arm_dof = np.array([j.dofadr[0] for j in joints])
        limits = np.array([j.range for j in joints])
        self._arm_low, self._arm_high = limits[:, 0] + JOINT_MARGIN, limits[:, 1] - JOINT_MARGIN
        self._finger_qpos = np.array([model.joint(name).qposadr[0] for name in FINGER_JOINTS])
        self._finger_dof = np.array([model.joint(name).dofadr[0] for name in FINGER_JOINTS])
        self._finger_command = np.flatnonzero([model.actuator(i).name.startswith(HAND) for i in range(model.nu)])
        robot_body = np.array([name.startswith(ROBOT_PREFIXES) for name in self._bodies])
        self._robot_geom = robot_body[model.geom_bodyid]
        self._shoulder = model.body("robot0_link2").id

    def body(self, name: str) -> int:
        """Body id of a LIBERO object or fixture."""
        full = f"{name}_main"
        return self._bodies[full if full in self._bodies else name]

    def subtree(self, name: str) -> Int[np.ndarray, " bodies"]:
        """Ids of an object's bodies."""
        if name not in self._subtrees:
            self._subtrees[name] = self._find_subtree(name)
        return self._subtrees[name]

    def _find_subtree(self, name: str) -> Int[np.ndarray, " bodies"]:
        members = {self.body(name)}
        for body in range(min(members) + 1, self.model.nbody):
            if int(self.model.body_parentid[body]) in members:
                members.add(body)
        return np.array(sorted(members))

    def position(self, name: str) -> Vector:
        """World position (m) of an object's origin."""
        return self.data.xpos[self.body(name)].copy()

    def rotation(self, name: str) -> Matrix:
        """World rotation of an object."""
        return self.data.xmat[self.body(name)].reshape(3, 3).copy()

    def is_region(self, name: str) -> bool:
        """Whether a name is that of a region, and not of an object or a fixture."""
        return name in self._sites

    def place_position(self, name: str) -> Vector:
        """The final position of an object that is put onto ``name``, an object, fixture or region."""
        if self.is_region(name):
            return self.data.site_xpos[self._sites[name]].copy()
        return self.position(name)

    def region_box(self, region: str) -> tuple[Vector, Matrix]:
        """The middle of a region (m, world), and as rows the ways from there to the middles of three of its faces."""
        site = self._sites[region]
        axes = self.data.site_xmat[site].reshape(3, 3).T
        return self.data.site_xpos[site].copy(), self.model.site_size[site][:, None] * axes

    def vertices(self, name: str) -> Float[np.ndarray, "v 3"]:
        """World positions of all mesh vertices of an object."""
        import mujoco

        model, points = self.model, []
        mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
        for geom in np.flatnonzero(mesh & np.isin(model.geom_bodyid, self.subtree(name))):
            start = model.mesh_vertadr[model.geom_dataid[geom]]
            local = model.mesh_vert[start : start + model.mesh_vertnum[model.geom_dataid[geom]]]
            points.append(local @ self.data.geom_xmat[geom].reshape(3, 3).T + self.data.geom_xpos[geom])
        return np.concatenate(points)

    def base(self, name: str) -> float:
        """Distance (m) from an object's origin down to its lowest point when it stands upright."""
        local = (self.vertices(name) - self.position(name)) @ self.rotation(name)
        return float(-local[:, 2].min())

    def collision_points(self, name: str) -> Float[np.ndarray, "p 3"]:
        """World positions (m) of points on the boxes that an object collides with, at most 5 mm apart."""
        import mujoco

        model, points = self.model, [np.zeros((0, 3))]
        boxes = (model.geom_type == mujoco.mjtGeom.mjGEOM_BOX) & (model.geom_contype > 0)
        for geom in np.flatnonzero(boxes & np.isin(model.geom_bodyid, self.subtree(name))):
            half = model.geom_size[geom]
            axes = [np.linspace(-size, size, 2 + int(size / 0.0025)) for size in half]
            grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
            surface = grid[(np.abs(grid) >= half).any(axis=1)]
            points.append(surface @ self.data.geom_xmat[geom].reshape(3, 3).T + self.data.geom_xpos[geom])
        return np.concatenate(points)

    @property
    def hand_position(self) -> Vector:
        """World position (m) of the point between the fingertips."""
        return self.data.site_xpos[self._grip].copy()

    @property
    def hand_rotation(self) -> Matrix:
        """World rotation of the hand: x the closing direction, y across the palm, z out of the hand."""
        return self.data.site_xmat[self._grip].reshape(3, 3).copy()

    @property
    def finger_opening(self) -> float:
        """Distance (m) between the fingers."""
        left, right = self.data.qpos[self._finger_qpos]
        return float(left - right)

    def observe(self, item: str, target: str) -> SceneState:
        """The scene as the expert sees it; nothing in it depends on how the state was reached.

        Contacts are computed again: those of the simulation are of the last substep's start, or, after a state was
        restored, of that state.
        """
        import mujoco

        data = self.data
        touching, supported = self._contacts(item)
        jacobian = np.zeros((3, self.model.nv))
        mujoco.mj_jacSite(self.model, self.data, jacobian, None, self._grip)
        finger = data.qvel[self._finger_dof]
        command = data.ctrl[self._finger_command]
        return SceneState(
            hand=self.hand_position,
            rotation=self.hand_rotation,
            speed=float(np.linalg.norm(jacobian @ data.qvel)),
            opening=self.finger_opening,
            closing=float(finger[1] - finger[0]),
            command=float(command[0] - command[1]),
            item=self.position(item),
            item_rotation=self.rotation(item),
            place=self.place_position(target),
            touching=touching,
            supported=supported,
        )

    def _contacts(self, name: str) -> tuple[int, bool]:
        """The number of fingers that touch an object, and whether anything other than the robot touches it."""
        import mujoco

        model, scratch = self.model, self._scratch
        scratch.qpos[:] = self.data.qpos
        mujoco.mj_kinematics(model, scratch)
        mujoco.mj_comPos(model, scratch)
        mujoco.mj_collision(model, scratch)
        geoms = scratch.contact.geom.reshape(-1, 2)
        bodies = model.geom_bodyid[geoms]
        item = np.isin(bodies, self.subtree(name))
        touching = sum(bool((item[:, ::-1] & np.isin(bodies, self.subtree(finger))).any()) for finger in FINGERS)
        return touching, bool((item[:, ::-1] & ~item & ~self._robot_geom[geoms]).any())

    def room_below(self, name: str, offset: Vector | None = None) -> float:
        """Distance (m) from an object's origin down to the next surface; the object itself and the robot are ignored.

        Args:
            name: the object.
            offset: of the point (m, from the origin) from which to look down; 1 cm above the origin when None.

        Returns:
            The distance. It is negative if the surface is above the origin, and 1 m if there is none.

        """
        origin = self.position(name)
        found = self._look(name, origin + (0.01 * UP if offset is None else offset), -UP)
        return 1.0 if found is None else float(origin[2] - found[2])

    def way_out(self, name: str, height: float, room: float) -> Vector:
        """In which direction (unit vector, sideways) an object must move so that nothing above is in its way up.

        It is the direction away from what is above a circle 1 cm outside the object, up to ``height`` (m) above its
        origin. It is zero if nothing is, or if all of the circle is covered, and in a container: if less than ``room``
        (m) is free beside more than a quarter of the object.
        """
        origin, covered, walls = self.position(name) + 0.01 * UP, [], 0
        radius = float(np.linalg.norm((self.vertices(name) - origin)[:, :2], axis=1).max())
        for angle in np.linspace(0, 2 * np.pi, CIRCLE, endpoint=False):
            direction = np.array([np.cos(angle), np.sin(angle), 0.0])
            above = self._look(name, origin + (radius + 0.01) * direction, UP)
            if above is not None and above[2] - origin[2] < height:
                covered.append(direction)
            beside = self._look(name, origin - 0.01 * UP, direction)
            walls += beside is not None and float(np.linalg.norm((beside - origin)[:2])) < radius + room
        if not 0 < len(covered) < CIRCLE or walls > CIRCLE // 4:
            return np.zeros(3)
        away = -np.mean(covered, axis=0)
        return away / max(float(np.linalg.norm(away)), 1e-9)

    def _look(self, name: str, start: Vector, direction: Vector) -> Vector | None:
        """The first surface (m, world) in a direction that is neither the object's nor the robot's."""
        import mujoco

        model, own = self.model, set(self.subtree(name).tolist())
        geom = np.full(1, -1, np.int32)
        for _ in range(30):
            distance = mujoco.mj_ray(model, self.data, start, direction, None, 1, -1, geom)
            if geom[0] < 0:
                return None
            start = start + distance * direction
            if int(model.geom_bodyid[geom[0]]) not in own and not self._robot_geom[geom[0]]:
                return start
            start = start + 1e-4 * direction
        return None

    def room_ahead(self, name: str, towards: Vector, distances: Sequence[float]) -> float:
        """The least of :meth:`room_below` over points in front of an object on its way to ``towards`` (m, world).

        ``distances`` are those of the points from the object's origin (m, sideways).
        """
        way = ((towards - self.position(name)) * [1, 1, 0]).astype(float)
        way = way / max(float(np.linalg.norm(way)), 1e-9)
        points = [turn @ way * distance + 0.12 * UP for turn in AHEAD for distance in distances]
        return min(self.room_below(name, point) for point in points)

    @functools.cached_property
    def home_rotation(self) -> Matrix:
        """The hand's rotation in :data:`HOME_JOINTS`."""
        import mujoco

        self._scratch.qpos[:] = self.data.qpos
        self._scratch.qpos[self._arm_qpos] = HOME_JOINTS
        mujoco.mj_kinematics(self.model, self._scratch)
        return self._scratch.site_xmat[self._grip].reshape(3, 3).copy()

    @property
    def shoulder_position(self) -> Vector:
        """World position (m) of the arm's shoulder."""
        return self.data.xpos[self._shoulder].copy()

    def solve(
        self, position: Vector, rotation: Matrix, start: Float64[np.ndarray, "7"], iterations: int = 60
    ) -> Solution:
        """Damped least-squares inverse kinematics; leaves the scratch data, fingers open, in the solution."""
        import mujoco

        model, scratch = self.model, self._scratch
        scratch.qpos[:], scratch.qvel[:] = self.data.qpos, 0
        scratch.qpos[self._finger_qpos] = OPEN_FINGERS
        scratch.qpos[self._arm_qpos] = start
        linear, angular = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        error = np.zeros(6)
        for _ in range(iterations):
            mujoco.mj_kinematics(model, scratch)
            mujoco.mj_comPos(model, scratch)
            error[:3] = position - scratch.site_xpos[self._grip]
            error[3:] = rotation_vector(rotation @ scratch.site_xmat[self._grip].reshape(3, 3).T)
            if np.linalg.norm(error[:3]) < 1e-3 and np.linalg.norm(error[3:]) < 1e-2:
                break
            mujoco.mj_jacSite(model, scratch, linear, angular, self._grip)
            jacobian = np.vstack([linear, angular])[:, self._arm_dof]
            change = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + 1e-4 * np.eye(6), error)
            change *= min(1.0, 0.3 / max(float(np.linalg.norm(change)), 1e-12))
            scratch.qpos[self._arm_qpos] = np.clip(scratch.qpos[self._arm_qpos] + change, self._arm_low, self._arm_high)
        norms = float(np.linalg.norm(error[:3])), float(np.linalg.norm(error[3:]))
        return Solution(*norms, scratch.qpos[self._arm_qpos].copy())

    def clearance_violation(self, grasped: str, clearance: float) -> float:
        """By how much (m) the robot, in the scratch configuration, comes closer than ``clearance`` to anything.

        The object to be grasped may be touched but not penetrated.
        """
        import mujoco

        model, scratch = self.model, self._scratch
        robot = np.flatnonzero(self._robot_geom)
        margins = model.geom_margin[robot].copy()
        model.geom_margin[robot] = clearance
        try:
            mujoco.mj_kinematics(model, scratch)
            mujoco.mj_comPos(model, scratch)
            mujoco.mj_collision(model, scratch)
        finally:
            model.geom_margin[robot] = margins
        pairs, distance = scratch.contact.geom, scratch.contact.dist
        is_robot = self._robot_geom[pairs]
        other = np.where(is_robot[:, 0], pairs[:, 1], pairs[:, 0])
        mixed = is_robot[:, 0] != is_robot[:, 1]
        touching = np.isin(model.geom_bodyid[other], self.subtree(grasped))
        violation = np.where(touching, -distance, clearance - distance)[mixed]
        return max(0.0, float(violation.max(initial=0.0)))
