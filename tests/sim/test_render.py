import numpy as np

from wmjax.sim.render import simplify_mesh


def _sphere(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A unit sphere's grid of vertices and outward triangles."""
    theta, phi = np.meshgrid(np.linspace(0.05, np.pi - 0.05, n), np.linspace(0, 2 * np.pi, n), indexing="ij")
    points = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1).reshape(-1, 3)
    a = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    return points, np.concatenate([np.stack([a, a + n, a + 1], 1), np.stack([a + 1, a + n, a + n + 1], 1)])


def _area_vectors(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return np.cross(b - a, c - a) / 2


def test_simplification_removes_faces_and_keeps_the_shape():
    vertices, faces = _sphere()
    new, kept = simplify_mesh(vertices, faces, cell=0.1)
    assert len(new) == len(kept) < len(faces) / 2
    turned = [min(face, face[1:] + face[:1], face[2:] + face[:2]) for face in new.tolist()]
    assert len({tuple(face) for face in turned}) == len(new)
    assert all(len(set(face)) == 3 for face in new.tolist())
    before, after = _area_vectors(vertices, faces), _area_vectors(vertices, new)
    np.testing.assert_allclose(np.linalg.norm(after, axis=1).sum(), np.linalg.norm(before, axis=1).sum(), rtol=0.05)
    outward = (after * vertices[new].mean(1)).sum(1)
    assert (outward > 0).mean() > 0.97  # slivers across a cell edge may turn


def test_a_grid_finer_than_the_mesh_changes_nothing():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    faces = np.array([[0, 1, 2], [0, 2, 1], [0, 1, 3]])  # the first two are both sides of one sheet
    new, kept = simplify_mesh(vertices, faces, cell=0.1)
    np.testing.assert_array_equal(new, faces)
    np.testing.assert_array_equal(kept, [0, 1, 2])


def test_a_mesh_within_one_cell_vanishes():
    vertices, faces = _sphere(10)
    assert len(simplify_mesh(vertices, faces, cell=10.0)[0]) == 0
