"""The route `/events`: server-sent events, for clients that cannot hold a WebSocket.

A client of this route is a client of the kernel like that of a WebSocket, with another encoding and another sink. It
sends nothing, so there are no commands, acks or idle timeout, and what a WebSocket says in its close frame is the last
message of the stream.

`EventSource` gives up at any status but 200. So a request that accepts `text/event-stream` alone is answered, where
others get a 503, by a stream that only says when to come back.
"""

import asyncio
import logging
import random
from typing import Any, Final

from litestar import Request, get
from litestar.exceptions import ServiceUnavailableException
from litestar.handlers import HTTPRouteHandler
from litestar.params import SkipValidation
from litestar.types import ASGIApp, Receive, Scope, Send

from handlers.problems import log_unexpected
from handlers.routes.admission import admit
from handlers.routes.connection_timer import ConnectionTimer, varied
from handlers.routes.dependencies import Broadcaster
from handlers.routes.query_options import QueryOptions
from handlers.server.sinks import AsgiSink, StreamSink, body_message, http_connection, until_disconnected
from handlers.settings import Settings
from kernel import EventBroadcaster
from kernel.clients import INTERNAL_ERROR
from kernel.log import EventStreamEncoding
from kernel.messages import Error

__all__ = ["event_stream_route"]

_logger = logging.getLogger(__name__)

_EVENT_STREAM: Final = "text/event-stream"
_HEAD: Final = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
        (b"connection", b"close"),
    ],
}
# Clients share bytes only if they have the same object.
_ENCODINGS: Final = {chunked: EventStreamEncoding(chunked=chunked) for chunked in (False, True)}


def event_stream_route(settings: Settings) -> HTTPRouteHandler:
    """Return the route `/events` for these settings."""

    @get("/events", tags=["listen"], media_type=_EVENT_STREAM)
    async def events(request: SkipValidation[Request[Any, Any, Any]], broadcaster: Broadcaster) -> ASGIApp:
        try:
            query = admit(request, broadcaster, settings)
        except ServiceUnavailableException:
            if _accepts_streams_alone(request.headers.get("accept", "")):
                return _come_back
            raise
        options = QueryOptions.from_query(query, request.headers.get("last-event-id", ""))
        return _EventStream(broadcaster, settings, options)

    return events


class _EventStream:
    """The answer: the stream of one client, until either side ends it."""

    __slots__ = ("_broadcaster", "_options", "_settings")

    def __init__(self, broadcaster: EventBroadcaster, settings: Settings, options: QueryOptions) -> None:
        self._broadcaster = broadcaster
        self._settings = settings
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sink = _sink(scope, send, self._settings)
        watch = asyncio.create_task(until_disconnected(receive, sink.stop)) if isinstance(sink, AsgiSink) else None
        await send(_HEAD)  # type: ignore[arg-type]  # a dict of that form
        try:
            await self._stream(sink)
        except Exception as error:
            log_unexpected(error, "on /events")
            sink.close(INTERNAL_ERROR)
            await sink.ended()
        if watch is None:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            watch.cancel()

    async def _stream(self, sink: StreamSink) -> None:
        broadcaster, settings, options = self._broadcaster, self._settings, self._options
        encoding = _ENCODINGS[sink.chunked]
        sink.write(encoding.join((_retry(),)))
        client = broadcaster.connect(sink, encoding, patterns=options.patterns, resume=options.resume)
        _logger.debug("client %s connected", client.id)
        timer = ConnectionTimer(
            broadcaster,
            client,
            interval=settings.websocket_ping_interval_seconds,
            max_age=varied(settings.websocket_max_age_seconds),
            loop=asyncio.get_running_loop(),
        )
        sink.on_blocked = lambda: broadcaster.hub.fall_behind(client)
        if sink.blocked:
            broadcaster.hub.fall_behind(client)
        try:
            for problem in options.problems:
                client.tell(Error("validation_error", f"Invalid query parameter: {problem}", {"reason": problem}))
            await sink.ended()
        finally:
            timer.stop()
            sink.on_blocked = None
            broadcaster.disconnect(client)
            _logger.debug("client %s disconnected", client.id)


def _sink(scope: Scope, send: Send, settings: Settings) -> StreamSink:
    high_water, stall_seconds = settings.websocket_send_buffer_bytes, settings.websocket_idle_timeout_seconds
    connection = http_connection(scope)
    if connection is not None:
        return connection.open_stream(high_water=high_water, stall_seconds=stall_seconds)
    return AsgiSink(send, body_message, high_water=high_water, stall_seconds=stall_seconds)


def _retry() -> bytes:
    """Return the time after which a browser comes back; random, so that many do not come back at once."""
    return b"retry: %d\n\n" % random.randint(1000, 5000)  # noqa: S311  not a secret


def _accepts_streams_alone(accept: str) -> bool:
    return accept.partition(";")[0].strip().lower() == _EVENT_STREAM and "," not in accept


async def _come_back(scope: Scope, receive: Receive, send: Send) -> None:
    body = _retry()
    length = (b"content-length", b"%d" % len(body))
    await send({**_HEAD, "headers": [*_HEAD["headers"], length]})  # type: ignore[arg-type, misc]  # a dict of that form
    await send({"type": "http.response.body", "body": body, "more_body": False})
