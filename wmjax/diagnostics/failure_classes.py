"""Why an episode failed, from the simulator's state after every control step: a class and a time line.

An episode counts by how its last hold of the object ended; if it never held the object, by what the hand did instead.
The thresholds below are those of the tasks' geometry: bowls are 10 cm wide, and LIBERO wants an object within 3 cm of
its place.
"""

import itertools
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from wmjax.recording.primitives.privileged_scene import UP
from wmjax.recording.watch import Moment

CLOSED, OPENED = 0.03, 0.05
"""Commanded finger distances (m) below which the gripper counts as commanded to close, above which to open."""
RISING = 0.005
"""A commanded distance (m) that rises by so much opens the fingers: it takes 8 control steps from closed to open."""
SQUEEZED = 0.002
"""Fingers that one object keeps this far (m) from their commanded distance hold it."""
LIFTED = 0.015
"""A held object this far (m) above where it was taken is lifted."""
LOST = 3
"""Control steps without a touch after which the object is no longer held."""
REST = 12
"""Control steps that an object is given to come to rest."""
FALLEN = 0.03
"""An object that falls this far (m) was dropped, not put down."""
AT_PLACE = 0.10
"""A hand or an object this near (m, sideways) to the place was meant to be there."""
PUSHED = 0.03
"""An object that moves this far (m) without being held was pushed."""
TILTED = np.cos(np.deg2rad(45.0))
"""Cosine of the lean of an object that has been knocked over, from how it stood at first."""
CARRIED = 0.06
"""Closed fingers that go this far (m, sideways) without the object carry nothing."""
STILL, STILL_STEPS = 0.015, 60
"""A hand that stays within this distance (m) for so many control steps is stuck."""
STARTED = 0.05
"""A hand that never comes this far (m) has not started."""


class Kind(StrEnum):
    """The classes of failures."""

    NEVER_STARTED = "never started"
    STUCK = "stuck"
    NEVER_CLOSED = "never closed"
    MISSED_GRASP = "missed grasp"
    EMPTY_CARRY = "empty carry"
    DROP = "drop"
    MISPLACEMENT = "misplacement"
    WRONG_OBJECT = "wrong object"
    KNOCKED_OVER = "knocked over"
    OUT_OF_TIME = "out of time"


class Event(NamedTuple):
    """Something that happened at a control step (from the settled state), in words."""

    step: int
    text: str


class Failure(NamedTuple):
    """Why an episode failed, the numbers behind it in words, and what happened before."""

    kind: Kind
    detail: str
    events: tuple[Event, ...]


class _Hold(NamedTuple):
    """One stretch of control steps in which the fingers held the object."""

    start: int
    end: int
    lifted: bool


def classify(moments: Sequence[Moment]) -> Failure:
    """The class of a failed episode and its time line.

    Args:
        moments: the state after settling and after each control step, in order.

    """
    track = _Track(moments)
    kind, detail = _kind(track)
    return Failure(kind, detail, tuple(sorted(_events(track), key=lambda event: event.step)))


class _Track:
    """The moments as arrays over control steps, and the stretches in which the object was held."""

    def __init__(self, moments: Sequence[Moment]) -> None:
        states = [moment.state for moment in moments]
        self.length = len(moments)
        self.hand = np.stack([s.hand for s in states])
        self.item = np.stack([s.item for s in states])
        self.place = np.stack([s.place for s in states])
        self.aside = np.array([s.aside for s in states])
        self.command = np.array([s.command for s in states])
        self.gap = np.array([moment.gap for moment in moments])
        upright = states[0].item_rotation.T @ UP
        self.lean = np.array([(s.item_rotation @ upright)[2] for s in states])
        self.others = {name: np.stack([m.others[name] for m in moments]) for name in moments[0].others}
        squeezed = np.array([s.opening - s.command for s in states])
        touching = np.array([s.touching for s in states])
        self.held = (squeezed > 0) & ((touching == 2) | ((touching > 0) & (squeezed > SQUEEZED)))
        self.holds = [self._hold(start, end) for start, end in _stretches(_bridged(self.held, LOST))]
        self.closings = self._crossings()

    def _hold(self, start: int, end: int) -> _Hold:
        rise = self.item[start : end + 1, 2] - self.item[start, 2]
        return _Hold(start, end, bool(rise.max() > LIFTED))

    def _crossings(self) -> list[int]:
        """The control steps at which the gripper was commanded to close, each after it had been open."""
        found, closed = [], bool(self.command[0] < CLOSED)
        for step, command in enumerate(self.command):
            if not closed and command < CLOSED:
                found.append(step)
            closed = command < CLOSED if not closed else command < OPENED
        return found

    @property
    def lifts(self) -> list[_Hold]:
        """The holds in which the object left what it stood on."""
        return [hold for hold in self.holds if hold.lifted]

    def after(self, step: int) -> int:
        """A step by which an object that is let go at ``step`` has come to rest."""
        return min(step + REST, self.length - 1)

    def slipped(self, hold: _Hold) -> bool:
        """Whether a hold ended although the fingers were commanded to stay closed."""
        commands = self.command[hold.end : hold.end + LOST + 2]
        return bool(commands.max() < commands[0] + RISING)

    def travelled(self) -> float:
        """The farthest (m) that the hand came from its start."""
        return float(np.linalg.norm(self.hand - self.hand[0], axis=1).max())

    def still_since(self) -> int | None:
        """The step since which the hand has stayed where it is at the end; None if that is not long ago."""
        away = np.flatnonzero(np.linalg.norm(self.hand - self.hand[-1], axis=1) > STILL)
        since = int(away[-1]) + 1 if len(away) else 0
        return since if self.length - since >= STILL_STEPS else None

    def carried_nothing(self, closing: int) -> int | None:
        """The step at which fingers that had closed on nothing were at the place; None if they never went there."""
        ends = np.flatnonzero(self.command[closing:] > OPENED)
        end = closing + int(ends[0]) if len(ends) else self.length
        span = slice(closing, end)
        went = np.linalg.norm((self.hand[span] - self.hand[closing])[:, :2], axis=1) > CARRIED
        there = np.linalg.norm((self.hand - self.place)[span, :2], axis=1) < AT_PLACE
        found = np.flatnonzero(went & there & ~self.held[span])
        return closing + int(found[0]) if len(found) else None


def _kind(track: _Track) -> tuple[Kind, str]:
    """The class, and the numbers behind it."""
    lifted = [name for name in track.others if _lifted_other(track, name) is not None]
    if lifted and not track.lifts:
        return Kind.WRONG_OBJECT, f"it lifted {lifted[0]}"
    if not track.held[-1] and track.lean[-1] < TILTED:
        return Kind.KNOCKED_OVER, f"the object lies, {_cm(track.aside[-1])} from its place, {_fall(track)}"
    if not track.lifts:
        return _without_a_hold(track)
    last = track.lifts[-1]
    if last.end >= track.length - 1 - LOST:
        kind = Kind.OUT_OF_TIME if track.still_since() is None else Kind.STUCK
        return kind, f"it still holds the object, {_cm(track.aside[-1])} from its place"
    return _end_of(track, last)


def _fall(track: _Track) -> str:
    """When an object that lies on its side at the end fell over, and whether the hand was near."""
    standing = np.flatnonzero(track.lean >= TILTED)
    step = int(standing[-1]) + 1 if len(standing) else 0
    return f"it fell at step {step} with the hand {_cm(track.gap[step])} away"


def _end_of(track: _Track, hold: _Hold) -> tuple[Kind, str]:
    """How a hold ended that was not the right end."""
    rest = track.after(hold.end)
    fall = float(track.item[hold.end, 2] - track.item[rest, 2])
    slipped, where = track.slipped(hold), f"{_cm(track.aside[rest])} from its place"
    if slipped or (fall > FALLEN and track.aside[hold.end] > AT_PLACE):
        return Kind.DROP, f"{'slipped' if slipped else 'let go'} {_cm(fall)} above where it came to rest, {where}"
    return Kind.MISPLACEMENT, f"put down {where}"


def _without_a_hold(track: _Track) -> tuple[Kind, str]:
    """What the hand did instead of lifting the object."""
    nearest = f"nearest {_cm(track.gap.min())} from the object"
    still = track.still_since()
    if track.travelled() < STARTED:
        return Kind.NEVER_STARTED, f"the hand moved {_cm(track.travelled())} at most"
    if not track.closings:
        if still is not None:
            return Kind.STUCK, f"the hand stands still since step {still}, {_cm(track.gap[-1])} from the object"
        return Kind.NEVER_CLOSED, nearest
    times = f"closed {len(track.closings)} {'time' if len(track.closings) == 1 else 'times'}"
    if any(track.carried_nothing(step) is not None for step in track.closings):
        return Kind.EMPTY_CARRY, f"{times}, {nearest}"
    held = ", held it but did not lift it" if track.holds else ""
    return Kind.MISSED_GRASP, f"{times}, {nearest}{held}"


def _events(track: _Track) -> list[Event]:
    """The events of a time line, unordered."""
    events = [_closing(track, step) for step in track.closings]
    for step in track.closings:
        if not any(hold.lifted and hold.start <= step + REST and hold.end >= step for hold in track.holds):
            there = track.carried_nothing(step)
            events += [] if there is None else [Event(there, "at the place with nothing between the fingers")]
    for hold in track.holds:
        events += _lift(track, hold) if hold.lifted else _touch(hold)
    events += _pushes(track)
    for name in track.others:
        if (lifted := _lifted_other(track, name)) is not None:
            events.append(Event(lifted, f"lifted {name}"))
    if (still := track.still_since()) is not None:
        events.append(Event(still, "the hand stands still from here on"))
    end = track.length - 1
    height = track.item[end, 2] - track.place[end, 2]
    return [*events, Event(end, f"end: object {_cm(track.aside[end])} from its place, {_cm(height)} above it")]


def _closing(track: _Track, step: int) -> Event:
    away = track.hand[step] - track.item[step]
    sideways, high = float(np.linalg.norm(away[:2])), float(away[2])
    return Event(
        step,
        f"closed {_cm(track.gap[step])} from the object (from its middle: {_cm(sideways)} sideways, {_cm(high)} up)",
    )


def _lift(track: _Track, hold: _Hold) -> list[Event]:
    """The lift of a hold, and its end."""
    rise = track.item[hold.start : hold.end + 1, 2] - track.item[hold.start, 2]
    events = [Event(hold.start + int(np.argmax(rise > LIFTED)), "lifted")]
    if hold.end >= track.length - 1 - LOST:
        return events
    rest = track.after(hold.end)
    fall = track.item[hold.end, 2] - track.item[rest, 2]
    verb = "slipped" if track.slipped(hold) else "dropped" if fall > FALLEN else "put down"
    height = f" from {_cm(fall)} up" if fall > 0.005 else ""
    return [*events, Event(hold.end, f"{verb}{height}, {_cm(track.aside[rest])} from its place")]


def _touch(hold: _Hold) -> list[Event]:
    """A hold that did not lift, unless it was but a touch."""
    steps = hold.end - hold.start + 1
    return [Event(hold.start, f"held for {steps} steps, not lifted")] if steps > LOST else []


def _pushes(track: _Track) -> list[Event]:
    """Objects that moved without being held, each reported once, when it had moved far enough."""
    free = ~_bridged(track.held, 2 * REST)
    events = []
    for start, end in _stretches(free):
        moved = _moved(track.item[start : end + 1])
        if moved is not None and not any(hold.lifted and 0 <= start - hold.end <= 2 * REST for hold in track.holds):
            away = _cm(track.gap[start + moved[0]])
            events.append(Event(start + moved[0], f"the object moves {_cm(moved[1])}, {away} from the hand"))
        if track.lean[start] >= TILTED and (down := np.flatnonzero(track.lean[start : end + 1] < TILTED)).size:
            step = start + int(down[0])
            events.append(Event(step, f"the object falls over, {_cm(track.gap[step])} from the hand"))
    for name, path in track.others.items():
        if (moved := _moved(path)) is not None:
            away = _cm(float(np.linalg.norm(path[moved[0]] - track.hand[moved[0]])))
            events.append(Event(moved[0], f"{name} moves {_cm(moved[1])}, {away} from the hand"))
    return events


def _moved(path: Float64[np.ndarray, "t 3"]) -> tuple[int, float] | None:
    """When a path leaves the neighbourhood of its start, and how far (m) it leads; None if it stays there."""
    away = np.linalg.norm(path - path[0], axis=1)
    return (int(np.argmax(away > PUSHED)), float(away.max())) if away.max() > PUSHED else None


def _lifted_other(track: _Track, name: str) -> int | None:
    """When the hand had lifted another object; None if it never did."""
    path = track.others[name]
    near = np.linalg.norm(path - track.hand, axis=1) < AT_PLACE + 0.02
    found = np.flatnonzero(near & (path[:, 2] - path[0, 2] > FALLEN) & (track.command < CLOSED))
    return int(found[0]) if len(found) > LOST else None


def _bridged(flags: np.ndarray, gap: int) -> np.ndarray:
    """Flags with every gap of at most ``gap`` between two set ones filled."""
    filled = flags.copy()
    places = np.flatnonzero(flags)
    for left, right in itertools.pairwise(places):
        if right - left <= gap + 1:
            filled[left:right] = True
    return filled


def _stretches(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of every run of set flags."""
    edges = np.diff(np.r_[0, flags.astype(int), 0])
    return list(zip(np.flatnonzero(edges == 1).tolist(), (np.flatnonzero(edges == -1) - 1).tolist(), strict=True))


def _cm(metres: float) -> str:
    return f"{100 * float(metres):.1f} cm"
