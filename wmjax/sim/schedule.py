"""Which episode a worker gets next: changing a worker's task rebuilds its environment, which takes seconds."""

from collections import deque
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

Task = tuple[str, int]


class OfTask(Protocol):
    """An item of a suite's task, such as an episode."""

    @property
    def suite(self) -> str:
        """The suite's name."""

    @property
    def task_id(self) -> int:
        """The task's number in it."""


T = TypeVar("T", bound=OfTask)


class Schedule(Generic[T]):
    """Hands out episodes. A slot keeps its task while it has episodes, then takes an untouched task, and only at the
    end helps another slot with its task.
    """

    def __init__(self, episodes: Iterable[T]) -> None:
        self._queues: dict[Task, deque[T]] = {}
        for episode in episodes:
            self._queues.setdefault((episode.suite, episode.task_id), deque()).append(episode)
        self._task: dict[int, Task] = {}

    def take(self, slot: int) -> T | None:
        """The slot's next episode, or None when the queue is empty."""
        waiting = [task for task, queue in self._queues.items() if queue]
        if not waiting:
            self._task.pop(slot, None)
            return None
        task = self._task.get(slot)
        if task not in waiting:
            taken = set(self._task.values())
            free = [task for task in waiting if task not in taken]
            task = max(free or waiting, key=lambda task: len(self._queues[task]))  # first of the longest
            self._task[slot] = task
        return self._queues[task].popleft()

    def put_back(self, episode: T) -> None:
        """Returns an episode that must be tried again, to the end of its task's queue."""
        self._queues[episode.suite, episode.task_id].append(episode)
