"""One connection to a policy that another program serves: the base of all dialects, and its requests."""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Float64, UInt8
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import ClientConnection, connect

from wmjax.core.errors import UserError
from wmjax.core.registry import Registry
from wmjax.serving.clients.conventions import Conventions
from wmjax.serving.packed import Limits, unpack
from wmjax.sim.episode import EpisodeId

LIMITS = Limits(size=64 * 2**20, depth=16, values=100_000)
"""Of what a server answers."""
OWN = "wmjax"
"""What ``server`` is in the greeting of ``python -m wmjax.serve``."""


@dataclasses.dataclass(frozen=True)
class View:
    """One requested decision, in the policy's conventions.

    Attributes:
        images: for each camera, the frames that fell due since the last decision, oldest first.
        state: None for a policy without one.
        instruction: what to do.
        episode: which one.
        step: control steps since its start.
        first: whether this is its first decision.

    """

    images: Sequence[UInt8[np.ndarray, "frames size size 3"]]
    state: Float64[np.ndarray, " state"] | None
    instruction: str
    episode: EpisodeId
    step: int
    first: bool


class Client(abc.ABC):
    """One connection. Requests and answers are separate calls, so that several connections work at once.

    Args:
        url: such as ``ws://127.0.0.1:8000``.
        key: shown as ``Authorization: Api-Key KEY``; empty for none.
        timeout_s: seconds to wait for an answer.

    Attributes:
        dialect: the name of its protocol, and the preset of conventions that its own clients follow.
        raw_gripper: whether a server of wmjax answers the environment's own gripper values in it.
        every_step: whether the protocol asks at every control step, independent of the policy's chunks.
        card: what the server says about itself.

    Raises:
        UserError: no server listens there, or it speaks another dialect.

    """

    dialect: ClassVar[str]
    raw_gripper: ClassVar[bool] = True
    every_step: ClassVar[bool] = False

    def __init__(self, url: str, key: str = "", timeout_s: float = Conventions.timeout_s) -> None:
        self.url, self.timeout_s = url, timeout_s
        self._stack = contextlib.ExitStack()
        headers = {"Authorization": f"Api-Key {key}"} if key else None
        try:
            opened = connect(
                url, compression=None, max_size=LIMITS.size, additional_headers=headers, open_timeout=30,
                ping_interval=None,
            )  # fmt: skip
            self._socket: ClientConnection = self._stack.enter_context(opened)
        except (OSError, InvalidHandshake, InvalidURI, EOFError, ValueError) as error:  # ValueError: no port or host
            raise UserError(f"cannot connect to {url} ({error}); start the server, or correct --policy") from None
        self.card: dict[str, Any] = {}

    @property
    def own(self) -> bool:
        """Whether it is a server of wmjax, which receives the episode's name and all frames."""
        return bool(self.card.get("server") == OWN)

    @abc.abstractmethod
    def greet(self) -> None:
        """Says what the protocol says first, and reads the server's :attr:`card`.

        Raises:
            UserError: the server speaks another dialect.

        """

    @abc.abstractmethod
    def ask(self, view: View, chosen: Conventions) -> None:
        """Requests the actions of a decision."""

    @abc.abstractmethod
    def answer(self) -> Float[np.ndarray, "steps action"]:
        """The answer to the previous request, in the policy's own conventions.

        Raises:
            UserError: the server refuses, fails, is gone, or answers something else than actions.

        """

    def implied(self) -> dict[str, Any]:
        """Settings of :class:`Conventions` that follow from the server's description of itself."""
        return {}

    def close(self) -> None:
        """Ends the connection."""
        self._stack.close()

    def _send(self, frame: bytes) -> None:
        try:
            self._socket.send(frame)
        except ConnectionClosed:
            raise self._lost() from None

    def _read(
        self,
        timeout_s: float | None = None,
        rebuild: Callable[[dict[Any, Any]], Any] | None = None,
        *,
        finite: bool = True,
    ) -> dict[str, Any]:
        """The next message, see :func:`wmjax.serving.packed.unpack`."""
        frame = self._receive(timeout_s)
        try:
            return unpack(frame, LIMITS, rebuild, finite=finite)
        except UserError as error:
            raise UserError(f"{self.url}: {error}") from None

    def _receive(self, timeout_s: float | None) -> bytes:
        """The next frame; text is an error in all dialects that are packed."""
        try:
            frame = self._socket.recv(self.timeout_s if timeout_s is None else timeout_s)
        except TimeoutError:
            raise UserError(
                f"{self.url} does not answer as the dialect {self.dialect}; choose another --dialect, or wait longer "
                "with --foreign.timeout_s"
            ) from None
        except ConnectionClosed:
            raise self._lost() from None
        if isinstance(frame, str):
            raise self._refused(frame)
        return frame

    def _refused(self, message: object) -> UserError:
        """The server's error in one line: the last one of a traceback."""
        lines = str(message).strip().splitlines() or ["nothing"]
        return UserError(f"{self.url} refuses: {lines[-1][:300]}")

    def _lost(self) -> UserError:
        return UserError(
            f"{self.url} closed the connection; look at the server's log, start it again and repeat the command, which "
            "continues with the next episode"
        )

    def _numbers(self, value: Any) -> Float[np.ndarray, "..."]:
        """Actions that were answered."""
        try:
            found = np.asarray(value, np.float64) if isinstance(value, list) else value
        except (ValueError, TypeError):
            found = None
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu" or not found.size:
            kind = type(value).__name__
            raise UserError(f"{self.url} answers no array of actions but {kind}; choose another --dialect")
        return found


CLIENTS: Registry[Client] = Registry(
    "dialect",
    {
        "openpi": "wmjax.serving.clients.openpi:OpenPIClient",
        "starvla": "wmjax.serving.clients.starvla:StarVLAClient",
        "vla-eval": "wmjax.serving.clients.vla_eval:VlaEvalClient",
    },
)
"""What ``--dialect`` may name, beside any ``package.module:Class``."""
