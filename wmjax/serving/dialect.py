"""The interface between the server and a protocol of robot policies: one object per connection."""

import abc
from typing import ClassVar

from wmjax.core.registry import Registry
from wmjax.serving.request import Service
from wmjax.serving.sessions import Session

Frame = str | bytes
"""A WebSocket message: text or binary."""


class Dialect(abc.ABC):
    """One connection's side of a protocol. A port speaks one dialect, because clients of each wait for another start.

    Attributes:
        name: for the log.
        health: path of the plain HTTP health check, and its answer.
        every_step: whether clients wait for an answer at every control step, so that nothing is executed meanwhile.

    """

    name: ClassVar[str]
    health: ClassVar[tuple[str, str]] = ("/healthz", "OK\n")
    every_step: ClassVar[bool] = False

    def __init__(self, service: Service) -> None:
        self.service = service

    @classmethod
    def page(cls, path: str) -> str | None:
        """The answer to a plain HTTP request; None for the path of the WebSocket."""
        return cls.health[1] if path == cls.health[0] else None

    def greeting(self) -> Frame | None:
        """The server's first message; None if the client begins."""
        return None

    @abc.abstractmethod
    async def answer(self, frame: Frame, session: Session) -> Frame | None:
        """The answer to a message; None if it needs none.

        Raises:
            UserError: the message is wrong; it is sent to the client and the connection is closed.

        """

    def error(self, message: str) -> Frame:
        """The error that a client gets before the connection is closed."""
        return message


DIALECTS: Registry[Dialect] = Registry(
    "dialect",
    {
        "openpi": "wmjax.serving.dialects.openpi:OpenPI",
        "starvla": "wmjax.serving.dialects.starvla:StarVLA",
        "vla-eval": "wmjax.serving.dialects.vla_eval:VlaEval",
    },
)
"""What ``--listen NAME:PORT`` may name, beside any ``package.module:Class``."""
