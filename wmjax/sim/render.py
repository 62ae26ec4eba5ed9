"""Rendering with fewer triangles, and only when an image is needed.

LIBERO draws about 300,000 triangles, twice because one surface reflects. The physics does not use the visual meshes,
so they can be thinned: vertices in the same grid cell are merged, and faces that degenerate are removed. The thinning
edits the compiled model in place and therefore survives soft resets.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.specs import ObservationSpec
from wmjax.data.observation import orient_image, resize_image
from wmjax.sim.preparation import egl_devices, why_not

MIN_FACES = 2000
"""Meshes with no more faces than this are left alone."""
ROBOT_CELL_FACTOR = 2.0
"""The smooth shells of the arm tolerate twice the cell size without a visible difference."""
ROBOT_PREFIXES = ("robot0", "gripper0", "mount0")


def simplify_mesh(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], cell: float
) -> tuple[Int[np.ndarray, "g 3"], Int[np.ndarray, " g"]]:
    """Vertex clustering on a grid.

    Args:
        vertices: positions (m).
        faces: vertex indices.
        cell: edge of a grid cell (m).

    Returns:
        The remaining faces, with vertices replaced by their cell's representative (the vertex nearest to the
        mean of the cell), and the index of the original face that each came from.

    """
    grid = np.floor((vertices - vertices.min(0)) / cell).astype(np.int64)
    _, cluster = np.unique(grid, axis=0, return_inverse=True)
    cluster = cluster.ravel()
    count = np.bincount(cluster)
    mean = np.stack([np.bincount(cluster, vertices[:, axis]) / count for axis in range(3)], axis=1)
    distance = ((vertices - mean[cluster]) ** 2).sum(axis=1)
    order = np.lexsort((distance, cluster))
    representative = order[np.r_[0, np.cumsum(count)[:-1]]]
    clustered = cluster[faces]
    a, b, c = clustered.T
    remaining = np.flatnonzero((a != b) & (b != c) & (a != c))
    # A cyclic key that keeps orientation: both sides of a thin wall survive, exact duplicates do not.
    start = np.argmin(clustered[remaining], axis=1)
    cyclic = np.stack([clustered[remaining][np.arange(len(remaining)), (start + i) % 3] for i in range(3)], axis=1)
    _, unique = np.unique(cyclic, axis=0, return_index=True)
    remaining = remaining[np.sort(unique)]
    return representative[clustered[remaining]].astype(np.int32), remaining


def simplify_model(model: Any, detail: float) -> int:
    """Thins the purely visual meshes of a compiled ``mujoco.MjModel`` in place.

    Args:
        model: the compiled model.
        detail: grid cell (m) for objects; the robot gets ``ROBOT_CELL_FACTOR`` times that.

    Returns:
        The number of faces removed.

    """
    import mujoco

    removed = 0
    geoms = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_MESH)
    collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    robot = np.array([model.body(i).name.startswith(ROBOT_PREFIXES) for i in range(model.nbody)])
    for mesh in np.unique(model.geom_dataid[geoms]):
        users = geoms[model.geom_dataid[geoms] == mesh]
        if model.mesh_facenum[mesh] <= MIN_FACES or collides[users].any():
            continue
        factor = ROBOT_CELL_FACTOR if robot[model.geom_bodyid[users]].all() else 1.0
        removed += _simplify_in_place(model, int(mesh), detail * factor)
    return removed


def _simplify_in_place(model: Any, mesh: int, cell: float) -> int:
    """Replaces one mesh's faces by fewer; returns the number of removed faces."""
    vertex, vertices = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    face, faces = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    old = slice(face, face + faces)
    new_faces, remaining = simplify_mesh(model.mesh_vert[vertex : vertex + vertices], model.mesh_face[old].copy(), cell)
    new = slice(face, face + len(remaining))
    model.mesh_face[new] = new_faces
    model.mesh_facenormal[new] = model.mesh_facenormal[old][remaining]
    if model.mesh_texcoordadr[mesh] >= 0:
        model.mesh_facetexcoord[new] = model.mesh_facetexcoord[old][remaining]
    model.mesh_facenum[mesh] = len(remaining)
    return faces - len(remaining)


class Renderer:
    """Draws the cameras of an :class:`ObservationSpec` from a robosuite simulation.

    Creating it starts OpenGL, so create it only in the process that renders and never before a fork.
    """

    def __init__(self, sim: Any, spec: ObservationSpec) -> None:
        """Args: ``sim`` is robosuite's ``MjSim``; its model is thinned in place.

        Raises:
            UserError: unknown camera, an unsupported render option, or OpenGL does not start.

        """
        _check_spec(sim, spec)
        self._sim, self._spec = sim, spec
        if spec.mesh_detail_mm > 0:
            simplify_model(sim.model._model, spec.mesh_detail_mm / 1000)
        self._context = _open_context(sim, spec)

    def make_current(self) -> None:
        """Makes this renderer's OpenGL context current: drawing and freeing act on the process's current context."""
        self._context.gl_ctx.make_current()

    def render(self) -> UInt8[np.ndarray, "cameras size size 3"]:
        """The cameras of the spec in its order, RGB, oriented."""
        self.make_current()
        size = self._spec.drawn_size or self._spec.image_size
        images = []
        for camera in self._spec.cameras:
            raw = self._sim.render(camera_name=camera, width=size, height=size)
            turned = orient_image(raw) if self._spec.rotation == 180 else raw
            images.append(resize_image(turned, self._spec.image_size))
        return np.stack(images)


def _check_spec(sim: Any, spec: ObservationSpec) -> None:
    for camera in spec.cameras:
        if camera not in sim.model.camera_names:
            raise unknown_name("camera", camera, sim.model.camera_names)
    if spec.rotation not in (0, 180):
        raise UserError(f"ObservationSpec.rotation is {spec.rotation}; the simulator renders 0 or 180")
    if (spec.resize_filter == "none") != (spec.drawn_size in (0, spec.image_size)):
        raise UserError(
            f"ObservationSpec.resize_filter is {spec.resize_filter!r} but drawn_size is {spec.drawn_size} for images "
            f"of {spec.image_size} px; convert the dataset again, which notes the size that it was drawn at"
        )


def _open_context(sim: Any, spec: ObservationSpec) -> Any:
    """Robosuite's offscreen context with the spec's render options."""
    import mujoco
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    try:
        with egl_devices():
            context = MjRenderContextOffscreen(sim, device_id=-1)
    except Exception as error:  # EGL, OSMesa and GLX each raise their own kinds
        raise why_not(error) from error
    context.vopt.geomgroup[0], context.vopt.geomgroup[1] = 0, 1  # visual, not collision geometry
    context.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = int(spec.reflection)
    return context
