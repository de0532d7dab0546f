"""The HTTP application with a fake broadcaster, and two clients of it."""

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
from litestar import Litestar
from litestar.testing import AsyncTestClient

from tests.fakes import FakeBroadcaster
from tests.handlers.http_app import http_app


@pytest.fixture
def broadcaster() -> FakeBroadcaster:
    """The broadcaster of `make_app` and `client`."""
    return FakeBroadcaster()


@pytest.fixture
def make_app(broadcaster: FakeBroadcaster) -> Callable[..., Litestar]:
    """A function that makes the HTTP application with the given settings."""
    return partial(http_app, broadcaster)


@pytest.fixture
async def client(make_app: Callable[..., Litestar]) -> AsyncIterator[AsyncTestClient[Litestar]]:
    """A client of the HTTP application with the default settings: no API keys."""
    async with AsyncTestClient(make_app()) as client:
        yield client


class Answer(NamedTuple):
    """An answer, and how many pieces of the request's body were read for it."""

    status: int
    headers: dict[str, str]
    body: bytes
    pieces_read: int


@pytest.fixture
def exchange() -> Callable[..., Any]:
    """A function that sends a request by ASGI, its body in pieces; None in place of a piece is a disconnect."""

    async def send_request(
        app: Litestar, path: str, pieces: list[bytes | None], headers: Any, method: str = "POST"
    ) -> Answer:
        pairs = headers.items() if isinstance(headers, dict) else headers
        raw = [(name.lower().encode(), value if isinstance(value, bytes) else value.encode()) for name, value in pairs]
        sent: list[Any] = []
        read = 0

        async def receive() -> Any:
            nonlocal read
            piece = pieces[read]
            read += 1
            if piece is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": piece, "more_body": read < len(pieces)}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": raw,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        await app(scope, receive, send)  # type: ignore[arg-type]
        start = sent[0]
        received = {name.decode().lower(): value.decode() for name, value in start["headers"]}
        return Answer(start["status"], received, b"".join(message.get("body", b"") for message in sent[1:]), read)

    return send_request
