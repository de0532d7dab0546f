"""The WebSocket protocol on a transport in memory: what it holds of what a client has sent."""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from handlers.server.descriptors import ConnectionLimit
from handlers.server.primitives import SlimQueue
from handlers.server.websocket import WebSocketProtocol
from kernel.clients import INTERNAL_ERROR

MAX_SIZE = 65536
READ = 256_000  # what uvloop reads at once
UPGRADE = (
    b"GET /ws/events HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
TEXT, CONTINUATION, CLOSE, PING = 1, 0, 8, 9


class MemoryTransport(asyncio.Transport):
    """A transport that keeps what is written, and that a test asks whether it would read."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.reading = True
        self.ended = self.closed = False

    def write(self, data: Any) -> None:
        assert not self.ended, "a write after the end"
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class WatchedQueue(SlimQueue):
    """The connection's queue, with the texts in it."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def put_nowait(self, item: Any) -> None:
        if "text" in item:
            self.texts.append(item["text"])
        super().put_nowait(item)

    async def get(self) -> Any:
        item = await super().get()
        if "text" in item:
            del self.texts[0]
        return item


class Connection:
    """A protocol, the transport under it, and the application's ends of it."""

    def __init__(self, max_size: int) -> None:
        self.accepted = asyncio.Event()
        self.gone = asyncio.Event()
        self.receive: Any = None
        config = uvicorn.Config(
            self._app, interface="asgi3", ws_max_size=max_size, ws_ping_interval=None, lifespan="off", log_config=None
        )
        config.load()
        self.transport = MemoryTransport()
        self.protocol = WebSocketProtocol(
            config=config,
            server_state=ServerState(),
            app_state={},
            high_water=1 << 20,
            stall_seconds=10,
            limit=ConnectionLimit(10),
        )
        self.queue = WatchedQueue()
        self.protocol.queue = self.queue  # type: ignore[assignment]

    async def open(self, *, deflate: bool) -> None:
        """Upgrade."""
        self.protocol.connection_made(self.transport)
        extension = b"Sec-WebSocket-Extensions: permessage-deflate\r\n" if deflate else b""
        self.protocol.data_received(UPGRADE + extension + b"\r\n")
        await asyncio.wait_for(self.accepted.wait(), 5)
        self.transport.written.clear()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        self.receive = receive
        self.accepted.set()
        await self.gone.wait()

    def held(self) -> int:
        """Return how many characters the messages have that wait for the application."""
        return sum(map(len, self.queue.texts))


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, compressed: bool = False) -> bytes:
    """Return one masked frame."""
    first = bytes([(0x80 if fin else 0) | (0x40 if compressed else 0) | opcode])
    length = len(payload)
    size = bytes([0x80 | length]) if length < 126 else bytes([0x80 | 126]) + length.to_bytes(2)
    return first + size + bytes(4) + payload


def deflated(payload: bytes) -> bytes:
    """Return one masked frame with a compressed text."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return frame(TEXT, (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4], compressed=True)


@pytest.fixture
async def connection() -> AsyncIterator[Connection]:
    """An open connection without compression."""
    connection = Connection(MAX_SIZE)
    await connection.open(deflate=False)
    yield connection
    connection.gone.set()
    connection.protocol.connection_lost(None)


@pytest.fixture
async def deflating() -> AsyncIterator[Connection]:
    """An open connection with compression."""
    connection = Connection(MAX_SIZE)
    await connection.open(deflate=True)
    yield connection
    connection.gone.set()
    connection.protocol.connection_lost(None)


async def test_what_is_inflated_is_bounded(deflating: Connection) -> None:
    """One read brings hundreds of messages of 65 kB: few are inflated at a time, and nothing more is read meanwhile."""
    data = deflated(b" " * (MAX_SIZE - 536))
    count = 400
    deflating.protocol.data_received(data * count)
    most = 0
    for _ in range(count):
        most = max(most, deflating.held())
        assert not deflating.transport.reading or not deflating.held()
        assert len((await deflating.receive())["text"]) == MAX_SIZE - 536
    assert 0 < most <= 4 * MAX_SIZE
    assert deflating.held() == 0


@pytest.mark.parametrize("size", [0, 1, 40, 125, 60_000])
async def test_every_message_arrives(connection: Connection, size: int) -> None:
    """However a read is cut, each of its messages arrives whole and in order, and few wait at a time."""
    count = min(2000, READ // (size + 6))
    texts = [f"{number:0>{size}}" for number in range(count)] if size > 3 else ["x" * size] * count
    data = b"".join(frame(TEXT, text.encode()) for text in texts)
    for at in range(0, len(data), READ):
        connection.protocol.data_received(data[at : at + READ])
    most = 0
    for text in texts:
        most = max(most, len(connection.queue.texts))
        assert (await connection.receive())["text"] == text
    assert most < 200
    connection.protocol.data_received(frame(PING))
    await asyncio.sleep(0.5)  # parsing may have used its share of the time
    assert connection.transport.reading


async def test_fragments(connection: Connection) -> None:
    """A message in many fragments, empty ones too, costs no more memory than the message."""
    parts = [frame(TEXT, b"a", fin=False), *[frame(CONTINUATION, b"", fin=False)] * 5000]
    parts += [*[frame(CONTINUATION, b"b", fin=False)] * 100, frame(CONTINUATION, b"c")]
    for part in parts:
        connection.protocol.data_received(part)
        assert len(connection.protocol.frames) <= 1
    assert (await connection.receive())["text"] == "a" + "b" * 100 + "c"


async def test_invalid_text_and_ping(connection: Connection) -> None:
    """Text that is not UTF-8 closes with 1007, whatever follows it in the same segment."""
    connection.protocol.data_received(frame(TEXT, b"good") + frame(TEXT, b"\xff") + frame(PING) * 3 + frame(TEXT, b"x"))
    assert connection.transport.written.endswith(b"\x88\x02" + (1007).to_bytes(2))
    assert connection.transport.ended
    assert (await connection.receive())["text"] == "good"
    assert await connection.receive() == {"type": "websocket.disconnect", "code": 1007, "reason": ""}


@pytest.mark.parametrize("payload", [b"", (1001).to_bytes(2) + b"bye"])
async def test_close_between_fragments(connection: Connection, payload: bytes) -> None:
    """A close frame between the fragments of a message is answered with its own code."""
    connection.protocol.data_received(frame(TEXT, b"half", fin=False) + frame(CLOSE, payload))
    assert connection.transport.written == bytes([0x88, len(payload)]) + payload
    assert connection.transport.closed
    assert (await connection.receive())["code"] == (1001 if payload else 1005)


async def test_messages_before_a_violation(connection: Connection) -> None:
    """Messages before one that violates the protocol are taken, even out of the same segment."""
    connection.protocol.data_received(frame(TEXT, b"good") + frame(0xB) + frame(TEXT, b"lost"))
    assert (await connection.receive())["text"] == "good"
    assert (await connection.receive())["code"] == 1002
    assert connection.transport.written.startswith(b"\x88")


async def test_pings_take_a_share_of_the_time(connection: Connection) -> None:
    """A read full of pings is parsed in turns of a few milliseconds, and every one of them is answered."""
    count = 12_000
    loop = asyncio.get_running_loop()
    begin, used, worst = loop.time(), time.process_time(), 0.0
    connection.protocol.data_received(frame(PING) * count)
    while len(connection.transport.written) < 2 * count:
        before = loop.time()
        await asyncio.sleep(0.001)
        worst = max(worst, loop.time() - before)
    assert connection.transport.written == b"\x8a\x00" * count
    assert worst < 0.1
    assert loop.time() - begin > 3 * (time.process_time() - used)


async def test_closing_while_much_is_unparsed(connection: Connection) -> None:
    """After the server's own close the rest of a read is still parsed, up to the client's close frame."""
    data = frame(TEXT, b"x" * 100) * 2000 + frame(CLOSE, (1011).to_bytes(2))
    connection.protocol.data_received(data)
    assert not connection.transport.reading
    connection.protocol.close(INTERNAL_ERROR)
    async with asyncio.timeout(4):
        while not connection.transport.closed:
            await asyncio.sleep(0.01)
    assert connection.protocol.closed


async def test_connection_without_a_socket(connection: Connection) -> None:
    """A connection that the event loop has already closed can become blocked and be ended (uvloop has no socket)."""
    assert connection.transport.get_extra_info("socket") is None

    connection.protocol.pause_writing()
    connection.protocol.evict()

    assert connection.transport.closed
