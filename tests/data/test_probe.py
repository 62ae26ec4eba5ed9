"""Probes of any features: what is planted is found, what is not there is not, unfit stores are refused."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.synthetic import make_store
from wmjax.analysis.ridge import token_rank
from wmjax.core.errors import UserError
from wmjax.data.store import TrainingStore
from wmjax.diagnostics.probe import find_camera, format_table, probe


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrainingStore:
    return make_store(tmp_path_factory.mktemp("store"), lengths=(40,) * 16)


def test_a_planted_signal_is_found_and_noise_is_not(store: TrainingStore) -> None:
    """Both kinds of features hold a mix of end-effector position and noise; in one of them other frames' positions."""
    rng, place = np.random.default_rng(0), np.random.default_rng(1).normal(size=(3, 2, 8))
    rows = store.state[store.frame_row][:, :3]
    order = iter(np.split(np.arange(len(rows)), len(store.episodes)))
    shuffled = rows[rng.permutation(len(rows))]

    def features(frames: np.ndarray, instruction: str) -> dict[str, np.ndarray]:
        own = next(order)
        noise = 0.1 * rng.normal(size=(len(own), 2, 8))
        return {
            name: np.einsum("fx,xtd->ftd", x[own], place) + noise for name, x in (("true", rows), ("other", shuffled))
        }

    table = probe([store], 0, [features])
    assert list(table) == ["pixels 8x8", "true", "other"]
    assert table["true"]["eef xyz"] > 0.95
    assert all(table[name]["eef xyz"] < 0.2 for name in ("pixels 8x8", "other"))  # images are noise too
    assert all(row["gripper"] < 0.2 for row in table.values())
    assert 1 < table["true"]["effective rank"] < 8
    text = format_table(table).splitlines()
    assert text[0] == "| features | eef xyz | gripper | effective rank |" and len(text) == 5


def test_stores_that_cannot_be_probed_are_refused(store: TrainingStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"camera 'sideview' is not in .*; choose from agentview, robot0_eye_in_hand"):
        find_camera([store], "sideview")
    assert find_camera([store, store], "robot0_eye_in_hand") == 1
    other = make_store(tmp_path / "other", image_size=112, lengths=(8, 8))
    with pytest.raises(UserError, match=r"image_size is 112 in .*other, 56 in .*; probe them apart"):
        find_camera([store, other], "agentview")
    odd = make_store(tmp_path / "odd", image_size=84, lengths=(8, 8))
    with pytest.raises(UserError, match=r"image_size is 84 in .*odd; give a multiple of 8 pixels"):
        find_camera([odd], "agentview")
    with pytest.raises(UserError, match="0 to score"):
        probe([make_store(tmp_path / "few", lengths=(8, 8))], 0, [])


def test_the_rank_of_tokens_counts_their_directions() -> None:
    spread = np.random.default_rng(0).normal(size=(500, 4, 16)) + 5.0
    assert 15 < token_rank(spread) <= 16.0
    assert token_rank(spread[..., :1] * np.ones(16) + 1e-4 * spread) < 1.1
    assert token_rank(np.ones((10, 3))) == 0.0
