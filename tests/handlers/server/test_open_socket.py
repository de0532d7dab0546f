"""The socket of a transport that the event loop may have closed."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import cast

import pytest
import uvloop

from handlers.server.joining_transport import JoiningTransport
from handlers.server.open_socket import NO_LINGER, open_socket


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_closed_transport_has_no_socket(run: Callable[[Coroutine[None, None, None]], None]) -> None:
    """The socket is there until the client resets the connection; aborting again after that raises nothing."""

    async def reset() -> None:
        loop = asyncio.get_running_loop()
        connected: asyncio.Future[asyncio.Transport] = loop.create_future()
        lost = asyncio.Event()

        class Server(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                connected.set_result(cast(asyncio.Transport, transport))

            def connection_lost(self, exc: Exception | None) -> None:
                lost.set()

        server = await loop.create_server(Server, "127.0.0.1", 0)
        with contextlib.closing(server):
            client = socket.create_connection(server.sockets[0].getsockname())
            transport = await asyncio.wait_for(connected, 5)
            opened = open_socket(transport)
            assert opened is not None
            assert opened.getpeername() == client.getsockname()

            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            client.close()
            await asyncio.wait_for(lost.wait(), 5)
            await asyncio.sleep(0.01)  # both event loops close the socket after that call

            assert open_socket(transport) is None
            JoiningTransport(transport, loop, patience=1).abort()

    run(reset())
