"""The sink on plain ASGI."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from handlers.server.sinks import AsgiSink, body_message, websocket_message
from kernel.clients import GOING_AWAY


class FakeServer:
    """An ASGI server's `send`: records the messages while it has `room`; `error` is raised instead, if set."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.room = asyncio.Event()
        self.room.set()
        self.error: Exception | None = None

    async def send(self, message: dict[str, Any]) -> None:
        """Send a message once there is room."""
        await self.room.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(message)


@pytest.fixture
def server() -> FakeServer:
    """The server of `sink`."""
    return FakeServer()


@pytest.fixture
async def sink(server: FakeServer) -> AsyncIterator[AsgiSink]:
    """A sink that is blocked from 100 unsent characters on."""
    sink = AsgiSink(server.send, websocket_message, high_water=100, stall_seconds=0.05)
    yield sink
    sink.stop()


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; fail after a deadline."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_messages_in_order(server: FakeServer, sink: AsgiSink) -> None:
    """Texts and bytes are sent in order, and the close comes last."""
    sink.write(["a", b"b"])
    sink.write(["c"])
    sink.close(GOING_AWAY)

    await until(lambda: len(server.sent) == 4)
    assert server.sent == [
        {"type": "websocket.send", "text": "a"},
        {"type": "websocket.send", "bytes": b"b"},
        {"type": "websocket.send", "text": "c"},
        {"type": "websocket.close", "code": GOING_AWAY.code, "reason": GOING_AWAY.text},
    ]


async def test_blocked(server: FakeServer, sink: AsgiSink) -> None:
    """The sink is blocked while more than `high_water` is unsent, says so once, and is unblocked by sending."""
    calls: list[bool] = []
    sink.on_blocked = lambda: calls.append(sink.blocked)
    server.room.clear()

    sink.write(["x" * 60])
    assert not sink.blocked
    sink.write(["x" * 60])
    sink.write(["x" * 60])
    assert (sink.blocked, calls) == (True, [True])

    server.room.set()
    async with asyncio.timeout(5):
        await sink.drained()
    assert not sink.blocked


async def test_a_client_that_accepts_no_data(server: FakeServer, sink: AsgiSink) -> None:
    """After `stall_seconds` without progress everything unsent is dropped, and nothing waits for the sink."""
    server.room.clear()
    sink.write(["x" * 200])

    async with asyncio.timeout(5):
        await sink.drained()
    server.room.set()
    sink.write(["more"])
    await asyncio.sleep(0)
    assert (sink.blocked, server.sent) == (False, [])


async def test_a_lost_connection(server: FakeServer, sink: AsgiSink) -> None:
    """An error of the server's `send` ends the sink, and nothing waits for it."""
    server.error = OSError("connection lost")
    sink.write(["x" * 200])

    async with asyncio.timeout(5):
        await sink.drained()
    assert server.sent == []


async def test_body(server: FakeServer) -> None:
    """Of an HTTP answer the parts are sent as they are written, and its end comes last."""
    sink = AsgiSink(server.send, body_message, high_water=100, stall_seconds=0.05)
    sink.write(b"a")
    sink.write(b"bc")
    sink.close(GOING_AWAY)
    async with asyncio.timeout(5):
        await sink.ended()
    parts = [(message["type"], message["body"], message["more_body"]) for message in server.sent]
    assert parts == [
        ("http.response.body", b"a", True),
        ("http.response.body", b"bc", True),
        ("http.response.body", b"", False),
    ]
