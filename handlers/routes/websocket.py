"""The WebSocket route `/ws/events`: admit a client, connect it to the kernel, and pass its messages on.

Admission: a foreign host (421) or origin (403) is refused before this route. If the replica drains, the upgrade is
refused with an HTTP status (503). If the credentials are wrong (1008) or the replica is full (1013), the upgrade is
accepted and then closed, because browsers show a page the close code but not the HTTP status. An invalid query
parameter is reported to the client and ignored.

After admission, the kernel writes to the client's sink directly, and this route only reads. The connection ends when
the client leaves, when the connection's timer closes it, or after an unexpected error (1011).

The route takes at most `WEBSOCKET_MAX_MESSAGES_PER_SECOND` messages per second from a client, and waits before it takes
more. No message is lost and no error is sent: TCP slows the client down as soon as the buffers are full.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from litestar import WebSocket
from litestar.handlers import WebsocketRouteHandler, websocket

from handlers.auth import listener_credentials
from handlers.problems import log_unexpected
from handlers.routes.connection_timer import ConnectionTimer, varied
from handlers.routes.dependencies import Broadcaster
from handlers.routes.query_options import QueryOptions
from handlers.server.refusal import refuse
from handlers.server.sinks import EXTENSION, AsgiSink, FrameSink, websocket_message
from handlers.settings import Settings
from kernel import EventBroadcaster
from kernel.clients import INTERNAL_ERROR, TRY_AGAIN_LATER, UNAUTHORIZED, Client, CloseReason, TokenBucket
from kernel.log import AsgiEncoding, Encoding, WireEncoding
from kernel.messages import Error

__all__ = ["websocket_route"]

_logger = logging.getLogger(__name__)

# The route yields to the event loop after it has worked for one client for this many seconds without waiting.
_TURN_SECONDS = 0.002
# An ack or a pong of at most `_LIGHT_LENGTH` characters counts as a twentieth of a message for the rate.
_LIGHT_COST = 1 / 20
_LIGHT_LENGTH = 1024
_NO_STATUS = 1005  # RFC 6455, 7.4.1


class _Encodings:
    """One encoding object for each format, since the kernel shares bytes only between clients with the same object."""

    def __init__(self, threshold: int, level: int) -> None:
        self._wire = {
            (zlib, deflate): WireEncoding(threshold if zlib else None, deflate=deflate, level=level)
            for zlib in (False, True)
            for deflate in (False, True)
        }
        self._asgi = {zlib: AsgiEncoding(threshold if zlib else None, level=level) for zlib in (False, True)}

    def of(self, sink: FrameSink | AsgiSink, *, zlib: bool) -> Encoding:
        return self._asgi[zlib] if isinstance(sink, AsgiSink) else self._wire[zlib, sink.deflates]


def websocket_route(settings: Settings) -> WebsocketRouteHandler:
    """Return the route `/ws/events` for these settings."""
    encodings = _Encodings(settings.websocket_compression_threshold, settings.websocket_compression_level)

    @websocket("/ws/events")
    async def ws_events(socket: WebSocket[Any, Any, Any], broadcaster: Broadcaster) -> None:
        if broadcaster.draining:
            detail = "This replica is stopping: connect again, and another one answers."
            await refuse(socket.scope, socket.send, HTTPStatus.SERVICE_UNAVAILABLE, detail, [(b"retry-after", b"1")])
            return
        query: Mapping[str, str] = socket.query_params.dict()  # type: ignore[assignment]  # its values are lists
        query = {name: values[-1] for name, values in query.items()}
        admission = listener_credentials(
            settings,
            query=query,
            headers=socket.scope["headers"],
            subprotocols=socket.scope.get("subprotocols", []),
        )
        await socket.accept(subprotocols=admission.subprotocol)
        socket.scope["headers"] = []  # frees 1 kB for each idle connection
        broadcaster.counters.accepts += 1
        sink = _sink(socket, settings)
        cap = settings.websocket_max_connections
        refusal: CloseReason | None = None
        if not admission.allowed:
            refusal = UNAUTHORIZED
        elif cap and broadcaster.connections >= cap:
            refusal = TRY_AGAIN_LATER
        code = INTERNAL_ERROR.code
        try:
            if refusal is not None:
                sink.close(refusal)
                code = await _wait_for_disconnect(socket)
            else:
                options = QueryOptions.from_query(query)
                client = broadcaster.connect(
                    sink, encodings.of(sink, zlib=options.zlib), patterns=options.patterns, resume=options.resume
                )
                _logger.debug("client %s connected", client.id)
                for problem in options.problems:
                    client.tell(Error("validation_error", f"Invalid query parameter: {problem}", {"reason": problem}))
                code = await _receive_messages(socket, broadcaster, client, sink, settings)
                _logger.debug("client %s disconnected with code %d", client.id, code)
        except Exception as error:
            # If the exception went on, Litestar would close with another code than 1011.
            log_unexpected(error, f"on {socket.scope['path']}")
            sink.close(INTERNAL_ERROR)
        finally:
            broadcaster.counters.closed(code)
            if isinstance(sink, AsgiSink):
                sink.stop()

    return ws_events


async def _receive_messages(
    socket: WebSocket[Any, Any, Any],
    broadcaster: EventBroadcaster,
    client: Client,
    sink: FrameSink | AsgiSink,
    settings: Settings,
) -> int:
    """Pass the client's messages to the kernel until either side closes the connection; return the close code."""
    hub = broadcaster.hub
    timer = ConnectionTimer(
        broadcaster,
        client,
        interval=settings.websocket_ping_interval_seconds,
        idle_timeout=settings.websocket_idle_timeout_seconds,
        max_age=varied(settings.websocket_max_age_seconds),
        loop=asyncio.get_running_loop(),
    )
    sink.on_blocked = lambda: hub.fall_behind(client)
    if sink.blocked:
        hub.fall_behind(client)
    clock = time.perf_counter
    rate = settings.websocket_max_messages_per_second
    pace = TokenBucket(rate, 2 * rate, clock()) if rate else None
    turn_began_at = clock()
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return _code(message)
            if sink.blocked:
                await sink.drained()
            timer.message_received()
            text: str | None = message.get("text")  # type: ignore[assignment]  # typed as object
            # A binary message is not a command. The hub answers bytes with an error without reading them.
            light = hub.receive(client, b"" if text is None else text)
            now = clock()
            if pace is not None:
                wait = pace.spend(_LIGHT_COST if light and text and len(text) <= _LIGHT_LENGTH else 1, now)
                if wait and not sink.closed:
                    await asyncio.sleep(wait)
            if now - turn_began_at >= _TURN_SECONDS:
                await asyncio.sleep(0)
                turn_began_at = clock()
    finally:
        timer.stop()
        sink.on_blocked = None
        broadcaster.disconnect(client)


async def _wait_for_disconnect(socket: WebSocket[Any, Any, Any]) -> int:
    while (message := await socket.receive())["type"] != "websocket.disconnect":
        pass
    return _code(message)


def _code(message: Mapping[str, Any]) -> int:
    code = message.get("code")
    return code if isinstance(code, int) else _NO_STATUS


def _sink(socket: WebSocket[Any, Any, Any], settings: Settings) -> FrameSink | AsgiSink:
    frame_sink: FrameSink | None = (socket.scope.get("extensions") or {}).get(EXTENSION)  # type: ignore[assignment]  # any object
    if frame_sink is not None:
        return frame_sink
    return AsgiSink(
        socket.send,
        websocket_message,
        high_water=settings.websocket_send_buffer_bytes,
        stall_seconds=settings.websocket_idle_timeout_seconds,
    )
