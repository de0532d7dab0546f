"""The WebSocket protocol of uvicorn, taught to take ready frames: the socket end of one client.

A subclass of uvicorn's own protocol puts itself into `scope["extensions"]` under `EXTENSION`. The route finds it there
and gives it to the kernel as the client's sink, so that what the fan-out writes goes straight to the transport, while
handshake, reading and pings stay uvicorn's. Without it (another server) the route falls back on plain ASGI.
"""

import asyncio
import contextlib
import fcntl
import logging
import socket
import struct
import termios
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets import http11
from websockets.exceptions import NegotiationError
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.typing import ExtensionParameter

from handlers.server.primitives import Gate, Inbox
from handlers.server.sinks import EXTENSION
from kernel.clients import CloseReason
from kernel.log import WINDOW_BITS, Joined

__all__ = ["WireProtocol"]

_CLOSE_SECONDS = 5.0
# SO_LINGER on, for 0 seconds: closing resets the connection, and the system forgets what it still had to send
_NO_LINGER = struct.pack("ii", 1, 0)
_logger = logging.getLogger(__name__)
# uvicorn logs each upgrade with its query string, and so the token in it; websockets would log what is sent
_quiet = logging.getLogger("handlers.server.websocket.protocol")
_quiet.setLevel(logging.WARNING)
# what a client does wrong is answered to the client
_quiet.addFilter(lambda record: not record.getMessage().startswith("Invalid UTF-8"))
# 100 patterns of 256 characters may come in the query, each character as %XX
http11.MAX_LINE_LENGTH = 128 * 1024


class _SharedDeflate(ServerPerMessageDeflateFactory):
    """permessage-deflate (RFC 7692) without context takeover, so that one compressed frame serves every client."""

    def __init__(self) -> None:
        super().__init__(
            server_no_context_takeover=True, client_no_context_takeover=True, server_max_window_bits=WINDOW_BITS
        )

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        response, extension = super().process_request_params(params, accepted_extensions)
        if extension.local_max_window_bits < WINDOW_BITS:
            raise NegotiationError("the shared frames need a larger window")
        return response, extension


class WireProtocol(WebSocketsSansIOProtocol):
    """One WebSocket connection, and the sink of its client.

    `high_water` is how many unsent bytes block the sink; it is free again when a quarter is left. A blocked socket that
    takes nothing for `stall_seconds`, or its close frame not within 5 s, is aborted.
    """

    def __init__(self, *args: Any, high_water: int, stall_seconds: float, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.queue = Inbox()  # type: ignore[assignment]
        self.writable: Gate = Gate()  # type: ignore[assignment]
        self.conn.available_extensions = [_SharedDeflate()]
        self.logger = self.conn.logger = _quiet
        self.conn.debug = False
        self.on_blocked: Callable[[], None] | None = None
        self._high_water = high_water
        self._stall_seconds = stall_seconds
        self._stall_timer: asyncio.TimerHandle | None = None

    @property
    def deflates(self) -> bool:
        """Whether permessage-deflate was agreed."""
        return bool(self.conn.extensions)

    # -- the sink ---------------------------------------------------------------------------------------------

    @property
    def blocked(self) -> bool:
        """Whether more is unsent than the mark allows."""
        return not self.writable.is_set()

    def write(self, data: Joined) -> None:
        """Take ready frames for sending, at once and in order."""
        if not self.close_sent and not self.transport.is_closing():
            self.transport.write(data)  # type: ignore[arg-type]

    async def drained(self) -> None:
        """Return when no longer blocked; at once if the socket is gone."""
        await self.writable.wait()

    def close(self, reason: CloseReason) -> None:
        """Begin the closing handshake; a peer that does not take part is aborted."""
        if self.close_sent or self.transport.is_closing():
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": reason.code, "reason": reason.text})
        self.conn.send_close(reason.code, reason.text)
        self._finish()

    # -- uvicorn's protocol -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the marks between which writing is blocked and free."""
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=self._high_water, low=self._high_water // 4)

    def connection_lost(self, exc: Exception | None) -> None:
        """Free whoever waits for this socket; an end without a close frame is 1006 (RFC 6455, 7.1.5)."""
        self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
        super().connection_lost(exc)
        self.on_blocked = None
        self._stop_stall_timer()

    def data_received(self, data: bytes) -> None:
        """Take what has come; an upgrade that is too long to be read is answered here, as uvicorn would never do."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.close_sent:
            self.close_sent = True
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def handle_connect(self, event: Request) -> None:
        """Offer this connection to the route."""
        super().handle_connect(event)
        if not self.close_sent:
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = self

    def pause_writing(self) -> None:
        """Be blocked: more is unsent than the mark allows."""
        super().pause_writing()
        # what the peer sends is not read either: the answers would have nowhere to go
        if not self.transport.is_closing():
            self.transport.pause_reading()
        if self.on_blocked is not None:
            self.on_blocked()
        self._watch(self._untaken())

    def resume_writing(self) -> None:
        """Be free again."""
        super().resume_writing()
        self._stop_stall_timer()
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    async def receive(self) -> Any:  # noqa: ANN401  an ASGI event
        """Return the next message of the client, and read on unless blocked."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            if not self.blocked and not self.transport.is_closing():
                self.transport.resume_reading()
        return message

    async def send(self, message: Any) -> None:  # noqa: ANN401  an ASGI event
        """Send an ASGI event; a refusal by HTTP ends the handshake, which uvicorn forgets and logs as an error.

        Litestar closes what it has no route for, before it was accepted. uvicorn would make a 403 of that.
        """
        if message["type"] == "websocket.close" and not self.handshake_complete:
            status = 500 if message.get("reason") == HTTPStatus.INTERNAL_SERVER_ERROR.phrase else 404
            await super().send({"type": "websocket.http.response.start", "status": status, "headers": []})
            message = {"type": "websocket.http.response.body", "body": b""}
        await super().send(message)
        if message["type"] == "websocket.accept":
            # 2 KB that nobody needs behind the handshake
            del self.request, self.response
        elif message["type"] == "websocket.http.response.body":
            self.handshake_complete = True

    def handle_close(self, event: Frame) -> None:
        """Take the peer's close frame, as its word that it goes or as the answer to ours."""
        super().handle_close(event)
        # closing waits for what is unsent, and the peer may have stopped reading
        self.loop.call_later(_CLOSE_SECONDS, self._cut_off)

    def handle_parser_exception(self) -> None:
        """End the connection for a message that breaks the protocol (1002, 1007) or is too big (1009).

        The rest of that message is read and dropped: closing on unread input would reset the connection, and the peer
        would not see the code.
        """
        if self.close_sent:
            return
        sent = self.conn.close_sent
        code, reason = (sent.code, sent.reason) if sent is not None else (1006, "")
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self._finish()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    # -- inside -------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Send what the closing handshake wants sent, and leave the rest to the peer, but not for ever."""
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.stop_keepalive()
        self.read_paused = False
        self.transport.resume_reading()
        self.close_timer = self.loop.call_later(_CLOSE_SECONDS, self._cut_off)

    def _watch(self, unsent: int) -> None:
        self._stop_stall_timer()
        self._stall_timer = self.loop.call_later(self._stall_seconds, self._stalled, unsent)

    def _stalled(self, unsent: int) -> None:
        left = self._untaken()
        if left >= unsent:
            _logger.info("a client took nothing for %g s and is cut off", self._stall_seconds)
            self._cut_off()
        else:
            self._watch(left)

    def _untaken(self) -> int:
        """How many bytes the peer has not acknowledged.

        The transport's own count is not enough: the system holds megabytes more, and asks for new ones only when a
        good part of them is gone, which takes a client of some kB a second many minutes.
        """
        held = bytes(4)
        with contextlib.suppress(OSError):  # a system that does not say
            held = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, held)
        unsent, *_ = struct.unpack("i", held)
        return self.transport.get_write_buffer_size() + int(unsent)

    def _cut_off(self) -> None:
        """End the connection; nothing is kept for a peer that takes nothing, not even by the system."""
        if self.disconnected:
            return
        if self._untaken():
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
