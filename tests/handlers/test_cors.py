"""The middleware for pages of other origins."""

from typing import Any

from handlers.cors import CorsMiddleware
from handlers.origins import OriginRules

ORIGIN = b"https://a.example"


async def test_answers_that_share_a_message() -> None:
    """A route may send the same message in every answer: each has the CORS headers once."""
    shared = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(shared)

    async def receive() -> Any:
        """The request has no body."""

    async def send(message: Any) -> None:
        sent.append(message)

    middleware = CorsMiddleware(app, OriginRules([ORIGIN.decode()], credentials=True, loopback=False))
    scope = {"type": "http", "method": "GET", "path": "/events", "headers": [(b"host", b"x"), (b"origin", ORIGIN)]}
    for _ in range(2):
        await middleware(scope, receive, send)
    for message in sent:
        assert [value for name, value in message["headers"] if name == b"access-control-allow-origin"] == [ORIGIN]
