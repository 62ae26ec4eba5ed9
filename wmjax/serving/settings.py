"""The settings of the server: addresses, limits and batches.

The module imports none of the packages of ``wmjax[serve]``; building the settings does, because a dialect does.
"""

import dataclasses
import ipaddress
from typing import TYPE_CHECKING, Annotated, get_args

from wmjax.core.errors import UserError
from wmjax.core.handover import Realtime, require_delay
from wmjax.core.options import Short
from wmjax.core.settings import Count, Depth, Range, Seed, Settings, parse_integer, quoted

if TYPE_CHECKING:
    from wmjax.serving.dialect import Dialect


@dataclasses.dataclass(frozen=True)
class ServeSettings(Settings, section="serve"):
    """The settings of the server.

    Attributes:
        host: address to listen on.
        listen: ``DIALECT:PORT``, each with its own port.
        max_batch: rows of the policy's fixed batch.
        max_wait_ms: how long a decision waits for others to share a batch.
        horizon: control steps between two decisions of a client; None is the whole chunk.
        execution_delay: control steps between an observation and the execution of the actions chosen on it.
        realtime: how a chunk continues what is executed meanwhile, as in :class:`wmjax.rollout.protocol.Protocol`.
        max_sessions: connections at once, over all ports.
        idle_s: seconds without a message (or without reading an answer) after which a connection is closed.
        max_message: bytes of a message.
        seed: of the policy's noise.
        api_key: what clients must show; needed on any address but loopback.

    """

    host: str = "127.0.0.1"
    listen: tuple[str, ...] = ("openpi:8000",)
    max_batch: Annotated[int, Range(1, 10_000)] = 1
    max_wait_ms: Annotated[float, Range(0, 1_000)] = 2.0
    horizon: Depth | None = None
    execution_delay: Annotated[int, Range(0, 10_000)] = 0
    realtime: Realtime = "none"
    max_sessions: Annotated[int, Range(1, 100_000)] = 64
    idle_s: Annotated[float, Range(0, 1_000_000, above=True)] = 600.0
    max_message: Count = 16 * 2**20
    seed: Seed = 0
    api_key: str = dataclasses.field(default="", repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_realtime(self.listeners)
        if not is_loopback(self.host) and not self.api_key:
            raise UserError(
                f"host is {self.host!r}, which others can reach; set WMJAX_API_KEY to a key that clients must show, "
                "or listen on 127.0.0.1"
            )

    def _check_realtime(self, listeners: "list[tuple[type[Dialect], int]]") -> None:
        require_delay(self.realtime, self.execution_delay)
        if self.realtime == "none" and self.execution_delay:
            raise UserError(
                f"execution_delay is {self.execution_delay}, which means nothing with realtime 'none'; set realtime, "
                "or execution_delay to 0"
            )
        waiting = [dialect.name for dialect, _ in listeners if dialect.every_step]
        if self.realtime != "none" and waiting:
            raise UserError(
                f"realtime is {self.realtime!r}, but clients of {waiting[0]} wait for the action of every step; leave "
                "realtime out, or listen with another dialect"
            )

    @property
    def listeners(self) -> list[tuple[type["Dialect"], int]]:
        """Dialects and ports.

        Raises:
            UserError: an unknown dialect, no port, or a port twice.

        """
        found = [_listener(text) for text in self.listen]
        ports = [port for _, port in found if port]
        if len(set(ports)) != len(ports):
            raise UserError(f"listen is {', '.join(self.listen)}; give each dialect its own port")
        return found


def _megabytes(text: str) -> int:
    try:
        return int(float(text) * 2**20)
    except (ValueError, OverflowError):
        raise UserError(f"--max-message-mb is {text!r}; give a number of megabytes, such as 16") from None


SHORTS = {
    "host": Short("host", "address to listen on", str),
    "listen": Short("listen", "DIALECT:PORT, may be repeated", str, words=True),
    "max-batch": Short("max_batch", "decisions per call of the policy; 1 suits a CPU"),
    "max-wait-ms": Short("max_wait_ms", "how long a decision waits to share a call"),
    "horizon": Short("horizon", "control steps that clients execute of a chunk; all if not given"),
    "delay": Short("execution_delay", "control steps between an observation and the execution of its actions"),
    "realtime": Short("realtime", f"how a chunk continues what is executed meanwhile: {', '.join(get_args(Realtime))}"),
    "seed": Short("seed", "seed of the policy's noise"),
    "max-sessions": Short("max_sessions", "connections at once"),
    "idle-s": Short("idle_s", "seconds after which a silent client is dropped"),
    "max-message-mb": Short("max_message", "largest message, in megabytes; the setting counts bytes", _megabytes),
}
"""The settings that have a short option, by option."""


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listener(text: str) -> tuple[type["Dialect"], int]:
    # Imports msgpack, which comes with the extra [serve]: --help and the settings do without it.
    from wmjax.serving.dialect import DIALECTS

    name, _, port = text.rpartition(":")
    number = parse_integer(port)
    if number is None:
        raise UserError(f"listen is {quoted(text)}; write it as DIALECT:PORT, such as openpi:8000")
    if number > 65535:
        raise UserError(f"listen is {text!r}; a port is at most 65535, such as openpi:8000")
    return DIALECTS.resolve(name), number
