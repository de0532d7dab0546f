"""Requests that the server cancels because it stops: they are answered 503 instead of uvicorn's 500."""

import asyncio
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from handlers.server.refusal import problem

__all__ = ["answer_until_cancelled"]

_BODY, _DESCRIBED = problem(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The service is stopping and could not finish this request in time: repeat it, with its Idempotency-Key if any.",
)
_HEADERS: Final = [
    *_DESCRIBED,
    (b"retry-after", b"1"),
    (b"connection", b"close"),
]


async def answer_until_cancelled(
    app: Any,  # noqa: ANN401  an ASGI application
    cycle: RequestResponseCycle,
    scope: Any,  # noqa: ANN401  passed on as it is
    receive: Any,  # noqa: ANN401  passed on as it is
    send: Any,  # noqa: ANN401  passed on as it is
) -> None:
    """Call the application; if it is cancelled, answer 503, or end the connection if the answer has begun."""
    try:
        await app(scope, receive, send)
    except asyncio.CancelledError:
        if cycle.response_started:
            cycle.disconnected = True
            cycle.transport.abort()
            return
        await send({"type": "http.response.start", "status": 503, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": _BODY, "more_body": False})
