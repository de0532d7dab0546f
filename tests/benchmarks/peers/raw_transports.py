"""The limit of Python: asyncio transports on uvloop, frames encoded once, one write per client and event, no Redis."""

import asyncio
import sys

import uvloop

_AGREED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
_ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"

_clients: list[asyncio.Transport] = []
_tasks: set[asyncio.Task[None]] = set()


class _Connection(asyncio.Protocol):
    """A client if its request is a GET; the body of a POST is sent to all clients, `X-Repeat` times."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, mark, body = self._data.partition(b"\r\n\r\n")
        if not mark:
            return
        if head.startswith(b"GET"):
            self._transport.write(_AGREED)
            _clients.append(self._transport)
        elif len(body) >= _number(head, b"content-length", 0):
            self._transport.write(_ACCEPTED)
            task = asyncio.create_task(_fan_out(_framed(body), head))
            _tasks.add(task)
            task.add_done_callback(_tasks.discard)
        else:
            return
        self._data = b""


async def _fan_out(frame: bytes, head: bytes) -> None:
    for _ in range(_number(head, b"x-repeat", 1)):
        for client in _clients:
            client.write(frame)
        await asyncio.sleep(0)


def _framed(body: bytes) -> bytes:
    """Return a text frame (RFC 6455 section 5.2)."""
    size = len(body)
    return b"\x81" + (bytes((size,)) if size < 126 else b"\x7e" + size.to_bytes(2)) + body


def _number(head: bytes, name: bytes, default: int) -> int:
    value = head.lower().partition(b"\n%s:" % name)[2].split(b"\r", 1)[0]
    return int(value or default)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())
