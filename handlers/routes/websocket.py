"""The WebSocket route: who may come in, what the query asks for, and one connection's life on the clock.

The conversation is the kernel's, the bytes are the wire's. Here is what is between: credentials, the first frame's
wishes, heartbeats, the idle timeout, and the order in which a connection ends.
"""

import asyncio
import logging
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

from litestar import WebSocket
from litestar.handlers import WebsocketRouteHandler, websocket

from handlers.auth import origin_allowed, websocket_credentials_ok
from handlers.problems import log_unexpected
from handlers.routes.dependencies import Broadcaster
from handlers.server.sinks import EXTENSION, AsgiSink, ReadySink
from handlers.settings import Settings
from kernel import EventBroadcaster
from kernel.clients import (
    EVERYTHING,
    GOING_AWAY,
    IDLE_TIMEOUT,
    INTERNAL_ERROR,
    TRY_AGAIN_LATER,
    UNAUTHORIZED,
    Client,
    CloseReason,
    Patterns,
    Refused,
    Resume,
    patterns_from,
    sequence_from,
)
from kernel.log import AsgiEncoding, Encoding, WireEncoding
from kernel.messages import Error

__all__ = ["websocket_route"]

_logger = logging.getLogger(__name__)

# A client that sends without end must not keep the loop for itself.
_TURN_AFTER = 64
_NO_STATUS = 1005  # RFC 6455 section 7.4.1


class _Wishes(NamedTuple):
    """What a query asks for, and what of it cannot be used."""

    patterns: Patterns
    resume: Resume | None
    zlib: bool
    problems: list[str]


class _Encodings:
    """One encoding object for all who want the same: that is what makes them an audience."""

    def __init__(self, threshold: int, level: int) -> None:
        self._wire = {
            (zlib, deflate): WireEncoding(threshold if zlib else None, deflate=deflate, level=level)
            for zlib in (False, True)
            for deflate in (False, True)
        }
        self._asgi = {zlib: AsgiEncoding(threshold if zlib else None, level=level) for zlib in (False, True)}

    def of(self, sink: ReadySink | AsgiSink, *, zlib: bool) -> Encoding:
        return self._asgi[zlib] if isinstance(sink, AsgiSink) else self._wire[zlib, sink.deflates]


class _Clock:
    """One connection's heartbeats, idle timeout and greatest age, on one timer."""

    def __init__(self, broadcaster: EventBroadcaster, client: Client, settings: Settings) -> None:
        self._hub = broadcaster.hub
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._interval = settings.websocket_ping_interval_seconds
        self._idle = settings.websocket_idle_timeout_seconds
        now = self.heard_at = self._loop.time()
        self._beat_at = now + self._interval
        age = settings.websocket_max_age_seconds * random.uniform(0.8, 1.2)  # noqa: S311  spreads reconnects
        self._end_at = now + age if age else float("inf")
        self._timer = self._set()

    def heard(self) -> None:
        """Note that the client has sent something."""
        self.heard_at = self._loop.time()

    def stop(self) -> None:
        """End the timer."""
        self._timer.cancel()

    def _set(self) -> asyncio.TimerHandle:
        return self._loop.call_at(min(self._beat_at, self.heard_at + self._idle, self._end_at), self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        sink = self._client.sink
        if sink.blocked:
            # not read, so not silent; and nothing is sent on top
            self.heard_at = now
        if now >= self._end_at:
            sink.close(GOING_AWAY)
            return
        if now >= self.heard_at + self._idle:
            sink.close(IDLE_TIMEOUT)
            return
        if now >= self._beat_at:
            if not sink.blocked:
                self._hub.heartbeat(self._client)
            self._beat_at = now + self._interval
        self._timer = self._set()


def websocket_route(settings: Settings) -> WebsocketRouteHandler:
    """The route `/ws/events` for these settings."""
    encodings = _Encodings(settings.websocket_compression_threshold, settings.websocket_compression_level)

    @websocket("/ws/events")
    async def ws_events(socket: WebSocket[Any, Any, Any], broadcaster: Broadcaster) -> None:
        if broadcaster.draining:
            await _refuse(socket, 503)
            return
        if not origin_allowed(settings, _origin(socket)):
            await _refuse(socket, 403)
            return
        query: Mapping[str, str] = socket.query_params.dict()  # type: ignore[assignment]
        query = {name: values[-1] for name, values in query.items()}
        verdict = websocket_credentials_ok(
            settings,
            query=query,
            headers=socket.scope["headers"],
            subprotocols=socket.scope.get("subprotocols", []),
        )
        await socket.accept(subprotocols=verdict.subprotocol)
        socket.scope["headers"] = []  # read for the last time, and 1 kB of each idle connection
        broadcaster.counters.accepts += 1
        sink = _sink(socket, settings)
        cap = settings.websocket_max_connections
        refusal: CloseReason | None = None
        if not verdict.allowed:
            refusal = UNAUTHORIZED
        elif cap and broadcaster.connections >= cap:
            refusal = TRY_AGAIN_LATER
        code = INTERNAL_ERROR.code
        try:
            if refusal is not None:
                sink.close(refusal)
                code = await _until_gone(socket)
            else:
                wishes = _wishes(query)
                client = broadcaster.connect(
                    sink, encodings.of(sink, zlib=wishes.zlib), patterns=wishes.patterns, resume=wishes.resume
                )
                _logger.debug("%s joined", client.id)
                for problem in wishes.problems:
                    client.tell(Error("validation_error", f"Invalid query parameter: {problem}", {"reason": problem}))
                code = await _converse(socket, broadcaster, client, sink, settings)
                _logger.debug("%s left with %d", client.id, code)
        except Exception as error:
            # Litestar would close with a code of its own
            log_unexpected(error, f"on {socket.scope['path']}")
            sink.close(INTERNAL_ERROR)
        finally:
            broadcaster.counters.closed(code)
            if isinstance(sink, AsgiSink):
                sink.stop()

    return ws_events


async def _converse(
    socket: WebSocket[Any, Any, Any],
    broadcaster: EventBroadcaster,
    client: Client,
    sink: ReadySink | AsgiSink,
    settings: Settings,
) -> int:
    """Hear the client out until either side ends it; returns the close code."""
    hub = broadcaster.hub
    clock = _Clock(broadcaster, client, settings)
    sink.on_blocked = lambda: hub.fall_behind(client)
    if sink.blocked:
        hub.fall_behind(client)
    turn = 0
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return _code(message)
            if sink.blocked:
                await sink.drained()
            clock.heard()
            text: str | None = message.get("text")  # type: ignore[assignment]
            hub.receive(client, b"" if text is None else text)
            turn = (turn + 1) % _TURN_AFTER
            if not turn:
                await asyncio.sleep(0)
    finally:
        clock.stop()
        sink.on_blocked = None
        broadcaster.disconnect(client)


def _origin(socket: WebSocket[Any, Any, Any]) -> str | None:
    # not `socket.headers`: what that makes would stay as long as the connection
    return next((value.decode("latin-1") for name, value in socket.scope["headers"] if name == b"origin"), None)


async def _refuse(socket: WebSocket[Any, Any, Any], status: int) -> None:
    """Answer the upgrade with an HTTP status (ASGI's websocket.http.response extension where the server has it)."""
    if "websocket.http.response" not in (socket.scope.get("extensions") or {}):
        await socket.send({"type": "websocket.close", "code": 1013, "reason": ""})
        return
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await socket.send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await socket.send({"type": "websocket.http.response.body", "body": b"", "more_body": False})


async def _until_gone(socket: WebSocket[Any, Any, Any]) -> int:
    while (message := await socket.receive())["type"] != "websocket.disconnect":
        pass
    return _code(message)


def _code(message: Mapping[str, Any]) -> int:
    code = message.get("code")
    return code if isinstance(code, int) else _NO_STATUS


def _sink(socket: WebSocket[Any, Any, Any], settings: Settings) -> ReadySink | AsgiSink:
    wire: ReadySink | None = (socket.scope.get("extensions") or {}).get(EXTENSION)  # type: ignore[assignment]
    if wire is not None:
        return wire
    return AsgiSink(
        socket.send,
        high_water=settings.websocket_send_buffer_bytes,
        stall_seconds=settings.websocket_idle_timeout_seconds,
    )


def _wishes(query: Mapping[str, str]) -> _Wishes:
    """Read the query; a parameter that cannot be used counts as absent and is named among the problems."""
    problems: list[str] = []
    patterns = EVERYTHING
    globs = [glob.strip() for glob in query.get("events", "").split(",") if glob.strip()]
    if globs:
        try:
            patterns = EVERYTHING.with_added(patterns_from(globs, EVERYTHING))
        except Refused as refused:
            problems.append(f"events: {refused}")
    since, epoch = query.get("since"), query.get("epoch")
    resume = None
    if since is not None:
        try:
            # int() also takes "+1", " 1", "1_000" and other scripts' digits
            number = int(since) if since.isascii() and since.isdigit() and len(since) < 1000 else None
            resume = Resume("events", sequence_from(number, "since", 0), epoch or None)
        except Refused as refused:
            problems.append(f"since: {refused}")
    if epoch and since is None:
        problems.append("epoch: says nothing without since")
    elif epoch and len(epoch) > 256 and resume is not None:
        problems.append("epoch: must be a string of at most 256 characters")
        resume = resume._replace(epoch=None)
    if query.get("format", "json") not in ("json", "zlib"):
        problems.append("format: must be json or zlib")
    return _Wishes(patterns, resume, query.get("format") == "zlib", problems)
