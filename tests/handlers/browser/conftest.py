"""Streams of client.js in one Node.js process, and a server that says what a test tells it to."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tests.handlers.browser.scripted_server import ScriptedServer
from tests.javascript import JavaScript, Listener

Connect = Callable[..., Listener]


@pytest.fixture(scope="module")
def javascript() -> Iterator[JavaScript]:
    """A Node.js process, for all tests of a module."""
    with JavaScript() as javascript:
        yield javascript


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    """The server."""
    async with ScriptedServer() as server:
        yield server


@pytest.fixture
def connect(javascript: JavaScript, server: ScriptedServer) -> Iterator[Connect]:
    """Start streams to the server, with options by name; they reconnect at once, and are closed after the test."""
    started = []

    def connect(url: str = "", command: dict[str, Any] | None = None, **options: Any) -> Listener:
        started.append(javascript.connect(url or server.url, options=options, **(command or {})))
        return started[-1]

    javascript.command("random", value=0)
    yield connect
    for listener in started:
        if not listener.threw:
            javascript.call(listener, "close")
