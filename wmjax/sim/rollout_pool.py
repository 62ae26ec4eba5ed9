"""The pool of rollouts: each worker hosts a task's environment and writes its frames to shared memory."""

import functools
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from jaxtyping import UInt8

from wmjax.core.errors import UserError
from wmjax.sim.pool import STARTUP, Pool
from wmjax.sim.preparation import require_shared_memory
from wmjax.sim.worker import Command, Reply, WorkerSettings, attached_host


class RolloutPool(Pool[Command, Reply]):
    """``workers`` processes that each host an environment, addressed by slot 0..workers-1.

    Args:
        settings: what each worker hosts.
        workers: number of processes.
        timeout: seconds a command may take.
        startup: see :data:`wmjax.sim.pool.STARTUP`.

    """

    def __init__(
        self, settings: WorkerSettings, workers: int = 2, timeout: float = 120.0, startup: float = STARTUP
    ) -> None:
        if workers < 1:
            raise UserError(f"workers is {workers}; give at least 1")
        self._settings = settings
        self._memories: list[SharedMemory] = []
        size = int(np.prod(settings.frames_shape))
        require_shared_memory(size * workers)
        try:
            for _ in range(workers):
                self._memories.append(SharedMemory(create=True, size=size))
            makers = [functools.partial(attached_host, settings, memory.name) for memory in self._memories]
            super().__init__(makers, timeout, startup, settings.render_devices)
        except BaseException:
            self._free()
            raise

    def frames(self, slot: int, count: int) -> UInt8[np.ndarray, "count cameras height width 3"]:
        """A copy of the first ``count`` frames that the slot's last command rendered."""
        buffer = self._memories[slot].buf
        return np.ndarray(self._settings.frames_shape, np.uint8, buffer=buffer)[:count].copy()

    def close(self) -> None:
        """Ends all workers and frees the shared memory."""
        super().close()
        self._free()

    def _free(self) -> None:
        while self._memories:
            memory = self._memories.pop()
            memory.close()
            memory.unlink()
