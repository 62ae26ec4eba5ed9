"""Every class of failures from a made-up episode: a hand, a bowl and a plate as points."""

import dataclasses

import numpy as np
import pytest

from wmjax.diagnostics.failure_classes import Kind, classify
from wmjax.recording.primitives.privileged_scene import SceneState
from wmjax.recording.watch import Moment

PLACE = np.array([0.30, 0.0, 0.0])
BOWL = np.array([0.0, 0.0, 0.0])
OPEN, CLOSED = 0.08, 0.0
FLAT, ON_ITS_SIDE = np.eye(3), np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0.0]])


@dataclasses.dataclass
class Episode:
    """A made-up episode, extended by scripted stretches of control steps."""

    hand: np.ndarray
    item: np.ndarray
    ramekin: np.ndarray
    rotation: np.ndarray
    held: bool = False
    command: float = OPEN
    moments: list[Moment] = dataclasses.field(default_factory=list)

    def note(self) -> None:
        state = SceneState(
            hand=self.hand.copy(),
            rotation=np.eye(3),
            speed=0.0,
            opening=0.01 if self.held else self.command,
            closing=0.0,
            command=self.command,
            item=self.item.copy(),
            item_rotation=self.rotation,
            place=PLACE,
            touching=2 if self.held else 0,
            supported=False,
        )
        gap = float(np.linalg.norm(self.hand - self.item))
        self.moments.append(Moment(state, gap, {"ramekin": self.ramekin.copy()}))

    def go(self, goal, steps: int = 20, *, with_ramekin: bool = False) -> "Episode":
        for step in np.diff(np.linspace(self.hand, goal, steps + 1), axis=0):
            self.hand = self.hand + step
            self.item = self.item + step * self.held
            self.ramekin = self.ramekin + step * with_ramekin
            self.note()
        return self

    def close(self, *, on_object: bool = False) -> "Episode":
        self.command, self.held = CLOSED, on_object
        return self.wait(5)

    def open(self) -> "Episode":
        self.command, self.held = OPEN, False
        return self.wait(5)

    def lose(self, fall: float) -> "Episode":
        """The object falls out of the fingers without a new command."""
        self.held = False
        self.item = self.item - [0, 0, fall]
        return self.wait(5)

    def wait(self, steps: int) -> "Episode":
        for _ in range(steps):
            self.note()
        return self


@pytest.fixture
def episode() -> Episode:
    made = Episode(np.array([0.0, 0.0, 0.25]), BOWL.copy(), np.array([0.0, 0.2, 0.0]), FLAT)
    made.note()
    return made


def up(point, height: float = 0.15) -> np.ndarray:
    return np.add(point, (0, 0, height))


def grasped(episode: Episode) -> Episode:
    return episode.go(BOWL).close(on_object=True).go(up(BOWL))


def test_a_hand_that_does_not_move_never_started(episode: Episode) -> None:
    failure = classify(episode.go([0.0, 0.0, 0.23]).wait(100).moments)
    assert failure.kind is Kind.NEVER_STARTED and failure.detail == "the hand moved 2.0 cm at most"


def test_a_hand_that_stops_on_its_way_is_stuck(episode: Episode) -> None:
    failure = classify(episode.go([0.0, 0.0, 0.05]).wait(100).moments)
    assert failure.kind is Kind.STUCK and "5.0 cm from the object" in failure.detail


def test_a_hand_that_hovers_never_closed(episode: Episode) -> None:
    for _ in range(4):
        episode.go([0.0, 0.05, 0.05]).go([0.0, -0.05, 0.05])
    assert classify(episode.moments).kind is Kind.NEVER_CLOSED


def test_fingers_that_close_on_nothing_miss(episode: Episode) -> None:
    failure = classify(episode.go([0.0, 0.04, 0.0]).close().go([0.0, 0.04, 0.2]).open().moments)
    assert failure.kind is Kind.MISSED_GRASP and failure.detail.startswith("closed 1 time, nearest 4.0 cm")
    assert any("closed 4.0 cm from the object" in event.text for event in failure.events)


def test_a_hold_without_a_lift_is_a_missed_grasp(episode: Episode) -> None:
    failure = classify(episode.go(BOWL).close(on_object=True).lose(0.0).go(up(BOWL)).moments)
    assert failure.kind is Kind.MISSED_GRASP and "did not lift" in failure.detail


def test_closed_fingers_that_go_to_the_place_carry_nothing(episode: Episode) -> None:
    failure = classify(episode.go([0.0, 0.04, 0.0]).close().go([0.0, 0.04, 0.2]).go(up(PLACE)).open().moments)
    assert failure.kind is Kind.EMPTY_CARRY
    assert any("nothing between the fingers" in event.text for event in failure.events)


def test_an_object_that_falls_on_the_way_is_dropped(episode: Episode) -> None:
    failure = classify(grasped(episode).go([0.12, 0.0, 0.15]).lose(0.15).go(up(PLACE)).wait(9).moments)
    assert (
        failure.kind is Kind.DROP
        and failure.detail == "slipped 15.0 cm above where it came to rest, 18.0 cm from its place"
    )
    assert [event.text.split()[0] for event in failure.events] == ["closed", "lifted", "slipped", "end:"]


def test_an_object_put_down_beside_its_place_is_misplaced(episode: Episode) -> None:
    beside = np.add(PLACE, (0.0, 0.045, 0.0))
    failure = classify(grasped(episode).go(up(beside)).go(beside).open().go(up(beside)).moments)
    assert failure.kind is Kind.MISPLACEMENT and failure.detail == "put down 4.5 cm from its place"


def test_what_it_lifts_instead_is_the_wrong_object(episode: Episode) -> None:
    episode.go(episode.ramekin).close().go(up(episode.ramekin), with_ramekin=True).go(up(PLACE), with_ramekin=True)
    failure = classify(episode.moments)
    assert failure.kind is Kind.WRONG_OBJECT and "ramekin" in failure.detail


def test_an_object_on_its_side_was_knocked_over(episode: Episode) -> None:
    episode.go([0.0, 0.05, 0.0])
    episode.rotation = ON_ITS_SIDE
    failure = classify(episode.go(up(BOWL)).close().open().moments)
    assert failure.kind is Kind.KNOCKED_OVER
    assert "it fell at step 21 with the hand 4.8 cm away" in failure.detail
    assert any("the object falls over" in event.text for event in failure.events)


def test_an_object_that_is_never_let_go_is_stuck(episode: Episode) -> None:
    failure = classify(grasped(episode).go(up(PLACE)).wait(80).moments)
    assert failure.kind is Kind.STUCK and failure.detail.startswith("it still holds the object")


def test_an_object_that_is_carried_to_the_end_is_out_of_time(episode: Episode) -> None:
    failure = classify(grasped(episode).go([0.25, 0.0, 0.15]).moments)
    assert failure.kind is Kind.OUT_OF_TIME and failure.detail == "it still holds the object, 5.0 cm from its place"


def test_fingers_that_have_begun_to_open_let_go(episode: Episode) -> None:
    beside = np.add(PLACE, (0.0, 0.045, 0.0))
    grasped(episode).go(up(beside)).go(beside)
    episode.held, episode.command = False, 0.012
    failure = classify(episode.wait(2).open().go(up(beside)).moments)
    assert failure.kind is Kind.MISPLACEMENT


def test_the_last_hold_decides(episode: Episode) -> None:
    grasped(episode).go([0.12, 0.0, 0.15]).lose(0.15).open().go(episode.item).close(on_object=True).go(up(episode.item))
    beside = np.add(PLACE, (0.0, 0.05, 0.0))
    failure = classify(episode.go(up(beside)).go(beside).open().go(up(beside)).moments)
    assert failure.kind is Kind.MISPLACEMENT
    assert [event.text.split()[0] for event in failure.events].count("lifted") == 2
