"""Which episode a free slot takes next: one queue across tasks, with few changes of task per worker."""

from collections import deque
from collections.abc import Iterable

from wmjax.sim.episode import EpisodeId

Task = tuple[str, int]


class Schedule:
    """Hands out episodes. Changing a worker's task rebuilds its environment (seconds), so a slot keeps its task
    while it has episodes, then takes an untouched task, and only at the end helps another slot with its task.
    """

    def __init__(self, episodes: Iterable[EpisodeId]) -> None:
        self._queues: dict[Task, deque[EpisodeId]] = {}
        for episode in episodes:
            self._queues.setdefault((episode.suite, episode.task_id), deque()).append(episode)
        self._task: dict[int, Task] = {}

    def take(self, slot: int) -> EpisodeId | None:
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

    def put_back(self, episode: EpisodeId) -> None:
        """Returns an episode that must be tried again, to the end of its task's queue."""
        self._queues[episode.suite, episode.task_id].append(episode)
