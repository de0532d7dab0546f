"""The HTTP protocol: what is left of a connection when it has ended."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import connect

from handlers.server.descriptors import ConnectionLimit
from handlers.server.http import HttpProtocol
from handlers.server.sinks import EXTENSION
from handlers.server.websocket import WebSocketProtocol
from kernel.clients import NORMAL
from tests.waiting import eventually

LIMIT = ConnectionLimit(1000)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request, with a stream at /stream, and close a WebSocket at once."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        return
    sink = None
    if scope["path"] == "/stream":
        sink = scope["extensions"][EXTENSION].open_stream(high_water=65536, stall_seconds=1)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if sink is not None:
        sink.write(b"1\r\nx\r\n")
        sink.close(NORMAL)
        await sink.ended()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """The port of a server with this application."""
    config = uvicorn.Config(
        app,
        port=0,
        http=partial(HttpProtocol, request_seconds=1, limit=LIMIT),  # type: ignore[arg-type]  # uvicorn only calls it
        ws=partial(WebSocketProtocol, high_water=65536, stall_seconds=1, limit=LIMIT),  # type: ignore[arg-type]  # the same
        lifespan="off",
        log_config=None,
    )
    server = uvicorn.Server(config)
    server.capture_signals = nullcontext  # type: ignore[method-assign,assignment]  # pytest has its own
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


def protocols() -> int:
    """Count the protocols in memory."""
    return sum(type(each) is HttpProtocol for each in gc.get_objects())  # isinstance fails for dead weak proxies


@pytest.mark.parametrize("kind", ["/", "/stream", "websocket", "left"])
async def test_nothing_is_left(port: int, kind: str) -> None:
    """The protocol of a connection that has ended is freed without the cyclic garbage collector."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            if kind == "websocket":
                async with connect(f"ws://127.0.0.1:{port}/", proxy=None) as socket:
                    await socket.wait_closed()
                continue
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            path = "/" if kind == "left" else kind
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * (1 if kind == "/stream" else 2))
            await reader.readuntil(b"0\r\n\r\n")
            writer.transport.abort() if kind == "left" else writer.close()
        await eventually(lambda: protocols() == 0, 2)
    finally:
        gc.enable()
