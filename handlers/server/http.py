"""uvicorn's HTTP protocol, extended by limits on what a client may send, and by the handling of upgrades.

Theory of operation. A connection reads requests one after the other and answers them in the same order; a request may
arrive while earlier ones are being answered. `_Reading` is the state of the reading side:

IDLE: between two requests. After `HTTP_KEEP_ALIVE_SECONDS` without an answer in progress the connection is closed.
HEAD, BODY: a request has begun. From its first byte it has `request_seconds` to be complete, else it is answered 408.
Its size is limited while it is read (see `request_size`), so that the parser never collects much more than that. At the
end of the head the application starts; it reads the body, and limits it.
ENDED: nothing more is read as HTTP. The request is refused, the connection becomes a WebSocket, or it is answered by a
stream, with which the connection ends.

What follows ENDED, but for a stream, waits until every earlier request has been answered. A refused request gets a
problem document. Then the server's side of the connection is closed, and what the client still sends is read and
dropped for a few seconds; closing with unread input would reset the connection, and the client would not see the
answer.

Upgrades. httptools ends a request that asks for an upgrade at its head. If the upgrade is not to a WebSocket, it is
ignored (RFC 9110, 7.8): the same head without its `Upgrade` header is fed to the parser again, in front of the body.
"""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from handlers.server.cancellation import answer_until_cancelled
from handlers.server.descriptors import ConnectionLimit
from handlers.server.event_stream import EventStream
from handlers.server.flow import PipelineFlow
from handlers.server.joining_transport import JoiningTransport
from handlers.server.refusal import ANSWER_HEADERS, Refusal
from handlers.server.request_size import RequestSize, check_fields, check_target
from handlers.server.sinks import EXTENSION
from handlers.server.upgrade import asks_for_websocket, head_without_upgrade, websocket_headers

__all__ = ["HttpProtocol"]

_logger = logging.getLogger(__name__)

_LINGER_SECONDS: Final = 5.0


class _Reading(Enum):
    """The part of a request that is being read."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    ENDED = auto()


_IDLE, _HEAD, _BODY, _ENDED = _Reading  # an attribute of an enum costs more than the comparison


class HttpProtocol(HttpToolsProtocol):
    """One HTTP connection; uvicorn writes its answers to a `JoiningTransport`."""

    transport: Any  # a JoiningTransport; uvicorn declares an asyncio.Transport
    flow: PipelineFlow

    def __init__(
        self,
        *args: Any,  # noqa: ANN401  uvicorn's own arguments
        request_seconds: float,
        limit: ConnectionLimit,
        **kwargs: Any,  # noqa: ANN401  passed on to uvicorn
    ) -> None:
        super().__init__(*args, **kwargs)
        self._request_seconds = request_seconds
        self._limit = limit
        self._reading = _IDLE
        self._size = RequestSize()
        self._websocket = False
        self._running: RequestResponseCycle | None = None
        self._when_answered: Callable[[], None] | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_until = 0.0
        self._request_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self.on_lost: Callable[[], None] | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Start on a transport that joins writes; over the limit of descriptors, refuse."""
        joining: Any = JoiningTransport(transport, self.loop, patience=self._request_seconds)
        super().connection_made(joining)
        self.flow = PipelineFlow(joining, self.pipeline, loop=self.loop, stall_seconds=self._request_seconds)
        if self._limit.admit(len(self.connections)):
            self._rest()
        else:
            self._refuse(Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections.", [(b"retry-after", b"1")]))
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every timer."""
        self._limit.keep(self)
        self._when_answered = None
        self._stop_request_timer()
        self._stop_idle_timer()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        if self._running is not None:  # uvicorn tells only the newest of several pipelined requests
            self._running.disconnected = True
            self._running.message_event.set()
        if self.on_lost is not None:
            self.on_lost()
        super().connection_lost(exc)
        self._break_cycles()

    def data_received(self, data: bytes) -> None:
        """Parse received data within the limits."""
        if self._reading is _ENDED:
            return
        if self._reading is _IDLE and data[0] in b"\r\n" and not data.strip(b"\r\n"):
            return  # empty lines between requests are allowed (RFC 9112, 2.2), and are not a request
        self._size.feed(len(data))
        try:
            self._feed(data)
            if self._reading is _HEAD:
                self._size.check_head(self.url)
            elif self._reading is _BODY:
                self._size.check_body()
        except Refusal as refusal:
            self._refuse(refusal)
        else:
            if self._reading is not _IDLE or not self._answering:
                self._rest()

    def _break_cycles(self) -> None:
        """Free this object without the garbage collector, which rarely looks at objects that have lived for a while."""
        self.parser = None  # type: ignore[assignment]  # as uvicorn does at the end of a connection
        self.on_lost = None
        for cycle in (self.cycle, self._running):
            if cycle is not None:
                cycle.scope.pop("extensions", None)

    def evict(self) -> None:
        """End the connection at once."""
        self.transport.abort()

    # What routes call.

    def open_stream(self, *, high_water: int, stall_seconds: float) -> EventStream:
        """Return the sink that writes the body of the answer that is about to start; the connection ends with it.

        What the client has sent or sends after the request's head, a body or further requests, is dropped. The stream
        may last for days: nothing is kept for it, no time is measured, and the end of the connection is noticed.
        """
        cycle = self._running
        chunked = cycle is None or cycle.scope["http_version"] != "1.0"
        stream = EventStream(
            self.transport, self.flow, self.loop, chunked=chunked, high_water=high_water, stall_seconds=stall_seconds
        )
        if cycle is None or cycle.disconnected:  # refused, or lost, since the application was called
            stream.lost()
            return stream
        if not chunked:
            cycle.chunked_encoding = False  # uvicorn would choose it
        self.on_lost = stream.lost
        self._reading = _ENDED
        self._when_answered = None
        self._stop_request_timer()
        self._limit.keep(self)
        self.pipeline.clear()
        cycle.body.clear()
        self.flow.held = False
        self.flow.resume_reading()
        return stream

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._limit.keep(self)
        self._reading = _HEAD
        self._size.begin()

    def on_headers_complete(self) -> None:
        """Start the application, unless the request asks for an upgrade."""
        if not self._size.is_small:
            check_target(self.url)
            check_fields(self.headers)
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts != 1 and (hosts or self.parser.get_http_version() == "1.1"):
            raise Refusal(HTTPStatus.BAD_REQUEST, "The request must have exactly one Host header.")  # RFC 9112, 3.2
        if self.parser.should_upgrade():
            version = self.parser.get_http_version()
            self._websocket = asks_for_websocket(self.parser.get_method(), version, self.headers)
            if self._websocket:  # the target may be a whole URL (RFC 9112, 3.2.2)
                target = httptools.parse_url(self.url)
                self.url = (target.path or b"/") + (b"?" + target.query if target.query else b"")
            return
        if self.url == b"*" and self.parser.get_method() == b"OPTIONS":  # asks about the server as a whole
            self.url = b"/"
        super().on_headers_complete()
        self.scope["extensions"] = {EXTENSION: self}  # type: ignore[dict-item]  # values are any objects
        self._reading = _BODY
        self._size.begin()
        self.headers = []  # the request has its own; trailers, which come after the body, are dropped

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on."""
        self._size.add_body(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request; one that asks for an upgrade is not complete before that is decided."""
        if not self.parser.should_upgrade():
            if self.headers:
                check_fields(self.headers)
            self._reading = _IDLE
            self._stop_request_timer()
            super().on_message_complete()

    # What uvicorn calls.

    def on_response_complete(self) -> None:
        """Go on with what waits for this answer: a pipelined request, the next request, or what follows the last."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._rest()
        if self._when_answered is not None:
            then, self._when_answered = self._when_answered, None
            self.flow.held = False
            then()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401  an ASGI application
        self._running = cycle
        super()._start_asgi_task(cycle, partial(answer_until_cancelled, app, cycle))

    # Timers.

    @property
    def _answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _rest(self) -> None:
        """Set the timer of the present state, and note whether the connection may be ended to make way."""
        if self._reading is _ENDED:
            return
        if self._reading is _IDLE:
            if self._answering:
                return
            self._idle_until = self.loop.time() + self.timeout_keep_alive
            if self._idle_timer is None:
                self._start_idle_timer()
        else:
            if self._request_timer is None:
                self._request_timer = self.loop.call_later(self._request_seconds, self._too_slow)
            if self._answering and (self._reading is _HEAD or self._running is not self.cycle):
                self._limit.keep(self)  # an earlier request is being answered
                return
        self._limit.mark_evictable(self)

    def _start_idle_timer(self) -> None:
        """Start the timer of an idle connection; it is not stopped by a request, but checks when the last one ended."""
        self._idle_timer = self.loop.call_at(self._idle_until, self._end_idle, self._idle_until)

    def _end_idle(self, until: float) -> None:
        self._idle_timer = None
        if self._reading is _IDLE and not self._answering:
            if self._idle_until == until:
                self.timeout_keep_alive_handler()
            else:  # there were requests since
                self._start_idle_timer()

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _too_slow(self) -> None:
        self._request_timer = None
        if self.flow.read_paused:  # not the client's fault
            self._rest()
        else:
            detail = f"The request was not complete within {self._request_seconds:g} seconds."
            self._refuse(Refusal(HTTPStatus.REQUEST_TIMEOUT, detail))

    def _stop_request_timer(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None
            self._limit.keep(self)

    # Refusals.

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                after_head = data[upgrade.args[0] :]
            except httptools.HttpParserCallbackError as error:
                if isinstance(error.__context__, Refusal):
                    raise error.__context__ from None
                raise Refusal.invalid("its target or a header cannot be used") from error
            except httptools.HttpParserError as error:
                raise Refusal.invalid(str(error)) from error
            else:
                return
            if self._websocket:
                self._end_http(partial(self._become_websocket, after_head))
                return
            version = self.parser.get_http_version()
            data = head_without_upgrade(self.parser.get_method(), self.url, version, self.headers) + after_head
            # If the client asked to close the connection too, this parser has ended.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer the request that is being read with an error when its turn comes, and close."""
        _logger.warning("refused a request that is invalid or over a limit: %d %s", refusal.status, refusal.detail)
        headers = self.server_state.default_headers
        if self._reading is _BODY:
            scope: Any = self.cycle.scope
            headers = [*headers, *scope.get(ANSWER_HEADERS, ())]
        answer = refusal.answer(headers)
        if self._reading is _BODY:  # the application has the request already
            if self.pipeline and self.pipeline[0][0] is self.cycle:
                self.pipeline.popleft()  # it waits for earlier answers
            elif self.cycle.response_started:
                answer = b""
            else:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
                self._running = None
        self._end_http(partial(self._close, answer))

    def _end_http(self, then: Callable[[], None]) -> None:
        """Read no more requests, and call `then` once those before have been answered."""
        self._reading = _ENDED
        self._stop_idle_timer()
        self._stop_request_timer()
        self._limit.keep(self)
        if self._answering:
            self._when_answered = then
            self.flow.pause_reading()
            self.flow.held = True
        else:
            then()

    def _close(self, answer: bytes) -> None:
        if self.transport.is_closing():
            return
        if answer:
            self.transport.write(answer)
        self.transport.write_eof()
        self.flow.resume_reading()
        self._linger_timer = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)
        self._limit.mark_evictable(self)

    def _become_websocket(self, after_head: bytes) -> None:
        self.headers[:] = websocket_headers(self.headers)
        self.scope["method"] = "GET"
        self.flow.resume_reading()
        self.transport.flush()
        wrapped = self.transport = self.transport.wrapped
        self.handle_websocket_upgrade()
        if after_head and not wrapped.is_closing():
            wrapped.get_protocol().data_received(after_head)
        self._break_cycles()
