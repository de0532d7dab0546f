"""uvicorn's WebSocket protocol, extended to write prebuilt frames.

Sending: the protocol puts itself into `scope["extensions"]` under `EXTENSION`. The route finds it there and passes it
to the kernel as the client's sink, so that the fan-out writes frames directly to the transport. The handshake and the
reading of messages remain uvicorn's.

Receiving: received data is parsed in slices, and parsing stops while enough messages wait for the application. The rest
of the data stays unparsed, and nothing more is read from the client before it is parsed. A slice inflates to no more
than two of the largest messages. The memory for what a client has sent is therefore bounded: four of the largest
messages, waiting or incomplete, and 256 kB of unparsed data. Pings and empty fragments never become messages, so the
route's rate limit does not apply to them. Instead, parsing that completes no message may take a tenth of the time.

Back-pressure: the sink becomes blocked when more than `high_water` bytes are unsent, and unblocked when a quarter of
that is left. While it is blocked, nothing is read from the client, because the replies could not be sent. If the
client's system acknowledges no data for `stall_seconds` while the sink is blocked, the connection is aborted.

Closing: the closing handshake is started by the server (`close`), by the client (`handle_close`), or by a message that
violates the protocol (`handle_parser_exception`). If it takes more than 5 seconds, the connection is aborted.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets import http11
from websockets.exceptions import NegotiationError
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import CLOSE, CloseCode, Frame
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import ExtensionParameter, StatusLike

from handlers.problems import DETAILS, PROBLEM_JSON
from handlers.server.descriptors import ConnectionLimit
from handlers.server.open_socket import discard_unsent
from handlers.server.primitives import SlimEvent, SlimQueue
from handlers.server.refusal import problem_body, refuse
from handlers.server.sinks import EXTENSION
from handlers.server.stall import StallTimer, bytes_in_flight
from kernel.clients import CloseReason, TokenBucket
from kernel.log import WINDOW_BITS, Joined

__all__ = ["WebSocketProtocol"]

_CLOSE_SECONDS = 5.0
# Parsing yields to the event loop after this many seconds.
_TURN_SECONDS = 0.002
# Parsing that completes no message may take this share of the time for each client, after a burst of this many
# seconds.
_PARSING_SHARE = 0.1
_PARSING_BURST = 0.02
# The bytes of a slice, for a client that did not negotiate compression.
_SLICE = 512
# The highest ratio of deflate: the number of bytes that one byte can inflate to (https://zlib.net/zlib_tech.html).
_MOST_INFLATED = 1032
# The memory of a waiting message besides its text, in bytes. It is set high, to limit the number of small messages.
_OVERHEAD = 1024
_logger = logging.getLogger(__name__)
# uvicorn logs each upgrade with its query string, which may contain a token, and websockets logs the messages.
_protocol_logger = logging.getLogger("handlers.server.websocket.protocol")
_protocol_logger.setLevel(logging.WARNING)
# Not worth a log line: it is the client's mistake, and the close code tells the client.
_protocol_logger.addFilter(lambda record: not record.getMessage().startswith("Invalid UTF-8"))
# The limit of websockets, for the whole process. It must be higher than those of handlers.server.http, which checks
# the request first; otherwise a request that http.py has accepted would fail here.
http11.MAX_LINE_LENGTH = 128 * 1024


class _SharedDeflate(ServerPerMessageDeflateFactory):
    """permessage-deflate (RFC 7692) without context takeover, so that all clients can share one compressed frame."""

    def __init__(self) -> None:
        super().__init__(
            server_no_context_takeover=True, client_no_context_takeover=True, server_max_window_bits=WINDOW_BITS
        )

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        response, extension = super().process_request_params(params, accepted_extensions)
        if extension.local_max_window_bits < WINDOW_BITS:
            raise NegotiationError("the shared compressed frames need a larger window")
        return response, extension


class _ServerProtocol(ServerProtocol):
    """The protocol of websockets, changed in two places.

    A refused handshake is answered with a problem document. A close frame that arrives between the fragments of a
    message is answered with the code that it holds; websockets would answer with 1002.
    """

    def reject(self, status: StatusLike, text: str) -> Response:
        response = super().reject(status, text)
        response.body = problem_body(HTTPStatus(status), text.strip())
        del response.headers["Content-Length"], response.headers["Content-Type"]
        response.headers["Content-Length"] = str(len(response.body))
        response.headers["Content-Type"] = PROBLEM_JSON
        return response

    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is CLOSE:
            self.current_size = None  # the message will not be completed (RFC 6455, 5.4 and 5.5.1)
        super().recv_frame(frame)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket connection, and the `FrameSink` of its client.

    The module's docstring describes `high_water` (bytes) and `stall_seconds`. While the connection is being closed,
    `limit` may abort it to free its descriptor for a new connection (`evict`).
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401  uvicorn's own arguments
        high_water: int,
        stall_seconds: float,
        limit: ConnectionLimit,
        **kwargs: Any,  # noqa: ANN401  passed on to uvicorn
    ) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn has created the object. A second one would leave reference cycles for the garbage collector to free.
        self.conn.__class__ = _ServerProtocol
        self._limit = limit
        self.queue = SlimQueue()  # type: ignore[assignment]  # has what uvicorn uses of asyncio.Queue
        self.writable: SlimEvent = SlimEvent()  # type: ignore[assignment]  # has what uvicorn uses of asyncio.Event
        self.conn.available_extensions = [_SharedDeflate()]
        self.logger = self.conn.logger = _protocol_logger
        self.conn.debug = False
        self.on_blocked: Callable[[], None] | None = None
        self._high_water = high_water
        self._stall_seconds = stall_seconds
        self._stall_timer: StallTimer | None = None
        self._unparsed: memoryview | None = None
        self._slice = _SLICE
        self._waiting = 0  # the bytes of the messages that the application has not taken
        self._parsing = TokenBucket(_PARSING_SHARE, _PARSING_BURST, time.perf_counter())
        self._parse_timer: asyncio.TimerHandle | None = None

    @property
    def deflates(self) -> bool:
        """True if the client negotiated permessage-deflate."""
        return bool(self.conn.extensions)

    # The sink, for the kernel.

    @property
    def blocked(self) -> bool:
        """True while too much is unsent."""
        return not self.writable.is_set()

    @property
    def closed(self) -> bool:
        """True once nothing more will be sent."""
        return self.close_sent or self.transport.is_closing()

    def write(self, data: Joined) -> None:
        """Write prebuilt frames, in order, without waiting; does nothing once the connection is closing."""
        if not self.closed:
            self.transport.write(data)  # type: ignore[arg-type]  # WireEncoding joins to bytes

    async def drained(self) -> None:
        """Wait until the sink is not blocked, or the connection is lost."""
        await self.writable.wait()

    def close(self, reason: CloseReason) -> None:
        """Start the closing handshake; if the client does not answer within 5 seconds, abort the connection."""
        if self.closed:
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": reason.code, "reason": reason.text})
        self.conn.send_close(reason.code, reason.text)
        self._send_close_frame()

    # What uvicorn and asyncio call.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the limits of the transport's buffer, at which asyncio calls `pause_writing` and `resume_writing`."""
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=self._high_water, low=self._high_water // 4)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake everything that waits for this connection, and stop the timers.

        The close code is 1006 unless a close frame was received or sent before (RFC 6455, 7.1.5).
        """
        self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
        super().connection_lost(exc)
        self._limit.keep(self)
        self.on_blocked = None
        self._unparsed = None
        self._stop_parse_timer()
        self._stop_stall_timer()

    def data_received(self, data: bytes) -> None:
        """Parse received data, until enough messages wait for the application.

        uvicorn parses the handshake. If websockets cannot parse it, it is refused here; uvicorn would not answer it.
        """
        if self.handshake_initiated:
            # Reading is paused while something is unparsed, but a transport may still deliver what it read before.
            self._unparsed = memoryview(data if self._unparsed is None else bytes(self._unparsed) + data)
            if self._parse_timer is None:
                self._parse()
            return
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.close_sent:
            self.close_sent = True
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def handle_connect(self, event: Request) -> None:
        """Put this connection into the scope, where the route finds its sink."""
        super().handle_connect(event)
        if not self.close_sent:
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = self
            if self.deflates:
                self._slice = max(16, 2 * self.config.ws_max_size // _MOST_INFLATED)

    def handle_cont(self, event: Frame) -> None:
        """Append a fragment to its message; uvicorn would keep a list of all fragments, empty ones included."""
        fragments: list[Any] = self.frames
        if not isinstance(fragments[0], bytearray):
            fragments[0] = bytearray(fragments[0])
        fragments[0] += event.data
        if event.fin:
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        """Queue a complete message for the application."""
        data = self.frames[0]
        self.frames = []
        if self.close_sent:
            return
        message: dict[str, Any] = {"type": "websocket.receive"}
        if self.curr_msg_data_type == "text":
            try:
                message["text"] = data.decode()
            except UnicodeDecodeError:
                self.conn.fail(CloseCode.INVALID_DATA)
                self.handle_parser_exception()
                return
        else:
            message["bytes"] = bytes(data)
        self._waiting += _weight(message)
        self.queue.put_nowait(message)  # type: ignore[arg-type]  # an ASGI event

    def handle_ping(self) -> None:
        """Answer a ping, unless the connection was closed because of something in the same slice."""
        if not self.close_sent:
            super().handle_ping()

    def pause_writing(self) -> None:
        """Become blocked: too much is unsent."""
        super().pause_writing()
        # The replies to what the client sends could not be sent either.
        self._update_reading()
        if self.on_blocked is not None:
            self.on_blocked()
        self._stop_stall_timer()
        self._stall_timer = StallTimer(self.transport, self.loop, seconds=self._stall_seconds, stalled=self._stalled)

    def resume_writing(self) -> None:
        """Become unblocked."""
        super().resume_writing()
        self._stop_stall_timer()
        self._update_reading()

    async def receive(self) -> Any:  # noqa: ANN401  an ASGI event
        """Return the client's next message, and parse further ones if it left room for them."""
        message: dict[str, Any] = await self.queue.get()  # type: ignore[assignment]  # an ASGI event
        if message["type"] == "websocket.receive":
            self._waiting -= _weight(message)
            if self.read_paused and self._has_room and self._parse_timer is None:
                self._parse()
        return message

    async def send(self, message: Any) -> None:  # noqa: ANN401  an ASGI event
        """Send an ASGI event.

        Two cases differ from uvicorn. If Litestar closes before the upgrade is accepted, uvicorn would answer 403.
        Here the answer is a problem document: 500 if Litestar's reason says that an exception was raised, and otherwise
        404, because the path has no route. And after an HTTP answer that refuses the upgrade, the handshake is marked
        as complete; uvicorn would log an error.
        """
        if message["type"] == "websocket.close" and not self.handshake_complete:
            failed = message.get("reason") == HTTPStatus.INTERNAL_SERVER_ERROR.phrase
            status = HTTPStatus.INTERNAL_SERVER_ERROR if failed else HTTPStatus.NOT_FOUND
            await refuse(self.scope, self.send, status, DETAILS[status])
            return
        await super().send(message)
        if message["type"] == "websocket.accept":
            # frees 2 kB for each connection; nothing uses them after the handshake
            del self.request, self.response
        elif message["type"] == "websocket.http.response.body":
            self.handshake_complete = True

    def handle_close(self, event: Frame) -> None:
        """Process the client's close frame, which starts the closing handshake or answers the server's."""
        super().handle_close(event)
        # The transport closes once all data is sent, which never happens if the client has stopped reading.
        self._closing()

    def handle_parser_exception(self) -> None:
        """Close after a message that violates the protocol (1002, 1007) or is too large (1009).

        The rest of the message is read and dropped: closing with unread input would reset the connection, and the
        client would not see the close code.
        """
        if self.close_sent:
            return
        sent = self.conn.close_sent
        code, reason = (sent.code, sent.reason) if sent is not None else (1006, "")
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self._unparsed = None  # after an error the parser ignores all input
        self._send_close_frame()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    def _send_close_frame(self) -> None:
        """Send the server's close frame, and abort if the closing handshake is not complete after 5 seconds."""
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.stop_keepalive()
        if self._unparsed is not None and self._parse_timer is None:
            self._parse_timer = self.loop.call_later(0, self._parse_on)
        self._update_reading()
        self.close_timer = self._closing()

    def _closing(self) -> asyncio.TimerHandle:
        if not self.disconnected:
            self._limit.mark_evictable(self)
        return self.loop.call_later(_CLOSE_SECONDS, self._abort)

    def evict(self) -> None:
        """End the connection at once."""
        self._abort()

    @property
    def _has_room(self) -> bool:
        """True if further messages may be queued; after the server's close frame they are dropped, so always."""
        return self._waiting < self.config.ws_max_size or self.close_sent

    def _parse(self) -> None:
        """Parse slices until enough messages are queued, or the turn is over."""
        begin = now = time.perf_counter()
        idle = 0.0  # the seconds spent on slices that completed no message
        unparsed = self._unparsed
        while unparsed and self._has_room and now - begin < _TURN_SECONDS:
            waiting, slice_began_at = self._waiting, now
            self._unparsed = unparsed[self._slice :] or None
            self.conn.receive_data(unparsed[: self._slice])  # type: ignore[arg-type]  # it takes any buffer
            # Complete messages before the one that violates the protocol are queued.
            self.handle_events()
            if self.conn.parser_exc is not None:
                self.handle_parser_exception()
            unparsed = self._unparsed
            now = time.perf_counter()
            if self._waiting == waiting:
                idle += now - slice_began_at
        wait = self._parsing.spend(idle, now) if idle else 0
        if wait or (unparsed and now - begin >= _TURN_SECONDS):
            self._parse_timer = self.loop.call_later(wait, self._parse_on)
        self._update_reading()

    def _parse_on(self) -> None:
        self._parse_timer = None
        self._parse()

    def _stop_parse_timer(self) -> None:
        if self._parse_timer is not None:
            self._parse_timer.cancel()
            self._parse_timer = None

    def _update_reading(self) -> None:
        """Read from the client, or pause reading."""
        unread = self._unparsed is not None or self._parse_timer is not None or not self._has_room
        paused = unread or (self.blocked and not self.close_sent)
        if paused is not self.read_paused and not self.transport.is_closing():
            self.read_paused = paused
            if paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _stalled(self) -> None:
        _logger.info("aborting a connection: its client accepted no data for %g s", self._stall_seconds)
        self._abort()

    def _abort(self) -> None:
        """Abort the connection; unsent data is dropped, in the operating system too (RST instead of FIN)."""
        if self.disconnected:
            return
        if bytes_in_flight(self.transport):
            discard_unsent(self.transport)
        self.transport.abort()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.stop()
            self._stall_timer = None


def _weight(message: dict[str, Any]) -> int:
    """Return the bytes of memory that a queued message takes; a character of a text takes up to four."""
    return sys.getsizeof(message["text"] if "text" in message else message["bytes"]) + _OVERHEAD
