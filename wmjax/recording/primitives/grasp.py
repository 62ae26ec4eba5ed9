"""The choice of a grasp: candidates in order of preference, checked by kinematics and clearances."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64

from wmjax.recording.primitives.privileged_scene import (
    HOME_JOINTS,
    UP,
    Matrix,
    Scene,
    Vector,
    rotation_about,
    rotation_vector,
    rotation_z,
)

RIMS = {"bowl": (0.046, 0.034), "plate": (0.060, 0.009)}
"""Radius and height (m, from the origin) at which the fingers close on the rim of LIBERO's bowls and plates."""
MAX_OPENING = 0.078
"""Largest width (m) that fits between the fingers."""
WALL_WIDTH, WALL_SLAB = 0.035, 0.012
"""Largest width (m) of a part that is gripped by itself, and how near (m) it is to a line through the middle."""
WALL_BAND = 0.03
"""Height (m) of the band below the top in which walls are looked for."""
WALL_DEPTH = 0.022
"""How far (m) below the top of a wall the fingertips close."""
FINGER_HALF = 0.011
"""Half the width (m) of a finger."""
MAX_NECK = 0.068
"""Largest width (m) of a narrow part of an object whose widest part does not fit between the fingers."""
NECK_OFFSETS = tuple(np.arange(-15, 16) * 0.004)
"""How far (m) beside the object's origin a narrow part is looked for."""
NECK_DEPTH = 0.035
"""How far (m) below the top of such an object the fingers close."""
FINGER_ROOM = 0.025
"""A gap (m) that a finger fits into."""
MAX_TURN = np.deg2rad(100)
TILTS = (0.0, 0.12, 0.24, 0.36)
APPROACH_HEIGHTS = (0.10, 0.05, 0.02, 0.0)
HOPELESS = 10.0
"""A grasp of at least this cost does not succeed."""
PLACE_HEIGHTS = (0.02, 0.08)
HAND_LENGTH, WRIST_OFFSET = 0.2104, 0.088
"""The Panda's flange-to-fingertip length and wrist offset (m)."""
ARM_LENGTH = 0.7194
"""Shoulder to wrist with a straight elbow (m)."""


@dataclasses.dataclass(frozen=True)
class GraspStyle:
    """A way to grasp an object, which all demonstrations of a task have in common.

    Attributes:
        angle: where around the object (degrees, world), a multiple of 15.
        sign: which of the two opposite headings of the hand, 1 or -1.
        tilt: of the hand towards the robot (rad).

    """

    angle: int
    sign: int
    tilt: float


class NoGraspError(RuntimeError):
    """An object lies so that no hand pose could grasp it."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A hand pose to grasp with, and its prior cost before any check (lower is better)."""

    preference: float
    angle: float
    position: Vector
    rotation: Matrix
    style: GraspStyle
    shifted: bool


@dataclasses.dataclass(frozen=True)
class Grasp:
    """The chosen grasp.

    Attributes:
        angle: where around the object (rad).
        position: of the hand when closing (m, world).
        rotation: of the hand.
        offset: ``position`` seen from the object's origin.
        travel_height: height (m) at which the hand travels to above the object.
        cost: of the choice; from ``HOPELESS`` on several poses are out of reach or in the way.
        style: which way of grasping it is.
        shifted: whether it is shifted along the object from where the style usually grasps it.

    """

    angle: float
    position: Vector
    rotation: Matrix
    offset: Vector
    travel_height: float
    cost: float
    style: GraspStyle
    shifted: bool = False


def reach_height(scene: Scene, position: Vector, rotation: Matrix, margin: float = 0.012) -> float:
    """Highest hand position (m) above ``position`` before the Panda's elbow straightens."""
    shoulder, down = scene.shoulder_position, rotation[:, 2]
    flat = ((position - HAND_LENGTH * down - shoulder) * [1, 1, 0]).astype(float)
    distance = np.linalg.norm(flat) + WRIST_OFFSET * down[2]
    length = ARM_LENGTH - margin
    hand = -HAND_LENGTH * down[2] + WRIST_OFFSET * np.sqrt(max(0.0, 1 - down[2] ** 2))
    return float(shoulder[2] - hand + np.sqrt(max(length**2 - distance**2, 0.0)))


def plan_grasp(
    scene: Scene, item: str, target: str, *, rim: bool, clearance: float, style: GraspStyle | None = None
) -> Grasp:
    """The best way to grasp ``item`` and put it onto ``target``, wherever the arm is now.

    Args:
        scene: the scene now.
        item: object to grasp.
        target: object, fixture or region to put it onto.
        rim: grasp the rim (:data:`RIMS`) instead of the whole width.
        clearance: distance (m) that the hand should keep from everything else.
        style: taken unless its cost is :data:`HOPELESS` or more; the best of all then, or when None.

    Raises:
        NoGraspError: there is no candidate at all.

    """
    candidates = sorted(grasp_candidates(scene, item, rim), key=lambda c: c.preference)
    best, best_cost = None, np.inf
    for candidate in (c for c in candidates if c.style == style and not c.shifted):
        cost = obstacle_cost(scene, item, target, candidate, clearance, HOPELESS)
        if cost < HOPELESS:
            return _chosen(scene, item, candidate, candidate.preference + cost)
    for candidate in candidates:
        if candidate.preference >= best_cost:
            break
        limit = best_cost - candidate.preference
        cost = candidate.preference + obstacle_cost(scene, item, target, candidate, clearance, limit)
        if cost < best_cost:
            best, best_cost = candidate, cost
    if best is None:
        raise NoGraspError(f"no grasp candidate for {item}")
    return _chosen(scene, item, best, best_cost)


def grasp_now(scene: Scene, item: str, grasp: Grasp, *, rim: bool) -> Grasp | None:
    """The same way to grasp an object where it is now; None if it does not fit there.

    Args:
        scene: the scene now.
        item: object to grasp.
        grasp: planned when the object was about there.
        rim: grasp the rim (:data:`RIMS`) instead of the whole width.

    """
    for candidate in grasp_candidates(scene, item, rim, grasp.style):
        if candidate.shifted == grasp.shifted:
            return _chosen(scene, item, candidate, grasp.cost)
    return None


def _chosen(scene: Scene, item: str, best: Candidate, cost: float) -> Grasp:
    """A candidate with its travel height."""
    origin, position = scene.position(item), best.position
    reach = max(reach_height(scene, position, best.rotation), position[2] + 0.04)
    height = min(max(position[2] + 0.08, origin[2] + 0.12), reach)
    return Grasp(
        best.angle, position, best.rotation, position - origin, float(height), float(cost), best.style, best.shifted
    )


@dataclasses.dataclass(frozen=True)
class _Side:
    """A place to close the fingers: the closing line's angle, the hand's position, a penalty, a free shift."""

    angle: float
    position: Vector
    penalty: float
    shifts: tuple[Vector, ...]


def _tilt(scene: Scene, item: str) -> Matrix:
    """The tilt of an object, without its heading; upright if it lies on its side."""
    rotation = scene.rotation(item)
    if rotation[2, 2] < 0.8:
        rotation = np.eye(3)
    return rotation @ rotation_z(-np.arctan2(rotation[1, 0], rotation[0, 0]))


def _rim_sides(scene: Scene, item: str) -> Iterator[_Side]:
    """Every 15 degrees around a rim, at two depths."""
    origin, tilt = scene.position(item), _tilt(scene, item)
    radius, height = next(size for kind, size in RIMS.items() if kind in item)
    shifts = (np.zeros(3), tilt @ np.array([0, 0, 0.009]))
    for angle in np.deg2rad(np.arange(-180, 180, 15)):
        rim = np.array([np.cos(angle) * radius, np.sin(angle) * radius, height])
        yield _Side(float(angle), origin + tilt @ rim, 0.0, shifts)


def _width_sides(scene: Scene, item: str) -> Iterator[_Side]:
    """Every direction in which an object is narrow enough, measured in a band around the grasp height."""
    vertices = scene.vertices(item)
    low, high = vertices.min(0), vertices.max(0)
    height = high[2] - min(0.035, max(0.5 * (high[2] - low[2]), 0.012))
    band = vertices[np.abs(vertices[:, 2] - height) < 0.02]
    band = band if len(band) > 10 else vertices
    middle = (band[:, :2].max(0) + band[:, :2].min(0)) / 2
    for angle in np.deg2rad(np.arange(-90, 90, 15)):
        direction = np.array([np.cos(angle), np.sin(angle)])
        along = band[:, :2] @ direction
        width = along.max() - along.min()
        if width <= MAX_OPENING:
            centre = middle + direction * ((along.max() + along.min()) / 2 - middle @ direction)
            yield _Side(float(angle), np.r_[centre, height], 4 * max(0.0, width - 0.05), (np.zeros(3),))


def _fits(side: _Side, points: Float64[np.ndarray, "p 3"]) -> bool:
    """Whether the open fingers can come down at a place without touching what the object collides with there."""
    direction = np.array([np.cos(side.angle), np.sin(side.angle)])
    here = _between(points - side.position, direction, 0.0)
    return not len(here) or np.abs(here).max() <= MAX_NECK / 2 + 0.002


def _between(
    points: Float64[np.ndarray, "p 3"], direction: Float64[np.ndarray, "2"], offset: float
) -> Float64[np.ndarray, " n"]:
    """Where along ``direction`` the points lie that fingers ``offset`` (m) beside the origin have between them."""
    beside = points[:, :2] @ np.array([-direction[1], direction[0]])
    return points[(np.abs(beside - offset) < FINGER_HALF) & (points[:, 2] > -FINGER_HALF)][:, :2] @ direction


def _neck_sides(scene: Scene, item: str, points: Float64[np.ndarray, "p 3"]) -> Iterator[_Side]:
    """The places nearest to an object's origin in which it is narrow enough beside its widest part, such as a pot's."""
    height, origin = points[:, 2].max() - NECK_DEPTH, scene.position(item)
    middle = np.r_[origin[:2], height]
    for angle in np.deg2rad(np.arange(-90, 90, 15)):
        direction = np.array([np.cos(angle), np.sin(angle)])
        for offset in sorted(NECK_OFFSETS, key=abs):
            along = _between(points - middle, direction, offset)
            if len(along) and along.max() - along.min() <= MAX_NECK:
                centre = (along.max() + along.min()) / 2 * direction + offset * np.array([-direction[1], direction[0]])
                yield _Side(float(angle), middle + np.r_[centre, 0.0], 4 * abs(offset), (np.zeros(3),))
                break


def _wall_sides(scene: Scene, item: str) -> Iterator[_Side]:
    """The walls of an object that is too wide as a whole, such as a cup, which one finger is inside of.

    In every direction the band below the top is cut along a line through its middle. The vertices there are grouped
    where a finger fits between.
    """
    vertices = scene.vertices(item)
    middle, top = (vertices[:, :2].max(0) + vertices[:, :2].min(0)) / 2, float(vertices[:, 2].max())
    for angle, place in _parts(vertices[vertices[:, 2] > top - WALL_BAND, :2] - middle):
        yield _Side(angle, np.r_[middle + place, top - WALL_DEPTH], 0.0, (np.zeros(3),))


def _parts(points: Float64[np.ndarray, "n 2"]) -> Iterator[tuple[float, Float64[np.ndarray, "2"]]]:
    """The direction (rad) and the middle (m) of the innermost thin part of a horizontal section in every direction."""
    for angle in np.deg2rad(np.arange(-180, 180, 15)):
        direction = np.array([np.cos(angle), np.sin(angle)])
        along, beside = points @ direction, points @ np.array([-direction[1], direction[0]])
        line = np.sort(along[np.abs(beside) < WALL_SLAB])
        parts = np.split(line, np.flatnonzero(np.diff(line) > FINGER_ROOM) + 1)
        thin = [part for part in parts if len(part) and part[0] > 0 and part[-1] - part[0] <= WALL_WIDTH]
        if thin:
            yield float(angle), (thin[0][0] + thin[0][-1]) / 2 * direction


def _sides(scene: Scene, item: str, rim: bool) -> Iterator[_Side]:
    """The places to close the fingers: around a rim, across the whole object or a narrow part, a wall of a wide one."""
    if rim:
        yield from _rim_sides(scene, item)
        return
    whole = list(_width_sides(scene, item))
    points = scene.collision_points(item)
    fitting = [side for side in whole if _fits(side, points)]
    yield from fitting or (_neck_sides(scene, item, points) if whole else _wall_sides(scene, item))


def grasp_candidates(scene: Scene, item: str, rim: bool, only: GraspStyle | None = None) -> Iterator[Candidate]:
    """Hand poses for each side of an object: both headings, four tilts towards the robot, the side's shifts.

    With ``only`` they are those of that style.
    """
    radial = (scene.position(item) - scene.shoulder_position) * [1, 1, 0]
    tilt_axis = np.cross(UP, radial / np.linalg.norm(radial))
    for side in _sides(scene, item, rim):
        angle = round(np.rad2deg(side.angle))
        if only is not None and angle != only.angle:
            continue
        for sign in (1, -1):
            upright = facing_down(side.angle, sign)
            turn = float(np.linalg.norm(rotation_vector(upright @ scene.home_rotation.T)))
            if turn > MAX_TURN:
                continue
            for tilt in TILTS:
                rotation = rotation_about(tilt_axis, -tilt) @ upright
                style = GraspStyle(angle, sign, tilt)
                if only is not None and style != only:
                    continue
                for number, shift in enumerate(side.shifts):
                    preference = turn + tilt + side.penalty + 30 * float(np.linalg.norm(shift))
                    yield Candidate(preference, side.angle, side.position + shift, rotation, style, number > 0)


def facing_down(angle: float, sign: int) -> Matrix:
    """The hand pointing down, its fingers closing along ``angle`` (rad), in one of two headings: ``sign`` 1 or -1."""
    x = sign * np.array([np.cos(angle), np.sin(angle), 0.0])
    z = np.array([0, 0, -1.0])
    return np.stack([x, np.cross(z, x), z], axis=1)


def nearer_home(scene: Scene, closing: Vector, fingers: Vector) -> Matrix:
    """The hand whose fingers point in a direction and close along another one, in the heading that is nearer home."""
    both = [np.stack([sign * closing, np.cross(fingers, sign * closing), fingers], axis=1) for sign in (1, -1)]
    return max(both, key=lambda rotation: float(np.trace(rotation @ scene.home_rotation.T)))


def reach_cost(scene: Scene, item: str, positions: Sequence[Vector], rotation: Matrix, clearance: float) -> float:
    """The cost of moving the hand through positions (m, world) to an object: out of reach, or near to obstacles."""
    joints, bad = np.array(HOME_JOINTS), 0.0
    for position in positions:
        solution = scene.solve(position, rotation, joints)
        joints = solution.joints
        bad += not solution.reached
        bad += 10 * scene.clearance_violation(item, clearance)
    return min(5 * bad, 2 * HOPELESS)


def obstacle_cost(scene: Scene, item: str, target: str, candidate: Candidate, clearance: float, limit: float) -> float:
    """The cost of a candidate: it counts poses out of reach, obstacles, and an elbow that straightens.

    The cost only grows while poses are checked; checking stops when it has reached ``limit``.
    """
    position, rotation = candidate.position, candidate.rotation
    carried = scene.place_position(target) + position - scene.position(item)
    joints = np.array(HOME_JOINTS)
    bad, elbow = 0.0, -9.0
    for height in APPROACH_HEIGHTS:
        solution = scene.solve(position + height * UP, rotation, joints)
        joints = solution.joints
        elbow = max(elbow, float(joints[3]))
        violation = scene.clearance_violation(item, clearance)
        bad += (not solution.reached) * 1.0 + (0.3 + 30 * min(violation, 0.03) if violation > 0 else 0.0)
        if _total(bad, elbow) >= limit:
            return _total(bad, elbow)
    for height in PLACE_HEIGHTS:
        solution = scene.solve(carried + height * UP, rotation, joints)
        elbow = max(elbow, float(solution.joints[3]))
        bad += (not solution.reached) * 0.5
    return _total(bad, elbow)


def _total(bad: float, elbow: float) -> float:
    """Sum of a candidate's penalties and the cost of an elbow angle (rad) near straight, where the arm is weak."""
    return 2.0 * max(0.0, elbow + 1.2) + 5 * (bad + max(0.0, elbow + 0.9))
