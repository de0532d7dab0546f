"""A server for client.js that says what a test tells it to, over WebSocket and as server-sent events."""

import asyncio
import json
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tests.waiting import eventually

__all__ = ["Peer", "ScriptedServer", "ack", "event", "hello"]

Frame = dict[str, Any]


def hello(last: int = 10, epoch: str = "e") -> Frame:
    """Return the first frame."""
    return {"type": "connected", "connection_id": "ws-events-1", "epoch": epoch, "lastSeq": last}


def event(sequence: int, **fields: Any) -> Frame:
    """Return an event."""
    return {"type": "alert_deleted", "data": {"id": "x"}, "sequence": sequence, "requires_ack": False, **fields}


def ack(asked: int, *, recovered: bool = True, epoch: str = "e", **fields: Any) -> Frame:
    """Return a verdict."""
    verdict = {"type": "resync_ack", "channel": "events", "epoch": epoch, "last_sequence": asked, "replayed_count": 0}
    return verdict | {"recovered": recovered} | fields


class Peer:
    """A connection or request of the client: its query, its headers, and what it sent."""

    def __init__(self, request: Request, socket: ServerConnection | None = None) -> None:
        target = urlsplit(request.path)
        self.path = target.path
        self.query = {name: value for name, (value,) in parse_qs(target.query, keep_blank_values=True).items()}
        self.headers = request.headers
        self.received: list[Frame] = []
        self.closed = False
        self._socket = socket

    @property
    def position(self) -> tuple[str | None, str | None]:
        """The position from which it resumes."""
        return self.query.get("epoch"), self.query.get("since")

    async def send(self, *frames: Frame | str) -> None:
        """Send frames."""
        assert self._socket is not None
        for frame in frames:
            await self._socket.send(frame if isinstance(frame, str) else json.dumps(frame))

    async def close(self, code: int = 1011, reason: str = "") -> None:
        """Close the connection."""
        assert self._socket is not None
        await self._socket.close(code, reason)

    async def gets(self, *frames: Frame) -> None:
        """Wait until the client has sent as many messages, and compare them."""
        await eventually(lambda: len(self.received) >= len(frames))
        assert self.received == list(frames)

    async def serve(self) -> None:
        """Collect what the client sends until it is gone."""
        assert self._socket is not None
        try:
            async for message in self._socket:
                self.received.append(json.loads(message))
        except ConnectionClosed:
            pass
        self.closed = True


class ScriptedServer:
    """Accepts connections; `peers` are all of them in order.

    `refusals` counts upgrades that are still to be refused. `answers` are those to the next requests of `/events`:
    a status, headers and a body.
    """

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.refusals = 0
        self.answers: list[tuple[int, dict[str, str], str]] = []
        self.port = 0
        self._answered: list[ServerConnection] = []
        self._server: Server

    async def __aenter__(self) -> Self:
        self._server = await serve(
            self._accept,
            "127.0.0.1",
            0,
            process_request=self._answer,
            compression=None,
            select_subprotocol=lambda _, offered: offered[0] if offered else None,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._answered:
            connection.transport.abort()
        await asyncio.sleep(0)  # until they are
        self._server.close()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """The URL for the client."""
        return f"ws://127.0.0.1:{self.port}/ws/events"

    async def peer(self, number: int = 1) -> Peer:
        """Wait for a connection or a request of `/events`, counted from 1."""
        await eventually(lambda: len(self.peers) >= number, 20)
        return self.peers[number - 1]

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        if urlsplit(request.path).path != "/events":
            if not self.refusals:
                return None
            self.refusals -= 1
            self._answered.append(connection)
            return _response(503, {}, "")
        self._answered.append(connection)
        if not self.answers:
            return _response(503, {"Retry-After": "60"}, "")  # the script has ended
        self.peers.append(Peer(request))
        return _response(*self.answers.pop(0))

    async def _accept(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        peer = Peer(socket.request, socket)
        self.peers.append(peer)
        await peer.serve()


def _response(status: int, headers: dict[str, str], body: str) -> Response:
    content = body.encode()
    fields = Headers({"Content-Length": str(len(content)), "Connection": "close", **headers})
    return Response(status, HTTPStatus(status).phrase, fields, content)
