"""What `wmjax.why` replays is what was recorded."""

from pathlib import Path
from typing import Any

import pytest

from wmjax.data.store import TrainingStore
from wmjax.pipeline import why
from wmjax.rollout.protocol import Protocol, load_protocol


class ReplayedError(Exception):
    """Ends a replay before the simulator starts; holds its protocol."""


@pytest.mark.parametrize("speed", [0.0, 0.04])
def test_the_target_moves_in_a_replay_as_in_the_recording(speed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the motion no demonstration of a moving target would succeed, and the simulator would be blamed."""
    store = TrainingStore(Path(__file__).parents[1] / "fixtures" / "two_episodes")
    for entry in store.episodes:
        entry["target_velocity"] = speed

    def evaluate(actor: Any, protocol: Protocol, *rest: Any, **options: Any) -> None:
        raise ReplayedError(protocol)

    monkeypatch.setattr(why, "evaluate", evaluate)
    with pytest.raises(ReplayedError) as raised:
        why.replay(store, load_protocol("spatial_moving_delay8"), 1)
    protocol = raised.value.args[0]
    assert (protocol.target_velocity, protocol.execution_delay) == (speed, 0)


def test_recordings_of_several_speeds_are_not_replayed() -> None:
    store = TrainingStore(Path(__file__).parents[1] / "fixtures" / "two_episodes")
    store.episodes[0]["target_velocity"] = 0.04
    assert why.replay(store, load_protocol("spatial_dev"), 1, per_task=2) is None
