"""The server: listens on a port per dialect, accepts clients, and isolates one's errors from the others."""

import asyncio
import contextlib
import hmac
import http
import itertools
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from wmjax.core.errors import UserError
from wmjax.policy.policy_actor import Policy, PolicyActor
from wmjax.serving.batcher import Batcher
from wmjax.serving.dialect import Dialect, Frame
from wmjax.serving.packed import Limits
from wmjax.serving.request import Service
from wmjax.serving.sessions import Sessions
from wmjax.serving.settings import ServeSettings

INTERNAL_ERROR = 1011
"""The close code after an error, as openpi's server has it."""
MAX_ERROR = 500
"""Longest error that is sent to a client, in characters."""

log = logging.getLogger("wmjax.serve")


class PolicyServer:
    """Serves one policy; use it as an asynchronous context manager.

    Args:
        policy: for batches of ``settings.max_batch``, loaded for the horizon between two decisions.
        settings: how.
        card: which policy it is, for the clients.

    Raises:
        UserError: pending actions of a robot whose action before the first chunk is unknown, or of clients that wait.

    Attributes:
        addresses: where it listens, a dialect's name and a port each.

    """

    def __init__(self, policy: Policy, settings: ServeSettings, card: Mapping[str, Any] | None = None) -> None:
        self._settings, self._listeners = settings, settings.listeners
        horizon = policy.frames_per_decision * policy.observation_spec.frame_stride
        self.service = Service(
            policy.observation_spec,
            policy.action_spec,
            horizon,
            policy.frames_per_decision,
            policy.realtime,
            policy.pending_steps if policy.realtime == "none" else settings.execution_delay,
            policy.pending_steps,
            Limits(size=settings.max_message),
            {"server": "wmjax", "seed": settings.seed, **(card or {})},
        )
        _require_hold(self.service)
        _require_asynchronous(self.service, settings)
        self._actor = PolicyActor(policy, settings.seed)
        self._stack = contextlib.AsyncExitStack()
        self._numbers = itertools.count(1)
        self.addresses: list[tuple[str, int]] = []

    async def __aenter__(self) -> "PolicyServer":
        """Compiles the policy, then opens the ports.

        Raises:
            UserError: a port is taken, or the policy does not fit its horizon.

        """
        settings = self._settings
        self._batcher = Batcher(
            self._actor, settings.max_batch, settings.max_wait_ms / 1e3, lambda: self._sessions.count
        )
        self._sessions = Sessions(self._batcher, self.service, settings.max_sessions)
        await self._batcher.prepare(settings.max_sessions, self.service.horizon, self.service.action)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._batcher.close)
            for dialect, port in self._listeners:
                server = await stack.enter_async_context(await self._listen(dialect, port))
                self.addresses.append((dialect.name, next(iter(server.sockets)).getsockname()[1]))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _listen(self, dialect: type[Dialect], port: int) -> Server:
        async def handle(connection: ServerConnection) -> None:
            await self._converse(dialect(self.service), connection)

        def admit(connection: ServerConnection, request: HttpRequest) -> Response | None:
            return self._admit(dialect, connection, request)

        settings = self._settings
        try:
            # No web page may connect (each has an Origin), and a client has one message waiting, not sixteen.
            return await serve(
                handle, settings.host, port, origins=[None], process_request=admit, compression=None,
                max_size=settings.max_message, max_queue=1, ping_timeout=60, server_header="wmjax",
            )  # fmt: skip
        except OSError as error:
            raise UserError(
                f"cannot listen on {settings.host}:{port} ({error.strerror}); choose another port in --listen"
            ) from None

    def _admit(self, dialect: type[Dialect], connection: ServerConnection, request: HttpRequest) -> Response | None:
        """The answer to a plain HTTP request or to a client that may not enter; None for one that may."""
        if (page := dialect.page(request.path)) is not None:
            return connection.respond(http.HTTPStatus.OK, page)
        if key := self._settings.api_key:
            authorization = "\0".join(request.headers.get_all("Authorization"))
            if not hmac.compare_digest(authorization.encode("utf-8", "replace"), f"Api-Key {key}".encode()):
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, "send the header Authorization: Api-Key KEY\n")
        if self._sessions.count >= self._settings.max_sessions:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "all sessions are in use; try again later\n")
        return None

    async def _converse(self, dialect: Dialect, connection: ServerConnection) -> None:
        """One connection, from its greeting to its end."""
        number = next(self._numbers)
        log.info("connection %d: %s from %s", number, dialect.name, connection.remote_address)
        reason = "closed by the client"
        try:
            with self._sessions.open() as session:
                await self._send(connection, dialect.greeting())
                while True:
                    frame = await self._receive(connection)
                    await self._send(connection, await dialect.answer(frame, session))
        except ConnectionClosed as error:
            reason = str(error)
        except UserError as error:
            reason = str(error)[:MAX_ERROR]
            await self._refuse(connection, dialect.error(reason))
        except Exception:  # a bug must not stop other clients
            log.exception("connection %d", number)
            reason = "the server made a mistake; see its log"
            await self._refuse(connection, dialect.error(reason))
        log.info("connection %d: %s", number, reason)

    async def _receive(self, connection: ServerConnection) -> Frame:
        try:
            async with asyncio.timeout(self._settings.idle_s):
                return await connection.recv()
        except TimeoutError:
            raise UserError(f"no message for {self._settings.idle_s:g} s; connect again") from None

    async def _send(self, connection: ServerConnection, frame: Frame | None) -> None:
        if frame is None:
            return
        try:
            async with asyncio.timeout(self._settings.idle_s):
                await connection.send(frame)
        except TimeoutError:
            raise UserError(f"an answer was not read for {self._settings.idle_s:g} s; connect again") from None

    async def _refuse(self, connection: ServerConnection, frame: Frame) -> None:
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(10):
                await connection.send(frame)
                # While messages wait nothing more is read, so the client's answer to the close frame would not arrive.
                unread = asyncio.create_task(_discard(connection))
                try:
                    await connection.close(INTERNAL_ERROR, "see the message before")
                finally:
                    unread.cancel()


def _require_hold(service: Service) -> None:
    """Refuses pending actions if nothing says what is executed before the first chunk takes effect."""
    if service.pending_steps and not service.action.hold:
        always = service.realtime == "none"
        why = "the policy takes pending actions" if always else f"realtime is {service.realtime!r}"
        fix = "a policy without model.pending" if always else "it with realtime 'none'"
        raise UserError(
            f"{why}, but the policy's ActionSpec.hold is empty, so the actions before its first chunk are unknown; "
            f"serve {fix}"
        )


def _require_asynchronous(service: Service, settings: ServeSettings) -> None:
    """Refuses dialects whose clients execute nothing while they wait, for a policy that takes pending actions."""
    waiting = [dialect.name for dialect, _ in settings.listeners if dialect.every_step]
    if service.pending_steps and waiting:
        raise UserError(
            f"the policy takes {service.pending_steps} pending actions, but clients of {waiting[0]} wait for the "
            "action of every step; listen with another dialect"
        )


async def _discard(connection: ServerConnection) -> None:
    """Reads what a client still sends, until the connection is closed."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            await connection.recv()
